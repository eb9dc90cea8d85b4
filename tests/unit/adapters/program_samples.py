"""Programs of every kind a person may bring."""

import asyncio
import enum
import threading
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypedDict

import dspy
from pydantic import BaseModel, Field


class Mood(enum.Enum):
    GOOD = "good"
    BAD = "bad"


class Person(BaseModel):
    name: str = Field(description="full name")
    age: int | None = None


class Gallery(BaseModel):
    title: str
    cover: dspy.Image


class Classify(dspy.Signature):
    """Say what a text is about."""

    text: str = dspy.InputField(desc="any text")
    hint: str = dspy.InputField(default="", desc="what others said")
    topic: Literal["a", "b"] = dspy.OutputField(desc="its topic")
    score: int = dspy.OutputField(ge=1, le=5)


class Everything(dspy.Signature):
    """One field of each type."""

    word: Literal["x", "y"] = dspy.InputField()
    flag: bool = dspy.InputField()
    count: int = dspy.InputField(ge=0)
    share: float = dspy.InputField()
    mood: Mood = dspy.InputField()
    names: list[str] = dspy.InputField()
    counts: dict[str, int] = dspy.InputField()
    maybe: str | None = dspy.InputField(default=None)
    person: Person = dspy.InputField()
    people: list[Person] = dspy.InputField()
    image: dspy.Image = dspy.InputField()
    images: list[dspy.Image] = dspy.InputField()
    gallery: Gallery | None = dspy.InputField(default=None)
    history: dspy.History = dspy.InputField()
    answer: str = dspy.OutputField()


class OneShot(dspy.Module):
    """Classify a text.

    And more, which nobody needs to read.
    """

    signature = Classify

    def __init__(self):
        super().__init__()
        self.predict = dspy.Predict(Classify)

    async def aforward(self, **inputs):
        return await self.predict.acall(**inputs)


class Guessing(dspy.Module):
    """Types of the parameters from the predictors; outputs from the last one."""

    def __init__(self):
        super().__init__()
        self.find = dspy.Predict("question: int -> topic")
        self.answer = dspy.ChainOfThought("question: int, topic -> answer: float")

    async def aforward(self, question, extra=None, *, depth: int = 2):
        topic = (await self.find.acall(question=question)).topic
        reply = await self.answer.acall(question=question, topic=topic)
        return dspy.Prediction(answer=reply.answer, sure=0.75)


class ReturnsModel(dspy.Module):
    async def aforward(self, name: str) -> Person:
        return Person(name=name, age=3)


class Pair(NamedTuple):
    left: str
    right: int


class ReturnsTuple(dspy.Module):
    def forward(self, word: str) -> Pair:
        return Pair(word, len(word))


class Counted(TypedDict):
    letters: int


class ReturnsDict(dspy.Module):
    def forward(self, word: str) -> Counted:
        return {"letters": len(word)}


@dataclass
class Halves:
    half: float


class ReturnsDataclass(dspy.Module):
    def forward(self, number: int) -> Halves:
        return Halves(number / 2)


class Verdict(dspy.Prediction):
    verdict: bool


class ReturnsPrediction(dspy.Module):
    async def aforward(self, claim: str) -> Verdict:
        return Verdict(verdict=True)


class BareValue(dspy.Module):
    """Returns the text itself."""

    def __init__(self):
        super().__init__()
        self.predict = dspy.Predict("text -> summary")

    async def aforward(self, text: str):
        return (await self.predict.acall(text=text)).summary


class Untellable(dspy.Module):
    def __init__(self):
        super().__init__()
        self.first = dspy.Predict("a -> b")
        self.second = dspy.Predict("b -> c")

    async def aforward(self, **inputs):
        return None


class NoOutputs(dspy.Module):
    async def aforward(self, text: str):
        return text


class NeedsTool(dspy.Module):
    async def aforward(self, tool: dspy.Tool, text: str) -> Counted:
        return {"letters": 0}


class AsyncForward(dspy.Module):
    async def forward(self, text: str) -> Counted:
        return {"letters": 0}


class Nothing(dspy.Module):
    pass


class NeedsArguments(dspy.Module):
    def __init__(self, path):
        super().__init__()


class RaisesInInit(dspy.Module):
    def __init__(self):
        raise ValueError("no database")


class OnlyForwardOverCot(dspy.ChainOfThought):
    """Overrides forward alone: its inherited aforward would go around it."""

    def __init__(self):
        super().__init__("text -> summary")

    def forward(self, **inputs):
        prediction = super().forward(**inputs)
        prediction["summary"] = prediction["summary"].upper()
        return prediction


class SyncOnly(dspy.Module):
    """Reports where it ran."""

    def __init__(self):
        super().__init__()
        self.predict = dspy.Predict("text -> summary")

    def forward(self, text: str) -> Pair:
        return Pair(self.predict(text=text).summary, threading.get_ident())


class Waits(dspy.Module):
    """Sync; holds its thread until the event is set."""

    started = threading.Event()
    release = threading.Event()

    def forward(self, text: str) -> Counted:
        type(self).started.set()
        type(self).release.wait(30)
        return {"letters": len(text)}


class WaitsAsync(dspy.Module):
    started = asyncio.Event()
    cancelled = False

    async def aforward(self, text: str) -> Counted:
        type(self).started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            type(self).cancelled = True
            raise
        return {"letters": len(text)}


class KeepsState(dspy.Module):
    """Stores what it was asked, and answers with what it stored last."""

    last: str = ""

    async def aforward(self, text: str) -> dict:
        before = self.last
        self.last = text
        return {"summary": before}

    def __init__(self):
        super().__init__()
        self.predict = dspy.Predict("text -> summary")


class Raises(dspy.Module):
    """Raises what ``make`` gives."""

    make: Any = staticmethod(lambda: ValueError("the secret is 1234"))

    def __init__(self):
        super().__init__()
        self.predict = dspy.Predict("text -> summary")

    async def aforward(self, text: str):
        raise type(self).make()


class Wraps(dspy.Module):
    """Wraps a model's failure in an error of its own, in the way ``how`` says."""

    how = "from"

    def __init__(self):
        super().__init__()
        self.predict = dspy.Predict("text -> summary")

    async def aforward(self, text: str):
        try:
            if self.how == "group":
                async with asyncio.TaskGroup() as group:
                    group.create_task(self.predict.acall(text=text))
            return await self.predict.acall(text=text)
        except dspy.LMError as error:
            if self.how == "from":
                raise RuntimeError("no summary") from error
            if self.how == "none":
                raise RuntimeError("no summary") from None
            raise RuntimeError("no summary")  # noqa: B904 - the implicit context is what is tested


class TimesOut(dspy.Module):
    """A timeout of its own, which is not the model's."""

    def __init__(self):
        super().__init__()
        self.predict = dspy.Predict("text -> summary")

    async def aforward(self, text: str):
        raise TimeoutError("my own database")


class CancelsItself(dspy.Module):
    def __init__(self):
        super().__init__()
        self.predict = dspy.Predict("text -> summary")

    async def aforward(self, text: str):
        inner = asyncio.ensure_future(asyncio.Event().wait())
        inner.cancel()
        await inner


class Refined(dspy.Module):
    """Refine is sync, mutates itself and swallows failures."""

    def __init__(self):
        super().__init__()
        self.module = dspy.BestOfN(dspy.Predict("text -> summary"), N=2, reward_fn=_length, threshold=3.0)

    def forward(self, text: str):
        return self.module(text=text)


def _length(inputs, prediction):
    return float(len(prediction.summary))


def find(word: str) -> str:
    """Look a word up."""
    if word == "boom":
        raise RuntimeError("lookup failed")
    return f"{word} means {word}"


class Agent(dspy.ReAct):
    def __init__(self):
        super().__init__("question -> answer", tools=[find], max_iters=3)


class WithOwnLm(dspy.Module):
    def __init__(self):
        super().__init__()
        self.predict = dspy.Predict("text -> summary")
        self.predict.lm = dspy.LM("openai/private", cache=False)

    async def aforward(self, text: str):
        return await self.predict.acall(text=text)


class OddFields(dspy.Module):
    """Names that a pydantic model has for itself."""

    async def aforward(self, schema: str, copy: int = 1, model_name: str = "m") -> Pair:
        return Pair(schema + model_name, copy)


class NoTypes(dspy.Module):
    """Hands its predictor a value of another type than the signature says."""

    def __init__(self):
        super().__init__()
        self.predict = dspy.Predict("number: int -> topic")

    async def aforward(self, number: str) -> Any:
        return await self.predict.acall(number=number)


program = dspy.Predict(Classify)
a_number = 3


def a_function():
    return None


class NotAModule:
    pass
