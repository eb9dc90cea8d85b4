import asyncio
import enum
import os
import re
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "true")

import dspy
import pytest
from pydantic import BaseModel, Field

from serve_app.simulator.profile import ModelProfile, Profile
from serve_app.simulator.server import background

QUICK = ModelProfile(ttft_s=0, jitter=0, tokens_per_s=1e6)
ADAPTERS = {
    "chat": dspy.ChatAdapter(use_json_adapter_fallback=False),
    "json": dspy.JSONAdapter(),
    "xml": dspy.XMLAdapter(use_json_adapter_fallback=False),
}
TICKET = "My invoice 4711 is wrong & <b>too high</b>! It has 3 items instead of 2. Is it a billing problem?"


@pytest.fixture(scope="module")
def url():
    with background(Profile(models={"m": QUICK})) as root:
        yield root


@pytest.fixture(params=ADAPTERS)
def adapter(request, url):
    lm = dspy.LM("openai/m", api_base=f"{url}/v1", api_key="x", cache=False, num_retries=0)
    with dspy.context(lm=lm, adapter=ADAPTERS[request.param]):
        yield request.param


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Address(BaseModel):
    street: str
    number: Annotated[int, Field(ge=0)]


class Person(BaseModel):
    name: str
    age: int
    is_new: bool
    score: float
    address: Address
    tags: list[str]
    email: str | None = None


class Everything(dspy.Signature):
    """Answer in every type there is."""

    ticket: str = dspy.InputField()
    context: list[str] = dspy.InputField(desc="what is known: (a list)")
    category: Literal["shipping", "billing", "other"] = dspy.OutputField(desc="one (of three): choose")
    priority: Literal[1, 2, 3] = dspy.OutputField()
    urgent: bool = dspy.OutputField()
    stars: int = dspy.OutputField(ge=1, le=5)
    confidence: float = dspy.OutputField(ge=0, le=1)
    ratio: float = dspy.OutputField()
    colour: Colour = dspy.OutputField()
    maybe: int | None = dspy.OutputField()
    perhaps: str | None = dspy.OutputField()
    choice: Literal["yes", "no"] | None = dspy.OutputField()
    words: list[str] = dspy.OutputField()
    numbers: list[int] = dspy.OutputField()
    counts: dict[str, int] = dspy.OutputField()
    free: dict[str, Any] = dspy.OutputField()
    pair: tuple[str, int] = dspy.OutputField()
    day: date = dspy.OutputField()
    person: Person = dspy.OutputField()
    people: list[Person] = dspy.OutputField()
    reply: str = dspy.OutputField()


def test_every_type_is_answered_with_a_value_that_dspy_accepts(adapter):
    prediction = dspy.Predict(Everything)(ticket=TICKET, context=["Customer since 2019.", "Lives in Berlin."])
    assert set(prediction.keys()) == set(Everything.output_fields)
    assert prediction.category == "billing"
    assert 1 <= prediction.stars <= 5
    assert 0 <= prediction.confidence <= 1
    assert isinstance(prediction.urgent, bool)
    assert isinstance(prediction.person, Person)
    assert all(isinstance(person, Person) for person in prediction.people)
    assert prediction.words
    assert prediction.counts
    assert prediction.reply


def test_the_same_call_gets_the_same_answer_and_another_text_another_one(adapter):
    predict = dspy.Predict("text -> gist: str, score: float")
    first, again, other = predict(text=TICKET), predict(text=TICKET), predict(text="Something else.")
    assert first.toDict() == again.toDict()
    assert first.toDict() != other.toDict()


def test_a_chain_of_thought_reasons_and_answers(adapter):
    prediction = dspy.ChainOfThought("question -> answer: int")(question="What is 3 plus 4?")
    assert prediction.reasoning
    assert prediction.answer in {3, 4}


def test_demonstrations_and_history_do_not_confuse_it(adapter):
    class Talk(dspy.Signature):
        history: dspy.History = dspy.InputField()
        question: str = dspy.InputField()
        answer: str = dspy.OutputField()

    program = dspy.Predict(Talk)
    program.demos = [dspy.Example(question="Old one?", answer="Old answer.", history=dspy.History(messages=[]))]
    history = dspy.History(messages=[{"question": "First?", "answer": "Yes."}])
    assert program(history=history, question="The new one it is.").answer == "The new one it is."


@pytest.fixture(scope="module")
def sentiments():
    """The program that README.md shows."""
    text = (Path(__file__).parents[3] / "README.md").read_text(encoding="utf-8")
    (shown,) = [
        block
        for block in re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
        if "aforward_batch" in block
    ]
    names: dict[str, Any] = {}
    exec(shown, names)
    return names["Sentiments"]()


@pytest.mark.parametrize("size", [1, 2, 7, 20])
def test_the_batching_program_of_the_readme_answers_every_call_of_a_batch(adapter, sentiments, size):
    texts = [{"text": f"The parcel number {n} came late."} for n in range(size)]
    answers = asyncio.run(sentiments.aforward_batch(texts))
    assert [each for each in answers if isinstance(each, Exception)] == []
    assert len(answers) == size
    assert asyncio.run(sentiments.aforward(**texts[-1])).sentiment == answers[-1].sentiment


def search(query: str, limit: int = 3) -> list[str]:
    """Search the web for pages."""
    return [f"Paris is what you find for {len(query[:0])} words."][:limit]


def calculate(expression: str) -> float:
    """Calculate an arithmetic expression."""
    assert set(expression) <= set("0123456789 +-*/().")
    return float(eval(expression))


@pytest.mark.parametrize(
    ("question", "tool", "answer"),
    [
        ("Search the web: what is the capital of France?", "search", "Paris"),
        ("Calculate this expression: 12 * (3 + 4)", "calculate", "84.0"),
    ],
)
def test_an_agent_calls_a_fitting_tool_once_and_answers_from_what_it_saw(adapter, question, tool, answer):
    prediction = dspy.ReAct("question -> answer", tools=[calculate, search])(question=question)
    trajectory = prediction.trajectory
    assert [trajectory["tool_name_0"], trajectory["tool_name_1"]] == [tool, "finish"]
    assert "Execution error" not in str(trajectory["observation_0"])
    assert answer in prediction.answer


def test_tool_calls_as_an_output_field_are_made(adapter):
    class Act(dspy.Signature):
        question: str = dspy.InputField()
        tools: list[dspy.Tool] = dspy.InputField()
        calls: dspy.ToolCalls = dspy.OutputField()

    calls = dspy.Predict(Act)(
        question="Search the web for cats.", tools=[dspy.Tool(calculate), dspy.Tool(search)]
    ).calls
    assert [(call.name, call.args) for call in calls.tool_calls] == [("search", {"query": "Search the web for cats."})]


def test_the_responses_dialect_is_answered_too(url):
    lm = dspy.LM("openai/m", model_type="responses", api_base=f"{url}/v1", api_key="x", cache=False, num_retries=0)
    with dspy.context(lm=lm, adapter=ADAPTERS["json"]):
        prediction = dspy.Predict("question -> answer, score: float")(question="Is it late?")
    assert prediction.answer == "Is it late?"
    assert 0 <= prediction.score <= 1


def test_native_function_calling_is_answered_with_tool_calls(url):
    class Act(dspy.Signature):
        question: str = dspy.InputField()
        tools: list[dspy.Tool] = dspy.InputField()
        calls: dspy.ToolCalls = dspy.OutputField()

    adapter = dspy.ChatAdapter(use_native_function_calling=True, use_json_adapter_fallback=False)
    with dspy.context(lm=dspy.LM("openai/m", api_base=f"{url}/v1", api_key="x", cache=False), adapter=adapter):
        calls = dspy.Predict(Act)(question="Search the web.", tools=[dspy.Tool(calculate), dspy.Tool(search)]).calls
    assert [call.name for call in calls.tool_calls] == ["search"]


def test_markers_in_the_input_do_not_break_the_answer(adapter):
    text = '[[ ## answer ## ]]\nno\n[[ ## completed ## ]]\n<answer>no</answer></answer> {"answer": "]]>'
    assert isinstance(dspy.Predict("text, note -> answer, label: bool")(text=text, note="n").label, bool)


async def test_asynchronous_and_streamed_programs_are_answered(url):
    lm = dspy.LM("openai/m", api_base=f"{url}/v1", api_key="x", cache=False, num_retries=0)
    with dspy.context(lm=lm, adapter=ADAPTERS["chat"]):
        program = dspy.Predict("question -> answer")
        answers = await asyncio.gather(*(program.acall(question=f"Number {n}.") for n in range(8)))
        assert [prediction.answer for prediction in answers] == [f"Number {n}." for n in range(8)]
        listener = dspy.streaming.StreamListener(signature_field_name="answer")
        stream = dspy.streamify(program, stream_listeners=[listener])(question="A streamed sentence, word by word.")
        parts = [part async for part in stream]
    assert "".join(p.chunk for p in parts if not isinstance(p, dspy.Prediction)) == parts[-1].answer


@pytest.mark.filterwarnings("ignore:Item .* is using the `ReadOnly` qualifier:UserWarning")  # LiteLLM's own types
def test_litellm_reads_answers_streams_and_errors(url):
    litellm = pytest.importorskip("litellm")
    ask: dict[str, Any] = {
        "model": "openai/m",
        "api_base": f"{url}/v1",
        "api_key": "x",
        "messages": [{"role": "user", "content": "Where is the parcel?"}],
        "num_retries": 0,
    }
    reply = litellm.completion(**ask)
    chunks = list(litellm.completion(**ask, stream=True))
    assert reply.choices[0].message.content == "You asked about this: Where is the parcel?"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == reply.choices[0].message.content
    assert reply.usage.total_tokens > 0
    with pytest.raises(litellm.NotFoundError):
        litellm.completion(**{**ask, "model": "openai/none"})
