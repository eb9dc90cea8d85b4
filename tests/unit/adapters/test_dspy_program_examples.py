import json
import runpy
import sys
import types
from pathlib import Path

import dspy
import pytest
from program_fakes import Provider, call, chat_reply, config

from serve_app.adapters.call_scope import call_scope
from serve_app.adapters.dspy_program import load_program
from serve_app.errors import BadOutput, Overloaded
from serve_app.messages import Level

ROOT = Path(__file__).parents[3]
TRIAGED = {"category": "billing", "priority": 4, "summary": "Charged twice.", "confidence": 0.9}


@pytest.fixture(autouse=True)
def examples_on_the_path(monkeypatch):
    monkeypatch.syspath_prepend(ROOT)


def load(program, **settings):
    return load_program(config(program, **settings))


async def run(program, provider, inputs, level=Level.FULL):
    with call_scope(20.0):
        return await program.run(call(inputs, level), provider.lm())


async def test_triage_answers_with_a_confidence():
    program = load("examples.triage:Triage", confidence_field="confidence")
    answer = await run(program, Provider(chat_reply(**TRIAGED)), {"ticket": "I was charged twice."})
    assert answer.outputs == TRIAGED
    assert answer.confidence == 0.9


async def test_triage_declares_its_types():
    program = load("examples.triage:Triage")
    assert program.inputs.model_json_schema()["required"] == ["ticket"]
    assert program.outputs.model_json_schema()["properties"]["priority"]["maximum"] == 5
    assert program.description == "Sort a support ticket into a category with a priority and a one-sentence summary."
    with pytest.raises(BadOutput):
        await run(program, Provider(chat_reply(**{**TRIAGED, "priority": 6})), {"ticket": "t"})


async def test_triage_may_become_a_signature_that_still_knows_the_categories():
    minimal = {"models": ["small"], "max_tokens": 64, "drop_inputs": ["context"], "program": "ticket -> category"}
    program = load("examples.triage:Triage", levels={"minimal": minimal})
    provider = Provider(chat_reply(category="bug"))
    answer = await run(program, provider, {"ticket": "It crashes.", "context": "long story"}, Level.MINIMAL)
    assert answer.outputs == {"category": "bug"}
    assert "feature_request" in provider.prompt
    assert "long story" not in provider.prompt


def test_triage_runs_in_a_plain_script_too(monkeypatch):
    from examples.triage import Triage

    with dspy.context(lm=Provider(chat_reply(**TRIAGED)).lm(), trace=[]):
        assert Triage()(ticket="t").category == "billing"


async def test_research_looks_up_what_the_first_predictor_chose():
    provider = Provider(
        chat_reply(chosen=json.dumps(["tide", "Unicorn", "monsoon"])),
        chat_reply(reasoning="The notes say so.", answer="Two a day."),
    )
    answer = await run(load("examples.research:Research"), provider, {"question": "How many tides?"})
    assert answer.outputs == {"answer": "Two a day.", "sources": ["tide", "monsoon"]}
    assert "pull of the Moon" in provider.prompts[1]
    assert "coral reef" in provider.prompts[0]


async def test_a_math_problem_gives_free_text():
    answer = await run(
        load("examples.math_word_problem:MathWordProblem"),
        Provider(chat_reply(answer="2 + 3 = 5\n5")),
        {"question": "2+3?"},
    )
    assert answer.outputs == {"answer": "2 + 3 = 5\n5"}


async def test_the_sync_example_is_served_from_a_thread():
    program = load("examples.summarize_sync:Summarize")
    answer = await run(program, Provider(chat_reply(summary="short text")), {"text": "a much longer text"})
    assert answer.outputs == {"summary": "short text", "words_saved": 2}
    assert program.stuck_threads == 0
    program.close()


async def test_a_sentiment_needs_no_file():
    program = load("text -> sentiment: Literal['positive', 'neutral', 'negative']")
    assert (await run(program, Provider(chat_reply(sentiment="neutral")), {"text": "Hm."})).outputs == {
        "sentiment": "neutral"
    }


class Client:
    """What ``serve_app.connect`` promises."""

    def __init__(self, fails_on=""):
        self.fails_on = fails_on
        self.asked = []

    def predict(self, program, **inputs):
        self.asked.append((program, inputs))
        prediction = dspy.Prediction(**TRIAGED)
        prediction.meta = {"model": "small"}
        return prediction

    async def apredict(self, program, **inputs):
        if self.fails_on and self.fails_on in inputs["ticket"]:
            raise Overloaded("busy", 1.0)
        return self.predict(program, **inputs)


def connect_to(client, monkeypatch):
    monkeypatch.setitem(
        sys.modules, "serve_app", types.SimpleNamespace(connect=lambda: client, errors=sys.modules["serve_app.errors"])
    )


def test_the_job_triages_every_ticket(monkeypatch, capsys):
    client = Client()
    connect_to(client, monkeypatch)
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "examples/job.py"), run_name="__main__")
    assert ended.value.code == 0
    assert "8 of 8 triaged: {'billing': 8}" in capsys.readouterr().out
    assert len({inputs["ticket"] for _, inputs in client.asked}) == 8


def test_the_job_fails_when_a_ticket_does(monkeypatch, capsys):
    connect_to(Client(fails_on="Firefox"), monkeypatch)
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "examples/job.py"), run_name="__main__")
    assert ended.value.code == 1
    assert "failed    shed: The export button" in capsys.readouterr().out


def test_the_call_script_asks_once(monkeypatch, capsys):
    client = Client()
    connect_to(client, monkeypatch)
    monkeypatch.setattr(sys, "argv", ["call.py", "My", "invoice"])
    runpy.run_path(str(ROOT / "examples/call.py"), run_name="__main__")
    assert client.asked == [("triage", {"ticket": "My invoice"})]
    assert "billing, priority 4" in capsys.readouterr().out
