"""A program that costs four LM calls, and can be replaced by one."""

import dspy


class Deliberate(dspy.Module):
    """Draft an answer, find fault with it, mend it, and say it in short."""

    signature = dspy.Signature("question -> answer")  # declares what the program takes and gives

    def __init__(self) -> None:
        super().__init__()
        self.draft = dspy.Predict("question -> draft")
        self.criticise = dspy.Predict("question, draft -> criticism")
        self.mend = dspy.Predict("question, draft, criticism -> text")
        self.shorten = dspy.Predict("question, text -> answer")

    async def aforward(self, question: str) -> dspy.Prediction:
        """Answer one question."""
        draft = (await self.draft.acall(question=question)).draft
        criticism = (await self.criticise.acall(question=question, draft=draft)).criticism
        text = (await self.mend.acall(question=question, draft=draft, criticism=criticism)).text
        return await self.shorten.acall(question=question, text=text)
