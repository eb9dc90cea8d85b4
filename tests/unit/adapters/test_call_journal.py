import asyncio
import threading
from dataclasses import replace
from pathlib import Path

import orjson
import pytest
from dspy import lm15
from hypothesis import given
from hypothesis import strategies as st
from lm_fault_server import FaultServer

from serve_app.adapters import call_journal
from serve_app.adapters.call_journal import CallJournal
from serve_app.adapters.call_scope import call_scope, current_journal
from serve_app.adapters.dspy_engine import AsyncEngine, LMPool
from serve_app.adapters.lm_step import dump_response, load_response, request_fingerprint
from serve_app.config import ModelConfig
from serve_app.messages import Step, StepKind

STATE = lm15.ContinuationState("anthropic", "signature", {"signature": "abc", "n": [1, 2.5, None]})
PARTS = [
    lm15.TextPart("hello \U0001f600", continuation=(STATE,)),
    lm15.ThinkingPart("", continuation=(STATE,)),
    lm15.RefusalPart("no"),
    lm15.CitationPart(url="http://x", title="t"),
    lm15.DataPart({"a": [1, True, None, 1.0]}, probabilities={"a": {"x": 1.0}}, method="provider_classification"),
    lm15.ToolCallPart(id="t1", name="find", input={"q": 1, "deep": {"list": [1.0, "x"]}}, continuation=(STATE,)),
    lm15.ImagePart(data="aGk=", media_type="image/png", detail="low"),
    lm15.AudioPart(data="aGk="),
    lm15.VideoPart(url="http://x/v.mp4"),
    lm15.DocumentPart(data="aGk="),
    lm15.BinaryPart(file_id="f1"),
]


def response(*parts, **fields):
    made = {
        "id": "r1",
        "model": "large",
        "message": lm15.Message("assistant", parts or (lm15.TextPart("hi"),), (STATE,)),
        "finish_reason": "stop",
        "usage": lm15.Usage(3, 5, cache_read_tokens=0, reasoning_tokens=2),
    }
    return lm15.Response(**made | fields)


def request(text="hi", **fields):
    return lm15.Request(**{"model": "openai/small", "messages": lm15.Message.user(text)} | fields)


# ── responses ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.type)
def test_every_part_comes_back_as_it_was(part):
    original = response(part)
    assert load_response(dump_response(original)) == original
    assert type(load_response(dump_response(original)).message.parts[0]) is type(part)


def test_the_rest_of_a_response_comes_back_as_it_was():
    top = lm15.TopLogprob("a", -0.5, bytes=(97,), token_id=3)
    original = response(
        *PARTS[:6],
        id=None,
        finish_reason="tool_call",
        usage=lm15.Usage(input_tokens=7),
        logprobs=(lm15.TokenLogprob("a", -0.5, bytes=(97,), top=(top,)), lm15.TokenLogprob("b", -1.0)),
        adaptations=(lm15.Adaptation("config.seed", "dropped", "no such setting", asked=7),),
        logprobs_complete=False,
    )
    again = load_response(dump_response(original))
    assert again == original
    assert hash(again.logprobs) == hash(original.logprobs)


def test_the_providers_raw_reply_is_left_out():
    original = response(provider_data={"raw": ["x"] * 100})
    assert load_response(dump_response(original)) == replace(original, provider_data=None)


@pytest.mark.parametrize(
    "original",
    [
        response(lm15.ImagePart(path=Path(__file__), media_type="image/png")),
        response(lm15.TextPart("\ud800")),
        response(adaptations=(lm15.Adaptation("tools", "dropped", "none", asked=object()),)),
    ],
)
def test_what_has_no_json_form_is_not_dumped(original):
    assert dump_response(original) is None


# ── requests ─────────────────────────────────────────────────────────────────────────────────────────

TOOL = lm15.FunctionTool(name="find", description="d", parameters={"type": "object", "properties": {}})


@pytest.mark.parametrize(
    "changed",
    [
        request("ho"),
        request(messages=(lm15.Message.user("hi"), lm15.Message.assistant("ho"))),
        request(messages=lm15.Message.developer("hi")),
        request(system="be brief"),
        request(tools=(TOOL,)),
        request(tools=(replace(TOOL, description="e"),)),
        *(
            request(config=lm15.Config(**setting))
            for setting in (
                {"temperature": 0.5},
                {"max_tokens": 100},
                {"seed": 1},
                {"stop": ("END",)},
                {"top_p": 0.5},
                {"response_format": {"type": "json_object"}},
                {"reasoning": lm15.Reasoning(effort="low")},
                {"extensions": {"a": 1}},
                {"extensions": {"a": "1"}},
                {"extensions": {"a": 1.0}},
                {"extensions": {"a": True}},
            )
        ),
    ],
)
def test_whatever_the_answer_depends_on_changes_the_fingerprint(changed):
    seen = [request_fingerprint(one, {}) for one in (request(), changed)]
    assert len(set(seen)) == 2


def test_all_the_changes_above_differ_from_each_other_too():
    parameters = test_whatever_the_answer_depends_on_changes_the_fingerprint.pytestmark[0].args[1]
    assert len({request_fingerprint(one, {}) for one in parameters}) == len(parameters)


def test_the_models_name_is_no_part_of_it():
    assert request_fingerprint(request(), {}) == request_fingerprint(request(model="anthropic/large"), {})


def test_the_order_of_keys_is_no_part_of_it():
    one, other = ({"a": 1, "b": 2}, {"b": 2, "a": 1})
    seen = {request_fingerprint(request(config=lm15.Config(extensions=keys)), {}) for keys in (one, other)}
    assert len(seen) == 1


def test_settings_of_the_models_own_configuration_are_no_part_of_it():
    defaults = {"temperature": 0.3, "max_tokens": 100}
    filled = request(config=lm15.Config(temperature=0.3, max_tokens=100))
    assert request_fingerprint(filled, defaults) == request_fingerprint(request(), {"temperature": None})


def test_settings_of_the_program_are():
    asked = request(config=lm15.Config(temperature=0.9, max_tokens=50))
    assert request_fingerprint(asked, {"temperature": 0.3, "max_tokens": 100}) == request_fingerprint(asked, {})
    assert request_fingerprint(asked, {}) != request_fingerprint(request(), {})


def test_a_request_with_a_local_file_has_none():
    image = lm15.ImagePart(path=Path(__file__), media_type="image/png")
    assert request_fingerprint(request(messages=lm15.Message("user", (image,))), {}) is None


# ── the engine ───────────────────────────────────────────────────────────────────────────────────────


class Upstream:
    model = "large"

    def __init__(self, *replies):
        self.replies = list(replies)
        self.requests = []

    async def complete(self, request):
        self.requests.append(request)
        reply = self.replies.pop(0)
        if isinstance(reply, Exception):
            raise reply
        return reply

    def tokens(self, usage):
        return usage.input_tokens or 0, usage.output_tokens or 0


async def ask(upstream, *requests, journal=None, remaining_s=10, max_tokens=None):
    engine = AsyncEngine(upstream)
    with call_scope(remaining_s, max_tokens, journal) as scope:
        return [await engine.complete(one) for one in requests], scope


async def test_an_answered_request_is_not_sent_again_and_costs_nothing():
    first, second = CallJournal(), Upstream(response(id="new"))
    await ask(Upstream(response()), request(), journal=first)
    journal = CallJournal(first.finished())
    replies, scope = await ask(second, request(), request("other"), journal=journal)
    assert [reply.id for reply in replies] == ["r1", "new"]
    assert len(second.requests) == scope.lm_calls == 1
    assert (scope.usage.input_tokens, journal.resumed) == (3, 1)


async def test_an_answer_that_was_cut_off_is_so_when_it_is_replayed():
    first = CallJournal()
    await ask(Upstream(response(finish_reason="length")), request(), journal=first, max_tokens=5)
    _, scope = await ask(Upstream(response()), request(), journal=CallJournal(first.finished()), max_tokens=5)
    assert scope.is_cut_off


async def test_a_failed_request_is_not_recorded():
    journal = CallJournal()
    with pytest.raises(lm15.ServerError):
        await ask(Upstream(lm15.ServerError("down", status=500)), request(), journal=journal)
    assert journal.finished() == ()


async def test_an_empty_reply_is_not_recorded():
    journal = CallJournal()
    empty = response(lm15.TextPart(""), usage=lm15.Usage())
    with pytest.raises(lm15.ProviderError):
        await ask(Upstream(empty), request(), journal=journal)
    assert journal.finished() == ()


async def test_a_request_without_a_fingerprint_is_sent_each_time():
    asked = request(messages=lm15.Message("user", (lm15.ImagePart(path=Path(__file__), media_type="image/png"),)))
    journal, upstream = CallJournal(), Upstream(response(), response())
    await ask(upstream, asked, asked, journal=journal)
    assert (len(upstream.requests), journal.finished()) == (2, ())


@pytest.mark.parametrize("reply", ["", "[]", "{}", '{"message": 3}', "null"])
async def test_a_step_that_cannot_be_read_is_asked_anew(reply):
    asked = request_fingerprint(request(), {})
    journal, upstream = CallJournal([Step(StepKind.LM, asked, 0, reply)]), Upstream(response(id="new"))
    replies, _ = await ask(upstream, request(), journal=journal)
    assert (replies[0].id, journal.resumed) == ("new", 0)
    assert load_response(journal.finished()[0].reply).id == "new"


async def test_an_answered_request_needs_no_time():
    first = CallJournal()
    await ask(Upstream(response()), request(), journal=first)
    replies, _ = await ask(Upstream(), request(), journal=CallJournal(first.finished()), remaining_s=0)
    assert replies[0].id == "r1"


@pytest.mark.parametrize("blocking", [False, True])
async def test_two_configured_models_share_what_the_program_asked(blocking, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    pool, steps = LMPool(), ()
    async with FaultServer() as server:
        for name, settings in (("large", {"temperature": 0.3, "max_tokens": 50}), ("small", {"temperature": 0.9})):
            lm = pool.lm(ModelConfig(name=name, lm=f"openai/{name}", api_base=server.url, **settings))
            with call_scope(10, None, CallJournal(steps)) as scope:
                await (asyncio.to_thread(lm, "hi") if blocking else lm.acall("hi"))
                steps = scope.journal.finished()
        await pool.aclose()
    assert [sent.json["model"] for sent in server.requests] == ["large"]
    assert len(steps) == 1


async def test_what_ends_after_the_call_is_not_recorded():
    journal = CallJournal()
    with call_scope(10, None, journal):
        place = journal.ask(StepKind.LM, "a")
    journal.record(place, "late")
    journal.failed(place, lambda: "later")
    assert journal.finished() == ()


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3)), max_size=20))
def test_a_program_that_asks_until_it_is_answered_finds_every_answer_the_next_time(questions):
    first = CallJournal()
    for number, (question, failures) in enumerate(questions):
        for _ in range(failures):
            first.failed(first.ask(StepKind.TOOL, question))
        first.record(first.ask(StepKind.TOOL, question), str(number))
    second = CallJournal(first.finished())
    replies = [second.replay(second.ask(StepKind.TOOL, question), str) for question, _ in questions]
    assert replies == [str(number) for number in range(len(questions))]


def test_a_failure_that_was_an_answer_to_the_program_keeps_its_place():
    first = CallJournal()
    first.failed(first.ask(StepKind.TOOL, "a"), lambda: "told")
    first.record(first.ask(StepKind.TOOL, "a"), "found")
    second = CallJournal(first.finished())
    assert [second.replay(second.ask(StepKind.TOOL, "a"), str) for _ in range(2)] == ["told", "found"]


def test_a_failure_beside_another_question_of_its_kind_leaves_the_others_place():
    first = CallJournal()
    failing, other = (first.ask(StepKind.TOOL, "a") for _ in range(2))
    first.failed(failing)
    first.record(other, "second")
    second = CallJournal(first.finished())
    assert [second.replay(second.ask(StepKind.TOOL, "a"), str) for _ in range(2)] == [None, "second"]


def test_a_reply_is_blamed_by_its_text():
    journal = CallJournal()
    for name in ("good", "bad", "last"):
        journal.record(journal.ask(StepKind.LM, name), dump_response(response(lm15.TextPart(name))))
    journal.blame("bad")
    assert [step.fingerprint for step in journal.finished()] == ["good"]


def test_of_the_replies_that_have_a_value_the_newest_is_blamed():
    journal = CallJournal()
    for name in ("7 of 9", "paid 7", "last"):
        journal.record(journal.ask(StepKind.LM, name), dump_response(response(lm15.TextPart(name))))
    journal.blame(None, ["7", "paid"])
    assert [step.fingerprint for step in journal.finished()] == ["7 of 9"]


def test_a_value_of_the_latest_reply_is_blamed_on_no_other():
    journal = CallJournal()
    for name in ("7 of 9", "paid 7"):
        journal.record(journal.ask(StepKind.LM, name), dump_response(response(lm15.TextPart(name))))
    journal.blame(None, ["7"])
    assert [step.fingerprint for step in journal.finished()] == ["7 of 9"]


def test_each_reply_is_read_once_however_many_values_did_not_fit(monkeypatch):
    journal = CallJournal()
    for name in ("one", "two"):
        journal.record(journal.ask(StepKind.LM, name), dump_response(response(lm15.TextPart(name))))
    read = []
    monkeypatch.setattr(call_journal, "load_response", lambda reply: read.append(reply) or load_response(reply))
    journal.blame(None, ["1", "2", "3"])
    assert len(read) == 2


def test_blame_does_not_stumble_over_what_it_cannot_read():
    journal = CallJournal([Step(StepKind.LM, "a", 0, "no json")])
    journal.blame("text")
    assert len(journal.finished()) == 1


def test_without_a_scope_there_is_no_journal():
    assert current_journal() is None
    with call_scope(1):
        assert current_journal() is None


def test_steps_are_plain_text_and_numbers():
    journal = CallJournal()
    journal.record(journal.ask(StepKind.LM, request_fingerprint(request(), {})), dump_response(response(*PARTS)))
    (step,) = journal.finished()
    assert [type(value) for value in (step.fingerprint, step.occurrence, step.reply)] == [str, int, str]
    assert orjson.loads(step.reply)["id"] == "r1"


def test_many_threads_lose_nothing():
    journal = CallJournal()

    def work():
        for _ in range(8):
            journal.record(journal.ask(StepKind.LM, "same"), "r")

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert sorted(step.occurrence for step in journal.finished()) == list(range(64))
