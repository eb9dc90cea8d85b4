import asyncio
import json
import logging
import pickle

import dspy
import program_samples
import pytest
from dspy import lm15
from program_fakes import Provider, call, chat_reply, config

from serve_app.adapters.call_scope import call_scope
from serve_app.adapters.dspy_program import load_program
from serve_app.adapters.program_answer import ratio
from serve_app.errors import (
    BadOutput,
    ConfigError,
    InvalidInputs,
    Overloaded,
    ProgramError,
    UpstreamError,
    UpstreamRefused,
)
from serve_app.messages import Level, Outcome

GOOD = chat_reply(topic="a", score=3)


def load(name="OneShot", **settings):
    return load_program(config(name if "->" in name else f"program_samples:{name}", **settings))


async def run(program, provider, inputs=None, level=Level.FULL):
    with call_scope(20.0):
        return await program.run(call({"text": "a text"} if inputs is None else inputs, level), provider.lm())


def problems(name="OneShot", base_dir=None, **settings):
    with pytest.raises(ConfigError) as caught:
        load_program(config(f"program_samples:{name}", **settings), base_dir)
    return list(caught.value.problems)


def _returns_something_else(self, word: str) -> program_samples.Counted:
    return {"other": 1}


# ── answers ──────────────────────────────────────────────────────────────────────────────────────────


async def test_a_call_is_answered_with_typed_outputs():
    answer = await run(load(), Provider(GOOD))
    assert answer.outputs == {"topic": "a", "score": 3}
    assert answer.confidence is None


async def test_a_signature_string_is_served():
    answer = await run(
        load("text -> urgent: bool, words: list[str]"), Provider(chat_reply(urgent="True", words='["a"]'))
    )
    assert answer.outputs == {"urgent": True, "words": ["a"]}


@pytest.mark.parametrize(
    ("adapter", "reply"),
    [
        ("chat", GOOD),
        ("json", json.dumps({"topic": "a", "score": 3})),
        ("xml", "<topic>a</topic><score>3</score>"),
    ],
)
async def test_each_adapter_is_the_one_configured(adapter, reply):
    assert (await run(load(adapter=adapter), Provider(reply))).outputs == {"topic": "a", "score": 3}


@pytest.mark.parametrize("adapter", ["chat", "json", "xml"])
async def test_no_adapter_asks_a_second_time(adapter):
    provider = Provider("nonsense")
    with pytest.raises(BadOutput):
        await run(load(adapter=adapter), provider)
    assert len(provider.requests) == 1


async def test_inputs_reach_the_program_as_python_values():
    inputs = {
        "word": "x", "flag": True, "count": 3, "share": 0.5, "mood": "good", "names": ["n1"], "counts": {"k": 7},
        "person": {"name": "Ann", "age": 4}, "people": [{"name": "Bob"}], "image": {"url": "https://e.com/x.png"},
        "images": [], "history": {"messages": [{"word": "earlier", "answer": "before"}]},
    }  # fmt: skip
    provider = Provider(chat_reply(answer="yes"))
    assert (await run(load("Everything"), provider, inputs)).outputs == {"answer": "yes"}
    assert "earlier" in provider.prompt
    assert "https://e.com/x.png" in provider.prompt


@pytest.mark.parametrize(
    ("name", "inputs", "outputs"),
    [
        ("ReturnsModel", {"name": "Ann"}, {"name": "Ann", "age": 3}),
        ("ReturnsTuple", {"word": "abc"}, {"left": "abc", "right": 3}),
        ("ReturnsDict", {"word": "abc"}, {"letters": 3}),
        ("ReturnsDataclass", {"number": 3}, {"half": 1.5}),
        ("ReturnsPrediction", {"claim": "c"}, {"verdict": True}),
        ("OddFields", {"schema": "s"}, {"left": "sm", "right": 1}),
    ],
)
async def test_whatever_a_program_returns_is_read(name, inputs, outputs):
    assert (await run(load(name), Provider("unused"), inputs)).outputs == outputs


async def test_a_bare_value_is_the_one_output():
    assert (await run(load("BareValue"), Provider(chat_reply(summary="short")))).outputs == {"summary": "short"}


async def test_guessed_outputs_that_are_missing_are_left_out():
    provider = Provider(chat_reply(topic="t"), chat_reply(reasoning="r", answer="1.5"))
    assert (await run(load("Guessing"), provider, {"question": 1})).outputs == {"answer": 1.5}


async def test_an_agent_answers_after_its_tool():
    provider = Provider(
        chat_reply(next_thought="look", next_tool_name="find", next_tool_args='{"word": "sun"}'),
        chat_reply(next_thought="done", next_tool_name="finish", next_tool_args="{}"),
        chat_reply(reasoning="found", answer="a star"),
    )
    assert (await run(load("Agent"), provider, {"question": "sun?"})).outputs == {"answer": "a star"}
    assert "sun means sun" in provider.prompt


async def test_a_tool_that_fails_does_not_end_the_agent():
    provider = Provider(
        chat_reply(next_thought="look", next_tool_name="find", next_tool_args='{"word": "boom"}'),
        chat_reply(next_thought="done", next_tool_name="finish", next_tool_args="{}"),
        chat_reply(reasoning="found", answer="unknown"),
    )
    assert (await run(load("Agent"), provider, {"question": "?"})).outputs == {"answer": "unknown"}


async def test_calls_at_once_do_not_mix():
    program = load("text -> summary")
    providers = [Provider(chat_reply(summary=f"s{number}")) for number in range(20)]
    answers = await asyncio.gather(
        *(run(program, provider, {"text": f"t{number}"}) for number, provider in enumerate(providers))
    )
    assert [answer.outputs["summary"] for answer in answers] == [f"s{number}" for number in range(20)]
    assert all(f"t{number}" in provider.prompt for number, provider in enumerate(providers))


async def test_a_run_has_a_context_of_its_own_and_leaves_nothing():
    provider = Provider(GOOD)
    before, traced = dspy.settings.copy(), len(dspy.settings.trace)
    lm = provider.lm()
    with call_scope(20.0):
        await load().run(call({"text": "t"}), lm)
    [seen] = provider.contexts
    assert seen["lm"] is lm
    assert seen["disable_history"] is True
    assert seen["track_usage"] is False
    assert seen["trace"] is not dspy.settings.trace
    assert dspy.settings.copy() == before
    assert len(dspy.settings.trace) == traced
    assert lm.history == []


async def test_an_lm_inside_the_program_does_not_win():
    provider = Provider(chat_reply(summary="routed"))
    assert (await run(load("WithOwnLm"), provider)).outputs == {"summary": "routed"}


async def test_values_of_another_type_are_not_logged(caplog):
    program = load("NoTypes")
    with caplog.at_level(logging.DEBUG):
        await run(program, Provider(chat_reply(topic="x")), {"number": "a private text"})
    assert not [record for record in caplog.records if "a private text" in record.getMessage()]


# ── confidence ───────────────────────────────────────────────────────────────────────────────────────


async def test_confidence_comes_from_an_output():
    program = load("text -> topic, sure: float", confidence_field="sure")
    assert (await run(program, Provider(chat_reply(topic="t", sure="0.4")))).confidence == 0.4


async def test_confidence_comes_from_an_attribute_of_the_prediction():
    program = load("Guessing", confidence_field="sure")
    provider = Provider(chat_reply(topic="t"), chat_reply(reasoning="r", answer="1.5"))
    answer = await run(program, provider, {"question": 1})
    assert answer.confidence == 0.75
    assert "sure" not in answer.outputs


async def test_confidence_is_unknown_when_the_program_does_not_say():
    provider = Provider(chat_reply(topic="t"), chat_reply(reasoning="r", answer="1.5"))
    assert (await run(load("Guessing", confidence_field="other"), provider, {"question": 1})).confidence is None


@pytest.mark.parametrize(
    ("value", "share"),
    [(0.5, 0.5), (1, 1.0), (0, 0.0), ("0.25", 0.25), (" 80% ", 0.8), (1.2, None), (-0.1, None), (85, None), (True, None),
     ("high", None), ("", None), (float("nan"), None), ("inf", None), (None, None), ([0.5], None)],
)  # fmt: skip
def test_a_confidence_is_a_share_of_one_or_unknown(value, share):
    assert ratio(value) == share


# ── levels ───────────────────────────────────────────────────────────────────────────────────────────

LEVELS = {
    "degraded": {"models": ["small"], "max_input_chars": {"text": 10}, "drop_inputs": ["hint"]},
    "minimal": {"models": ["small"], "program": "text -> topic"},
}


async def test_a_level_shapes_the_inputs():
    provider = Provider(GOOD)
    await run(load(levels=LEVELS), provider, {"text": "first second third", "hint": "a secret hint"}, Level.DEGRADED)
    assert "first" in provider.prompt
    assert "second" not in provider.prompt
    assert "a secret hint" not in provider.prompt


async def test_a_simpler_program_answers_fewer_outputs_in_the_same_types():
    program = load(levels=LEVELS)
    provider = Provider(chat_reply(topic="b"))
    answer = await run(program, provider, {"text": "t", "hint": "h"}, Level.MINIMAL)
    assert answer.outputs == {"topic": "b"}
    with pytest.raises(BadOutput):
        await run(program, Provider(chat_reply(topic="z")), {"text": "t", "hint": "h"}, Level.MINIMAL)


def test_an_output_that_the_simpler_program_of_a_level_lacks_may_be_missing():
    assert load().outputs.model_json_schema(mode="serialization")["required"] == ["topic", "score"]
    schema = load(levels=LEVELS).outputs.model_json_schema(mode="serialization")
    assert schema["required"] == ["topic"]
    assert schema["properties"]["score"]["maximum"] == 5


async def test_a_level_left_out_is_the_next_better_one():
    provider = Provider(GOOD)
    program = load(levels={"degraded": LEVELS["degraded"]})
    await run(program, provider, {"text": "first second third", "hint": "h"}, Level.MINIMAL)
    assert "second" not in provider.prompt


# ── what goes wrong ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("inputs", [{}, {"text": 3}, {"text": "\ud800"}])
async def test_inputs_that_do_not_fit_are_refused_before_the_model_is_asked(inputs):
    provider = Provider(GOOD)
    with pytest.raises(InvalidInputs):
        await run(load(), provider, inputs)
    assert provider.requests == []


async def test_a_models_failure_is_raised_as_its_outcome():
    with pytest.raises(UpstreamError) as caught:
        await run(load(), Provider(lm15.RateLimitError("x", status=429, retry_after=7)))
    assert caught.value.outcome is Outcome.RATE_LIMITED
    assert caught.value.retry_after_s == 7


async def test_a_refusal_is_raised_with_the_providers_reason():
    error = lm15.InvalidRequestError("violence is not allowed", status=400, provider_code="content_filter")
    with pytest.raises(UpstreamRefused, match="violence is not allowed") as caught:
        await run(load(), Provider(error))
    assert caught.value.outcome is Outcome.CONTENT_POLICY


@pytest.mark.parametrize("step", [0, 1, 2])
async def test_a_models_failure_inside_an_agent_is_raised(step):
    steps = [
        chat_reply(next_thought="look", next_tool_name="find", next_tool_args='{"word": "sun"}'),
        chat_reply(next_thought="done", next_tool_name="finish", next_tool_args="{}"),
        chat_reply(reasoning="found", answer="a star"),
    ]
    steps[step:] = [lm15.ServerError("down", status=503)]
    with pytest.raises(UpstreamError) as caught:
        await run(load("Agent"), Provider(*steps), {"question": "?"})
    assert caught.value.outcome is Outcome.SERVER_ERROR


@pytest.mark.parametrize(
    "reply",
    ["nonsense", "", chat_reply(topic="a"), chat_reply(topic="z", score=1), chat_reply(topic="a", score="many")],
)
async def test_a_reply_that_does_not_parse_is_a_bad_output(reply):
    with pytest.raises(BadOutput) as caught:
        await run(load(), Provider(reply))
    assert "many" not in caught.value.detail


async def test_an_answer_beyond_its_constraint_is_a_bad_output():
    with pytest.raises(BadOutput, match="score: Input should be less than or equal to 5"):
        await run(load(), Provider(chat_reply(topic="a", score=9)))


async def test_an_answer_that_json_cannot_carry_is_a_bad_output():
    with pytest.raises(BadOutput):
        await run(load("text -> share: float"), Provider(chat_reply(share="nan")))


async def test_the_programs_own_error_is_logged_and_not_told(caplog):
    with caplog.at_level(logging.ERROR, "switchyard.program"), pytest.raises(ProgramError) as caught:
        await run(load("Raises"), Provider("unused"))
    assert "1234" not in caught.value.detail
    assert "1234" in caplog.text
    [record] = caplog.records
    assert (record.getMessage(), record.program, record.request_id) == ("program.raised", "sample", "r1")


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()])
async def test_a_program_that_would_end_its_process_ends_its_call(error, monkeypatch):
    monkeypatch.setattr(program_samples.Raises, "make", staticmethod(lambda: error))
    with pytest.raises(ProgramError):
        await run(load("Raises"), Provider("unused"))


@pytest.mark.parametrize("how", ["from", "context", "group"])
async def test_a_models_failure_that_the_program_wraps_is_the_models(how, monkeypatch):
    monkeypatch.setattr(program_samples.Wraps, "how", how)
    with pytest.raises(UpstreamError) as caught:
        await run(load("Wraps"), Provider(lm15.ServerError("x", status=500)))
    assert caught.value.outcome is Outcome.SERVER_ERROR


async def test_a_models_failure_that_the_program_hides_is_the_programs(monkeypatch):
    monkeypatch.setattr(program_samples.Wraps, "how", "none")
    with pytest.raises(ProgramError):
        await run(load("Wraps"), Provider(lm15.ServerError("x", status=500)))


async def test_a_timeout_of_the_programs_own_is_not_the_models():
    with pytest.raises(ProgramError):
        await run(load("TimesOut"), Provider("unused"))


async def test_a_cancellation_of_the_programs_own_is_not_the_callers():
    with pytest.raises(ProgramError):
        await run(load("CancelsItself"), Provider("unused"))


async def test_threads_that_are_all_held_are_logged_once_and_not_once_a_call(caplog):
    program_samples.Waits.release.clear()
    program = load_program(config("program_samples:Waits"), max_calls=1)
    for _ in range(2):
        with pytest.raises(UpstreamError), call_scope(0.05):
            await program.run(call({"text": "t"}), Provider("unused").lm())
    for _ in range(3):
        with pytest.raises(Overloaded):
            await run(program, Provider("unused"), {"text": "t"})
    program_samples.Waits.release.set()
    [record] = caplog.records
    assert (record.getMessage(), record.program, record.threads) == ("program.threads_held", "sample", 2)
    async with asyncio.timeout(10):
        while program.stuck_threads:
            await asyncio.sleep(0)
    assert (await run(program, Provider("unused"), {"text": "t"})).outputs == {"letters": 1}


async def test_a_program_that_returns_none_of_its_outputs_is_at_fault(monkeypatch, caplog):
    monkeypatch.setattr(program_samples.ReturnsDict, "forward", _returns_something_else)
    with caplog.at_level(logging.ERROR, "switchyard.program"), pytest.raises(ProgramError):
        await run(load("ReturnsDict"), Provider("unused"), {"word": "w"})
    assert "returned dict with none of the outputs letters" in caplog.text


async def test_errors_pickle_with_all_they_say():
    with pytest.raises(BadOutput) as caught:
        await run(load(), Provider("nonsense"))
    assert vars(pickle.loads(pickle.dumps(caught.value))) == vars(caught.value)


# ── deadlines ────────────────────────────────────────────────────────────────────────────────────────


async def test_nothing_runs_when_nothing_is_left_of_the_deadline():
    provider = Provider(GOOD)
    with call_scope(0.0), pytest.raises(UpstreamError) as caught:
        await load().run(call({"text": "t"}), provider.lm())
    assert caught.value.outcome is Outcome.REJECTED
    assert provider.requests == []


async def test_a_share_of_the_deadline_that_is_used_up_is_a_timeout():
    with call_scope(0.02), pytest.raises(UpstreamError) as caught:
        await load("WaitsAsync").run(call({"text": "t"}), Provider("unused").lm())
    assert caught.value.outcome is Outcome.TIMEOUT


async def test_a_caller_who_goes_away_cancels_the_program():
    program_samples.WaitsAsync.started = started = asyncio.Event()
    program_samples.WaitsAsync.cancelled = False
    with call_scope(20.0):
        running = asyncio.create_task(load("WaitsAsync").run(call({"text": "t"}), Provider("unused").lm()))
        async with asyncio.timeout(10):
            await started.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    assert program_samples.WaitsAsync.cancelled


# ── loading ──────────────────────────────────────────────────────────────────────────────────────────


def test_what_a_program_is_can_be_read():
    program = load(description="")
    assert (program.name, program.description) == ("sample", "Classify a text.")
    assert list(program.inputs.model_fields) == ["text", "hint"]
    assert list(program.outputs.model_fields) == ["topic", "score"]
    assert load(description="mine").description == "mine"
    assert load("Classify").description == "Say what a text is about."


def test_a_relative_state_starts_at_the_base_directory(tmp_path):
    module = program_samples.OneShot()
    module.predict.demos = [{"text": "t", "topic": "a", "score": 1}]
    module.save(tmp_path / "s.json")
    assert load_program(config("program_samples:OneShot", state="s.json"), tmp_path).version != load().version


async def test_a_state_is_used(tmp_path):
    module = program_samples.OneShot()
    module.predict.signature = module.predict.signature.with_instructions("Answer like a pirate.")
    module.save(tmp_path / "s.json")
    provider = Provider(GOOD)
    await run(load_program(config("program_samples:OneShot", state="s.json"), tmp_path), provider)
    assert "Answer like a pirate." in provider.prompt


def test_every_problem_is_told_with_its_key(tmp_path):
    told = problems(
        state="none.json",
        base_dir=tmp_path,
        levels={
            "degraded": {"models": ["m"], "drop_inputs": ["hnt"]},
            "minimal": {"models": ["m"], "program": "x -> y"},
        },
    )
    assert told == [
        f"programs.sample.state: there is no file {tmp_path / 'none.json'}",
        "programs.sample.levels.degraded.drop_inputs: there is no input 'hnt'; did you mean 'hint'?",
        "programs.sample.levels.minimal.program: 'x -> y' needs input 'x', which 'sample' has not; there is 'hint', 'text'",
        "programs.sample.levels.minimal.program: 'x -> y' gives output 'y', which 'sample' has not; there is 'score', 'topic'",
    ]


def test_a_level_that_two_levels_share_is_told_once():
    assert len(problems(levels={"degraded": {"models": ["m"], "drop_inputs": ["nope"]}})) == 1


def test_a_program_that_does_not_load_is_told_with_its_key():
    [told] = problems("OneShoot")
    assert told == "programs.sample.program: 'program_samples' has no 'OneShoot'; did you mean 'OneShot'?"


def test_a_type_without_json_form_is_told_with_its_key():
    assert problems("NeedsTool")[0].startswith(
        "programs.sample.program: input 'tool' has type Tool, which has no JSON form"
    )


def test_a_confidence_field_that_a_predictor_never_gives_is_told():
    assert problems("Classify", confidence_field="scores") == [
        "programs.sample.confidence_field: there is no output 'scores'; did you mean 'score'?"
    ]


def rules(*asked):
    return {"rules": [{"field": field, "equals": equals, "ttl_s": 1} for field, equals in asked]}


def test_a_cache_rule_names_an_output_and_something_it_may_say():
    load("Classify", cache=rules(("topic", "a"), ("score", 5), ("score", 1.0)))
    assert problems(
        "Classify", cache=rules(("topic", "a"), ("topics", "a"), ("topic", "c"), ("score", 6), ("score", True))
    ) == [
        "programs.sample.cache.rules.1.field: there is no output 'topics'; did you mean 'topic'?",
        "programs.sample.cache.rules.2.equals: output 'topic' never says \"c\"",
        "programs.sample.cache.rules.3.equals: output 'score' never says 6",
        "programs.sample.cache.rules.4.equals: output 'score' never says true",
    ]
