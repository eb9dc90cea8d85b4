"""Programs of several steps, and models of our own that answer them through the real engines."""

import asyncio
import json
import re
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypedDict

import dspy
from dspy import lm15
from program_fakes import chat_reply
from pydantic import BaseModel

from serve_app.adapters.call_journal import CallJournal
from serve_app.adapters.call_scope import call_scope
from serve_app.adapters.dspy_engine import AsyncEngine, Engine
from serve_app.adapters.loop_thread import LoopThread

RUNS: list[tuple] = []
"""What the tools below were called with."""

DOWN = lm15.ServerError("down", status=500)
FIELD = re.compile(r"starting with the field `\[\[ ## (\w+) ## \]\]`")


class Model:
    """Answers every step with ``<field> by <name>``; ``fails`` maps the number of a request (from 1) to an error.

    ``answers`` maps a field to the text it is answered with instead.
    """

    def __init__(self, name, fails=None, answers=None, **defaults):
        self.model = name
        self.fails = fails or {}
        self.answers = answers or {}
        self.defaults = defaults
        self.requests = []

    async def complete(self, request):
        self.requests.append(request)
        number = len(self.requests)
        await asyncio.sleep(0)
        if number in self.fails:
            raise self.fails[number]
        return lm15.Response(
            id=f"{self.model}-{number}",
            model=self.model,
            message=lm15.Message.assistant(self.reply(request.messages[-1].text)),
            finish_reason="stop",
            usage=lm15.Usage(10, 5),
        )

    def stream(self, request):
        raise NotImplementedError

    def tokens(self, usage):
        return usage.input_tokens, usage.output_tokens

    @property
    def fields(self):
        """The first field that each request asked for."""
        return [FIELD.search(request.messages[-1].text)[1] for request in self.requests]

    def reply(self, prompt):
        field = FIELD.search(prompt)[1]
        if field in self.answers:
            return self.answers[field]
        if field == "next_thought":
            return self.act(prompt.count("## observation_"))
        if field == "reasoning":
            return chat_reply(reasoning="r", answer=f"answer by {self.model}")
        return chat_reply(**{field: f"{field} by {self.model}"})

    def act(self, observations):
        """Three searches, then the end."""
        name, arguments = ("finish", {}) if observations >= 3 else ("search", {"word": f"w{observations}"})
        return chat_reply(
            next_thought=f"thought {observations}", next_tool_name=name, next_tool_args=json.dumps(arguments)
        )

    @contextmanager
    def lm(self):
        engine, thread = AsyncEngine(self, self.defaults), LoopThread(f"test-{self.model}")
        name = f"openai/{self.model}"
        blocking = Engine(engine, thread, self.model, dspy.LM(name))
        try:
            yield dspy.LM(name, engine=blocking, async_engine=engine, cache=False, num_retries=0, **self.defaults)
        finally:
            thread.close()


@dataclass
class Run:
    """How one attempt went."""

    answer: object
    error: Exception | None
    steps: tuple
    resumed: int
    usage: object
    lm_calls: int


async def attempt(program, asked, model, journal=(), *, is_journaled=True):
    """One attempt as a replica makes it."""
    kept = CallJournal(journal) if is_journaled else None
    with model.lm() as lm, call_scope(asked.remaining_s, None, kept) as scope:
        answer = error = None
        try:
            answer = await program.run(asked, lm)
        except Exception as raised:  # noqa: BLE001 - looked at by the test
            error = raised
        steps = kept.finished() if kept else ()
        return Run(answer, error, steps, kept.resumed if kept else 0, scope.usage, scope.lm_calls)


def look_up(title: str) -> str:
    """Look a title up."""
    RUNS.append(("look_up", title))
    return f"an article about {title}"


async def look_up_async(title: str) -> str:
    """Look a title up."""
    await asyncio.sleep(0)
    RUNS.append(("look_up", title))
    return f"an article about {title}"


class Answered(dspy.Prediction):
    final: str
    note: str


class FiveSteps(dspy.Module):
    """Five LM steps, and a tool after the first."""

    def __init__(self):
        super().__init__()
        self.topic = dspy.Predict("question -> topic")
        self.rest = [dspy.Predict(f"text -> {name}") for name in ("draft", "review", "better", "final")]
        self.look_up = dspy.Tool(look_up_async)

    async def aforward(self, question: str) -> Answered:
        topic = (await self.topic.acall(question=question)).topic
        note = text = await self.look_up.acall(title=topic)
        for step in self.rest:
            prediction = await step.acall(text=text)
            text = next(iter(prediction.values()))
        return Answered(final=text, note=note)


class FiveStepsSync(dspy.Module):
    """The same, on a thread."""

    look_up = dspy.Tool(look_up)

    def __init__(self):
        super().__init__()
        self.topic = dspy.Predict("question -> topic")
        self.rest = [dspy.Predict(f"text -> {name}") for name in ("draft", "review", "better", "final")]

    def forward(self, question: str) -> Answered:
        topic = self.topic(question=question).topic
        note = text = self.look_up(title=topic)
        for step in self.rest:
            text = next(iter(step(text=text).values()))
        return Answered(final=text, note=note)


def search(word: str) -> str:
    """Search for a word."""
    RUNS.append(("search", word))
    return f"{word} was found"


def search_fails(word: str) -> str:
    """Search for a word."""
    RUNS.append(("search", word))
    if word == "w1":
        raise LookupError(f"no {word}, run {len(RUNS)}")
    return f"{word} was found"


async def search_fails_async(word: str) -> str:
    """Search for a word."""
    return search_fails(word)


class Agent(dspy.ReAct):
    def __init__(self):
        super().__init__("question -> answer", tools=[search], max_iters=6)


class FailingAgent(dspy.ReAct):
    def __init__(self):
        super().__init__("question -> answer", tools=[dspy.Tool(search_fails, name="search")], max_iters=6)


class FailingAsyncAgent(dspy.ReAct):
    def __init__(self):
        super().__init__("question -> answer", tools=[dspy.Tool(search_fails_async, name="search")], max_iters=6)


class FailingSyncAgent(dspy.Module):
    """ReAct on a thread."""

    def __init__(self):
        super().__init__()
        self.agent = dspy.ReAct("question -> answer", tools=[dspy.Tool(search_fails, name="search")], max_iters=6)

    def forward(self, question: str) -> dspy.Prediction:
        return self.agent(question=question)


class Abreast(dspy.Module):
    """Three branches at once, two of them with one and the same first question."""

    def __init__(self):
        super().__init__()
        self.idea = dspy.Predict("question -> idea")
        self.critic = dspy.Predict("branch, idea -> critique")
        self.merge = dspy.Predict("critiques -> merged")

    async def branch(self, name, question):
        idea = (await self.idea.acall(question=question)).idea
        return (await self.critic.acall(branch=name, idea=idea)).critique

    async def aforward(self, question: str) -> dict:
        critiques = await asyncio.gather(
            self.branch("a", question), self.branch("b", question), self.branch("c", f"{question}!")
        )
        return {"merged": (await self.merge.acall(critiques="; ".join(critiques))).merged}


class CatchesToolErrors(dspy.Module):
    """Handles a failing tool itself."""

    def __init__(self):
        super().__init__()
        self.first = dspy.Predict("question -> topic")
        self.search = dspy.Tool(search_fails)

    async def aforward(self, question: str) -> Answered:
        try:
            note = await self.search.acall(word="w1")
        except LookupError:
            note = "nothing"
        topic = (await self.first.acall(question=f"{question} {note}")).topic
        return Answered(final=topic, note=note)


def pay(to: str) -> str:
    """Pay; the first attempt finds nobody there."""
    RUNS.append(("pay", to))
    if len(RUNS) == 1:
        raise ConnectionError("nobody there")
    return f"paid {to}"


class TriesAgain(dspy.Module):
    """Asks a model, and then a tool, once more where they fail."""

    def __init__(self):
        super().__init__()
        self.topic = dspy.Predict("question -> topic")
        self.pay = dspy.Tool(pay)
        self.final = dspy.Predict("text -> final")

    async def aforward(self, question: str) -> Answered:
        try:
            topic = (await self.topic.acall(question=question)).topic
        except dspy.LMError:
            topic = (await self.topic.acall(question=question)).topic
        try:
            note = await self.pay.acall(to=topic)
        except ConnectionError:
            note = await self.pay.acall(to=topic)
        return Answered(final=(await self.final.acall(text=note)).final, note=note)


class Place(BaseModel):
    name: str
    at: tuple[int, int]


def locate(name: str) -> Place:
    """Where it is."""
    RUNS.append(("locate", name))
    return Place(name=name, at=(1, 2))


def pair(name: str) -> tuple[str, int]:
    """Two things."""
    RUNS.append(("pair", name))
    return name, 1


def opaque(name: str) -> object:
    """What JSON cannot say."""
    RUNS.append(("opaque", name))
    return object()


def shape(place: Place) -> str:
    """Takes a model of its own."""
    RUNS.append(("shape", place.name))
    return f"{place.name} {place.at}"


class Tools(dspy.Module):
    """Tools in every place where one may hang."""

    of_the_class = dspy.Tool(look_up, name="of_the_class")

    def __init__(self):
        super().__init__()
        self.direct = dspy.Tool(locate)
        self.listed = [dspy.Tool(pair)]
        self.named = {"x": {"y": dspy.Tool(opaque)}}
        self.inner = Inner()

    async def aforward(self, name: str) -> dict:
        return {}


class Inner(dspy.Module):
    def __init__(self):
        super().__init__()
        self.shape = dspy.Tool(shape)
        self.agent = dspy.ReAct("question -> answer", tools=[search])

    async def aforward(self, name: str) -> dict:
        return {}


class Counts(dspy.Module):
    """A tool that is a method, in a program that is copied for each call because it stores what it sees."""

    def __init__(self):
        super().__init__()
        self.seen = 0
        self.count = dspy.Tool(self.see)
        self.name = dspy.Predict("question -> topic")

    def see(self, word: str) -> int:
        """Count it."""
        self.seen += 1
        return self.seen

    async def aforward(self, question: str) -> dict:
        self.last = question
        await self.count.acall(word=question)
        return {"seen": self.seen, "topic": (await self.name.acall(question=question)).topic}


class Texts(TypedDict):
    texts: list[str]


class Raw(dspy.Module):
    """Asks the model without a predictor."""

    async def aforward(self, question: str) -> Texts:
        return {"texts": [(await dspy.settings.lm.acall(f"{question} {n}"))[0] for n in range(2)]}


class RaisesLater(dspy.Module):
    """Asks something else after a reply it could not use, and only then gives up."""

    def __init__(self):
        super().__init__()
        self.steps = [dspy.Predict(f"question -> {name}") for name in ("topic", "draft", "review")]

    async def aforward(self, question: str) -> Texts:
        await self.steps[0].acall(question=question)
        try:
            await self.steps[1].acall(question=question)
        except dspy.AdapterParseError as error:
            await self.steps[2].acall(question=question)
            raise error  # noqa: TRY201 - what is tested is the error of an earlier step
        return {"texts": []}


class Scored(TypedDict):
    score: int


class Noted(TypedDict):
    score: int
    note: str


class PromisesANumberEarly(dspy.Module):
    """The number is there before the last step, which does not mind that it is none."""

    def __init__(self):
        super().__init__()
        self.topic = dspy.Predict("question -> topic")
        self.score = dspy.Predict("topic -> score")
        self.note = dspy.Predict("topic -> note")

    async def aforward(self, question: str) -> Noted:
        topic = (await self.topic.acall(question=question)).topic
        score = (await self.score.acall(topic=topic)).score
        return {"score": score, "note": (await self.note.acall(topic=topic)).note}


class PromisesANumber(dspy.Module):
    """The reply can be parsed, and is no number."""

    def __init__(self):
        super().__init__()
        self.topic = dspy.Predict("question -> topic")
        self.score = dspy.Predict("topic -> score")

    async def aforward(self, question: str) -> Scored:
        topic = (await self.topic.acall(question=question)).topic
        return {"score": (await self.score.acall(topic=topic)).score}
