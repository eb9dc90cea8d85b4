"""Answer a question from an encyclopedia: one predictor picks what to look up, a tool looks, another answers."""

from typing import TypedDict

import dspy

ARTICLES = {
    "aurora": "An aurora is light in the upper air, caused by charged particles of the solar wind that the Earth's "
    "magnetic field leads towards the poles.",
    "basalt": "Basalt is a dark, fine-grained volcanic rock. It makes up most of the ocean floor.",
    "coral reef": "Coral reefs are built by colonies of polyps that secrete calcium carbonate. They cover less than "
    "one percent of the ocean floor and are home to about a quarter of all marine species.",
    "monsoon": "A monsoon is a seasonal reversal of wind that brings a rainy and a dry season. It is driven by land "
    "and sea warming at different speeds.",
    "photosynthesis": "Photosynthesis turns carbon dioxide and water into sugar and oxygen, with the energy of light. "
    "In plants it takes place in chloroplasts.",
    "tide": "Tides are the rise and fall of sea level caused by the pull of the Moon and the Sun. Most coasts see two "
    "high tides a day.",
    "volcano": "A volcano is an opening in a planet's crust through which lava, ash and gases escape. Most lie where "
    "tectonic plates meet.",
}


class ChooseArticles(dspy.Signature):
    """Choose which articles of a small encyclopedia help to answer the question."""

    question: str = dspy.InputField()
    titles: list[str] = dspy.InputField(desc="every article there is")
    chosen: list[str] = dspy.OutputField(desc="at most three of the titles, the most useful first")


class AnswerFromNotes(dspy.Signature):
    """Answer the question from the notes, and say so when the notes do not hold the answer."""

    question: str = dspy.InputField()
    notes: list[str] = dspy.InputField(desc="articles that were looked up")
    answer: str = dspy.OutputField(desc="two sentences at most")


class Findings(TypedDict):
    """What ``Research`` gives."""

    answer: str
    sources: list[str]


def look_up(title: str) -> str:
    """The article with that title; an empty text when there is none."""
    return ARTICLES.get(title.strip().lower(), "")


class Research(dspy.Module):
    """Answer a question about nature from a small encyclopedia, with the articles it used."""

    def __init__(self) -> None:
        super().__init__()
        self.choose = dspy.Predict(ChooseArticles)
        self.respond = dspy.ChainOfThought(AnswerFromNotes)
        self.look_up = dspy.Tool(look_up)

    async def aforward(self, question: str) -> Findings:
        """Choose, look up, answer."""
        choice = await self.choose.acall(question=question, titles=sorted(ARTICLES))
        articles = {title: await self.look_up.acall(title=title) for title in choice.chosen[:3]}
        found = {title: text for title, text in articles.items() if text}
        reply = await self.respond.acall(question=question, notes=list(found.values()))
        return {"answer": reply.answer, "sources": list(found)}
