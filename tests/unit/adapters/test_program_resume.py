import asyncio

import pytest
from dspy import lm15
from program_fakes import call, chat_reply, config
from resume_samples import DOWN, RUNS, Model, attempt

from serve_app.adapters.dspy_program import load_program
from serve_app.errors import BadOutput, UpstreamError
from serve_app.messages import Outcome, StepKind, Usage


@pytest.fixture(autouse=True)
def _no_runs():
    RUNS.clear()


def load(name, **settings):
    return load_program(config(f"resume_samples:{name}", **settings))


QUESTION = call({"question": "why?"})


def kinds(steps):
    return [step.kind for step in steps].count(StepKind.LM), [step.kind for step in steps].count(StepKind.TOOL)


# ── five steps, one tool ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["FiveSteps", "FiveStepsSync"])
async def test_three_steps_are_resumed_none_is_asked_again_and_the_tool_runs_once(name):
    program = load(name)
    large, small = Model("large", fails={4: DOWN}), Model("small")
    first = await attempt(program, QUESTION, large)
    assert first.error.outcome is Outcome.SERVER_ERROR
    assert (kinds(first.steps), first.resumed, first.lm_calls) == ((3, 1), 0, 4)
    second = await attempt(program, QUESTION, small, first.steps)
    assert second.error is None
    assert second.answer.outputs == {"final": "final by small", "note": "an article about topic by large"}
    assert (second.resumed, second.lm_calls) == (3, 2)
    assert small.fields == ["better", "final"]
    assert RUNS == [("look_up", "topic by large")]


async def test_steps_of_earlier_attempts_cost_the_later_model_nothing():
    program = load("FiveSteps")
    first = await attempt(program, QUESTION, Model("large", fails={4: DOWN}))
    second = await attempt(program, QUESTION, Model("small"), first.steps)
    assert (first.usage, second.usage) == (Usage(30, 15), Usage(20, 10))


async def test_a_third_model_goes_on_from_both_before_it():
    program = load("FiveSteps")
    first = await attempt(program, QUESTION, Model("large", fails={3: DOWN}))
    second = await attempt(program, QUESTION, Model("medium", fails={2: DOWN}), first.steps)
    small = Model("small")
    third = await attempt(program, QUESTION, small, second.steps)
    assert (kinds(first.steps), kinds(second.steps)) == ((2, 1), (3, 1))
    assert (third.resumed, small.fields) == (3, ["better", "final"])
    assert len(RUNS) == 1


async def test_what_an_attempt_never_came_to_is_not_lost():
    program = load("FiveSteps")
    first = await attempt(program, QUESTION, Model("large", fails={4: DOWN}))
    late = await attempt(program, call({"question": "why?"}, remaining_s=0.0), Model("medium"), first.steps)
    assert late.error.outcome is Outcome.REJECTED
    assert late.steps == first.steps


async def test_another_question_finds_nothing():
    program = load("FiveSteps")
    first = await attempt(program, QUESTION, Model("large", fails={4: DOWN}))
    small = Model("small")
    second = await attempt(program, call({"question": "how?"}), small, first.steps)
    assert (second.resumed, len(small.requests)) == (0, 5)


async def test_without_a_journal_nothing_is_recorded_and_all_starts_over():
    program = load("FiveSteps", resume=False)
    first = await attempt(program, QUESTION, Model("large", fails={4: DOWN}), is_journaled=False)
    small = Model("small")
    second = await attempt(program, QUESTION, small, first.steps, is_journaled=False)
    assert (first.steps, second.resumed, len(small.requests), len(RUNS)) == ((), 0, 5, 2)
    assert not hasattr(load("FiveSteps", resume=False)._shapes["full"].variant.module.look_up.func, "_turn")


async def test_models_with_settings_of_their_own_still_share_their_steps():
    program = load("FiveSteps")
    first = await attempt(program, QUESTION, Model("large", fails={4: DOWN}, temperature=0.3, max_tokens=100))
    second = await attempt(program, QUESTION, Model("small", temperature=0.9), first.steps)
    assert second.resumed == 3


async def test_steps_asked_at_once_are_each_given_their_own_answer():
    program = load("Abreast")
    large = Model("large", fails={7: DOWN})
    ideas = iter("xyz")
    large.reply = lambda prompt, reply=large.reply: (
        chat_reply(idea=next(ideas)) if "`[[ ## idea ## ]]`" in prompt else reply(prompt)
    )
    first = await attempt(program, QUESTION, large)
    assert kinds(first.steps) == (6, 0)
    small = Model("small")
    second = await attempt(program, QUESTION, small, first.steps)
    assert (second.resumed, small.fields) == (6, ["merged"])


async def test_a_step_that_failed_beside_others_is_the_only_one_asked_again():
    program = load("Abreast")
    first = await attempt(program, QUESTION, Model("large", fails={3: DOWN}))
    small = Model("small")
    second = await attempt(program, QUESTION, small, first.steps)
    assert second.error is None
    assert small.fields.count("idea") == 1


# ── an answer that cannot be used ────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["FiveSteps", "FiveStepsSync"])
async def test_an_unusable_answer_is_not_given_to_the_next_model(name):
    program = load(name)
    first = await attempt(program, QUESTION, Model("large", answers={"review": "no form at all"}))
    assert isinstance(first.error, BadOutput)
    assert kinds(first.steps) == (2, 1)
    small = Model("small")
    second = await attempt(program, QUESTION, small, first.steps)
    assert second.error is None
    assert (second.resumed, small.fields) == (2, ["review", "better", "final"])


async def test_an_answer_that_parses_and_does_not_fit_the_outputs_is_asked_again():
    program = load("PromisesANumber")
    first = await attempt(program, QUESTION, Model("large"))
    assert isinstance(first.error, BadOutput)
    small = Model("small", answers={"score": chat_reply(score=3)})
    second = await attempt(program, QUESTION, small, first.steps)
    assert (second.answer.outputs, second.resumed, small.fields) == ({"score": 3}, 1, ["score"])


async def test_of_several_answers_the_one_with_the_value_that_does_not_fit_is_asked_again():
    program = load("PromisesANumberEarly")
    first = await attempt(program, QUESTION, Model("large"))
    assert isinstance(first.error, BadOutput)
    small = Model("small", answers={"score": chat_reply(score=3)})
    second = await attempt(program, QUESTION, small, first.steps)
    assert second.answer.outputs == {"score": 3, "note": "note by small"}
    assert (second.resumed, small.fields) == (1, ["score", "note"])


async def test_the_only_answer_of_a_program_is_asked_again():
    program = load_program(config("text -> score: int"))
    asked = call({"text": "t"})
    model = Model("large", answers={"score": "[[ ## score ## ]]\nmany\n\n[[ ## completed ## ]]"})
    first = await attempt(program, asked, model)
    assert isinstance(first.error, BadOutput)
    assert first.steps == ()


async def test_an_unusable_answer_goes_even_if_others_came_after_it():
    program = load("RaisesLater")
    first = await attempt(program, QUESTION, Model("large", answers={"draft": "no form"}))
    assert isinstance(first.error, BadOutput)
    small = Model("small")
    second = await attempt(program, QUESTION, small, first.steps)
    assert (second.error, second.resumed, small.fields) == (None, 1, ["draft"])


async def test_of_several_answers_at_once_the_unusable_one_goes():
    program = load("Abreast")
    large = Model("large")
    reply = large.reply
    large.reply = lambda prompt: "no form" if "why?!" in prompt and "idea ##" in prompt else reply(prompt)
    first = await attempt(program, QUESTION, large)
    assert isinstance(first.error, BadOutput)
    assert not [step for step in first.steps if "no form" in step.reply]


# ── ReAct ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["Agent", "FailingAgent", "FailingAsyncAgent", "FailingSyncAgent"])
async def test_react_goes_on_where_it_was_and_no_tool_runs_twice(name):
    program = load(name)
    first = await attempt(program, QUESTION, Model("large", fails={4: DOWN}))
    assert isinstance(first.error, UpstreamError)
    assert [word for _, word in RUNS] == ["w0", "w1", "w2"]
    small = Model("small")
    second = await attempt(program, QUESTION, small, first.steps)
    assert second.answer.outputs["answer"] == "answer by small"
    assert (second.resumed, small.fields) == (3, ["next_thought", "reasoning"])
    assert len(RUNS) == 3


async def test_react_tells_the_model_of_a_tool_error_in_the_same_words():
    program = load("FailingAgent")
    first = await attempt(program, QUESTION, Model("large", fails={4: DOWN}))
    small = Model("small")
    await attempt(program, QUESTION, small, first.steps)
    assert "LookupError: no w1, run 2" in small.requests[0].messages[-1].text


# ── tools ────────────────────────────────────────────────────────────────────────────────────────────


async def test_an_error_that_the_program_handles_itself_is_no_answer_and_the_tool_runs_again():
    program = load("CatchesToolErrors")
    first = await attempt(program, QUESTION, Model("large", fails={1: DOWN}))
    assert first.steps == ()
    second = await attempt(program, QUESTION, Model("small"), first.steps)
    assert second.answer.outputs["note"] == "nothing"
    assert len(RUNS) == 2


async def test_what_worked_when_the_program_tried_again_is_not_done_once_more():
    program = load("TriesAgain")
    first = await attempt(program, QUESTION, Model("large", fails={1: DOWN, 3: DOWN}))
    assert (first.error.outcome, kinds(first.steps)) == (Outcome.SERVER_ERROR, (1, 1))
    small = Model("small")
    second = await attempt(program, QUESTION, small, first.steps)
    assert second.answer.outputs == {"final": "final by small", "note": "paid topic by large"}
    assert (second.resumed, small.fields) == (1, ["final"])
    assert RUNS == [("pay", "topic by large")] * 2, "the one that failed, and the one that paid"


async def test_a_tool_bound_to_a_program_that_is_copied_counts_in_the_copy():
    program = load("Counts")
    module = program._shapes["full"].variant.module
    results = [await attempt(program, QUESTION, Model("large"), is_journaled=False) for _ in range(2)]
    assert [result.error for result in results] == [None, None]
    assert module.seen == 0


async def test_calls_at_once_share_no_journal():
    program = load("FiveSteps")
    model = Model("large")
    runs = await asyncio.gather(*(attempt(program, QUESTION, model) for _ in range(5)))
    assert {run.resumed for run in runs} == {0}
    assert len(model.requests) == 25


async def test_a_programs_own_call_of_the_lm_is_resumed_too():
    large = Model("large", fails={2: lm15.TimeoutError("late")})
    large.reply = lambda prompt: "by large"
    small = Model("small")
    small.reply = lambda prompt: "by small"
    program = load("Raw")
    first = await attempt(program, QUESTION, large)
    second = await attempt(program, QUESTION, small, first.steps)
    assert second.answer.outputs == {"texts": ["by large", "by small"]}
    assert second.resumed == 1
