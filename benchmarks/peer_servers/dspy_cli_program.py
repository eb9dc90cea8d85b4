"""The program as a module of a dspy-cli project."""

import dspy


class Ask(dspy.Module):
    """Answer a question."""

    def __init__(self) -> None:
        super().__init__()
        self.predict = dspy.Predict("question -> answer")

    def forward(self, question: str) -> dspy.Prediction:
        """The answer."""
        return self.predict(question=question)

    async def aforward(self, question: str) -> dspy.Prediction:
        """The answer, asynchronously."""
        return await self.predict.acall(question=question)
