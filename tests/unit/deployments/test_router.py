"""Walking a route: who is asked next, who is left alone, and what a caller is told at the end."""

import asyncio
from dataclasses import replace

import pytest
from deployment_fakes import FakeStage, app_config, call, failed, link, ok, run_all, settle

from serve_app.config import LevelConfig, Levels, Replicas
from serve_app.core.clock import ManualClock
from serve_app.core.deadline import passed_on_s
from serve_app.core.offered_calls import LEAST_S
from serve_app.core.recent_usage import HALF_LIFE_S
from serve_app.deployments.attempt_judge import START_S
from serve_app.deployments.router import Router
from serve_app.deployments.stage import StageAbsent, StageLost
from serve_app.errors import (
    BadOutput,
    CircuitOpen,
    DeadlineExceeded,
    NoRoute,
    Overloaded,
    ProgramError,
    RateLimited,
    UpstreamError,
    UpstreamRefused,
)
from serve_app.messages import Attempt, Complexity, Level, Options, Outcome, Priority, Result, Step, StepKind, Usage
from serve_app.policy import BreakerPolicy, Policy, RetryPolicy
from serve_app.reports import ModelLoad, Snapshot

HARD = Options(complexity=Complexity.HIGH)
NO_BUDGET = Policy(retry=RetryPolicy(budget_ratio=0, budget_floor_per_s=0))
FALLBACKS = [
    Outcome.UNREACHABLE,
    Outcome.TIMEOUT,
    Outcome.SERVER_ERROR,
    Outcome.MALFORMED,
    Outcome.RATE_LIMITED,
    Outcome.DENIED,
    Outcome.CONTEXT_WINDOW,
]


def bad_output(asked) -> Result:
    return Result(asked.id, error=BadOutput("?"), attempts=(Attempt(asked.model, Outcome.BAD_OUTPUT, 0.1),))


def end(outcome: Outcome, **changes):
    return lambda asked: failed(asked, outcome, **changes)


class Bench:
    """A router over three fake models; each does what its entry says, or answers."""

    def __init__(self, policy: Policy | None = None, **behaviour) -> None:
        self.clock = ManualClock()
        self.models = {
            name: FakeStage(behaviour.get(name, lambda asked: ok(asked, asked.model)))
            for name in ("large", "medium", "small")
        }
        self.link = link()
        self.link.snapshot = Snapshot(1, policy or Policy(retry=RetryPolicy(budget_ratio=1, budget_floor_per_s=100)))
        self.router = Router(app_config(), self.models, self.link._telemetry, self.link, clock=self.clock)

    async def ask(self, number: int = 1, **changes) -> Result:
        asked = call(number, **({"options": HARD} | changes))
        return (await run_all(self.router, asked))[asked.id]

    def asked(self) -> dict[str, int]:
        return {name: len(stage.calls) for name, stage in self.models.items() if stage.calls}


async def test_an_attempt_says_how_much_of_its_latency_its_program_did_not_run() -> None:
    bench = Bench()

    def after_a_wait(asked) -> Result:
        bench.clock.advance(3)  # the replica says that the program ran for 10 ms of it
        return ok(asked, asked.model)

    bench.models["large"]._answer = after_a_wait
    (attempt,) = (await bench.ask()).attempts
    assert (attempt.latency_s, attempt.waited_s) == (pytest.approx(3), pytest.approx(2.99))


async def test_the_first_of_the_route_answers() -> None:
    bench = Bench()
    assert (await bench.ask()).model == "large"
    assert (await bench.ask(2, options=Options(complexity=Complexity.LOW))).model == "small"
    assert (await bench.ask(3, options=Options(model="medium"))).model == "medium"


@pytest.mark.parametrize("outcome", FALLBACKS)
async def test_the_next_answers_and_everything_spent_is_accounted_for(outcome) -> None:
    bench = Bench(large=end(outcome))
    result = await bench.ask()
    assert [(attempt.model, attempt.outcome) for attempt in result.attempts] == [
        ("large", outcome),
        ("medium", Outcome.OK),
    ]
    assert result.model == "medium"
    assert result.usage.input_tokens == 20
    assert result.cost_usd == pytest.approx(0.0015)


async def test_the_next_model_goes_on_where_the_last_one_failed() -> None:
    journal = (Step(StepKind.LM, "f", 0, "{}"),)
    bench = Bench(large=lambda asked: replace(failed(asked, Outcome.SERVER_ERROR), journal=journal))
    result = await bench.ask()
    ((first,), (second,)) = bench.models["large"].calls, bench.models["medium"].calls
    assert (first.journal, second.journal) == ((), journal)
    assert result.journal == ()


@pytest.mark.parametrize(
    ("outcome", "error"), [(Outcome.CONTENT_POLICY, UpstreamRefused), (Outcome.BAD_REQUEST, UpstreamRefused)]
)
async def test_a_refusal_of_the_request_is_passed_on(outcome, error) -> None:
    def refuse(asked):
        attempt = Attempt(asked.model, outcome, 0.1)
        return Result(asked.id, error=UpstreamRefused("because", outcome=outcome), attempts=(attempt,))

    bench = Bench(large=refuse)
    result = await bench.ask()
    assert type(result.error) is error
    assert str(result.error) == "because"
    assert bench.asked() == {"large": 1}


async def test_the_programs_own_error_ends_the_call() -> None:
    bench = Bench(large=lambda asked: Result(asked.id, error=ProgramError("the program failed")))
    assert isinstance((await bench.ask()).error, ProgramError)
    assert bench.asked() == {"large": 1}


async def test_a_bad_answer_goes_to_the_next_model_once() -> None:
    bench = Bench(large=bad_output, medium=bad_output)
    assert isinstance((await bench.ask()).error, BadOutput)
    assert bench.asked() == {"large": 1, "medium": 1}


async def test_a_too_long_prompt_goes_only_to_larger_windows() -> None:
    bench = Bench(large=end(Outcome.CONTEXT_WINDOW), medium=end(Outcome.CONTEXT_WINDOW))
    result = await bench.ask()
    assert isinstance(result.error, UpstreamRefused)
    assert bench.asked() == {"large": 1, "medium": 1}


async def test_bad_requests_and_bad_answers_never_open_a_breaker() -> None:
    bench = Bench(large=bad_output)
    for number in range(30):
        await bench.ask(number)
    assert bench.asked()["large"] == 30


async def test_a_model_that_keeps_failing_is_left_alone_and_comes_back() -> None:
    failing = True
    bench = Bench(large=lambda asked: failed(asked, Outcome.SERVER_ERROR) if failing else ok(asked, asked.model))
    for number in range(20):
        assert (await bench.ask(number)).model == "medium"
    opened = bench.asked()["large"]
    assert opened == BreakerPolicy().minimum_calls
    failing = False
    bench.clock.advance(BreakerPolicy().open_s)
    assert (await bench.ask(99)).model == "large"


def out_of_time(bench: Bench, *, ran_s: float | None = None):
    """A replica that says, when the call's time is over, that its program ran for ``ran_s``, or all of the time."""

    def answer(asked) -> Result:
        bench.clock.advance(asked.remaining_s)
        ran = asked.remaining_s if ran_s is None else ran_s
        attempts = (Attempt(asked.model, Outcome.TIMEOUT, ran),)
        return Result(asked.id, error=UpstreamError("late", outcome=Outcome.TIMEOUT), attempts=attempts)

    return answer


PATIENT, IMPATIENT = {"remaining_s": 3.0}, {"remaining_s": 0.05}
USUAL_S = 0.1


def knowing(bench: Bench, *, waited_s: float = 0.0) -> Bench:
    """A bench that has seen answers of ``large``, which took ``USUAL_S`` after a wait."""
    latency_s = USUAL_S + waited_s
    bench.router._recent.observe("ask", "large", Usage(), latency_s, estimated_input_tokens=0, ran_s=USUAL_S)
    return bench


async def test_callers_who_give_a_model_too_little_time_close_it_to_nobody() -> None:
    bench = knowing(Bench())
    bench.models["large"]._answer = out_of_time(bench)
    pinned = Options(model="large")
    for number in range(20):
        result = await bench.ask(number, options=pinned, **IMPATIENT)
        assert type(result.error) is DeadlineExceeded
        assert [attempt.outcome for attempt in result.attempts] == [Outcome.CUT_SHORT]
    bench.models["large"]._answer = lambda asked: ok(asked, asked.model)
    assert (await bench.ask(99, options=pinned, **PATIENT)).error is None


async def test_a_model_that_hangs_is_left_alone_by_what_patient_callers_saw() -> None:
    bench = knowing(Bench())
    bench.models["large"]._answer = out_of_time(bench)
    for number in range(20):
        await bench.ask(number, **PATIENT)
    assert bench.asked()["large"] == BreakerPolicy().minimum_calls


async def test_a_model_that_hangs_behind_a_queue_is_left_alone_all_the_same() -> None:
    bench = knowing(Bench(), waited_s=5.0)
    bench.models["large"]._answer = out_of_time(bench, ran_s=2 * USUAL_S)
    for number in range(20):
        await bench.ask(number, **PATIENT)
    assert bench.asked()["large"] == BreakerPolicy().minimum_calls


@pytest.mark.parametrize(
    ("prior_s", "time_s", "asked"),
    [
        (0.1, 0.05, 20),
        (0.1, 3.0, BreakerPolicy().minimum_calls),
        (30.0, 0.05, 20),
        (30.0, 1.0, BreakerPolicy().minimum_calls),  # else a model that hangs from the start is asked for ever
    ],
)
async def test_a_model_of_which_no_answer_was_seen_is_judged_by_any_attempt_that_was_no_mere_moment(
    prior_s, time_s, asked
) -> None:
    bench = Bench()
    models = bench.router._models
    models["large"] = models["large"].model_copy(update={"latency_s": prior_s})
    bench.models["large"]._answer = out_of_time(bench)
    for number in range(20):
        await bench.ask(number, options=Options(model="large"), remaining_s=time_s)
    assert bench.asked()["large"] == asked


async def test_what_an_impatient_call_leaves_of_its_time_is_no_time_for_another_model() -> None:
    bench = knowing(Bench())
    for model in bench.models.values():
        model._answer = out_of_time(bench)
    for number in range(20):
        result = await bench.ask(number, **IMPATIENT)
        assert type(result.error) is DeadlineExceeded
    assert bench.asked() == {"large": 20}, "and all of the time is the first one's"


async def test_another_model_is_asked_where_it_is_known_to_be_quick() -> None:
    def late(asked) -> Result:
        bench.clock.advance(0.17)
        return failed(asked, Outcome.SERVER_ERROR)

    bench = Bench(large=late)
    bench.router._recent.observe("ask", "small", Usage(), 0.01, estimated_input_tokens=0)
    result = await bench.ask(remaining_s=0.2)
    assert [attempt.model for attempt in result.attempts] == ["large", "small"], "medium would take 0.1 s of 0.03"


async def test_a_call_without_time_for_another_model_is_told_so() -> None:
    def late(asked) -> Result:
        bench.clock.advance(0.17)
        return failed(asked, Outcome.SERVER_ERROR)

    bench = Bench(large=late)
    result = await bench.ask(remaining_s=0.2)
    assert type(result.error) is DeadlineExceeded
    assert bench.asked() == {"large": 1}


async def test_models_that_are_down_keep_no_share_of_the_time() -> None:
    given = []

    def answers(asked) -> Result:
        given.append(asked.remaining_s)
        return ok(asked, asked.model)

    bench = Bench(large=answers, medium=end(Outcome.DENIED), small=end(Outcome.DENIED))
    await bench.ask(remaining_s=9)
    for model in ("medium", "small"):
        await bench.ask(options=Options(model=model))
    await bench.ask(remaining_s=9)
    assert given == pytest.approx([3, 9], abs=0.1)


async def test_the_fallback_of_a_call_that_was_cut_short_costs_nothing() -> None:
    bench = knowing(Bench(NO_BUDGET))
    bench.models["large"]._answer = out_of_time(bench, ran_s=0.02)
    assert (await bench.ask(**PATIENT)).model == "medium"


async def test_time_spent_waiting_for_a_slot_is_not_the_models() -> None:
    bench = knowing(Bench())
    bench.models["large"]._answer = out_of_time(bench, ran_s=0.02)
    (attempt,) = (await bench.ask(options=Options(model="large"), **PATIENT)).attempts
    assert attempt.outcome is Outcome.CUT_SHORT


@pytest.mark.parametrize(
    ("min_replicas", "replicas", "outcome"),
    [(0, 0, Outcome.CUT_SHORT), (0, 1, Outcome.TIMEOUT), (1, 0, Outcome.TIMEOUT)],
)
async def test_a_replica_that_has_to_start_first_is_no_failure_of_its_model(min_replicas, replicas, outcome) -> None:
    bench = Bench()
    large = bench.router._models["large"]
    bench.router._models["large"] = large.model_copy(update={"replicas": Replicas(min=min_replicas, max=2)})
    under_load(bench, large=ModelLoad(replicas=replicas))

    def nobody_answers(asked) -> Result:
        bench.clock.advance(asked.remaining_s)
        return Result(asked.id, error=UpstreamError("late", outcome=Outcome.TIMEOUT))

    bench.models["large"]._answer = nobody_answers
    (attempt,) = (await bench.ask(options=Options(model="large"), **PATIENT)).attempts
    assert attempt.outcome is outcome
    bench.clock.advance(START_S)
    (attempt,) = (await bench.ask(2, options=Options(model="large"), **PATIENT)).attempts
    assert attempt.outcome is Outcome.TIMEOUT, "what does not start in a minute is not going to"


async def test_a_rate_limited_model_is_not_asked_before_its_time() -> None:
    answers = [end(Outcome.RATE_LIMITED, retry_after_s=5.0)]
    bench = Bench(large=lambda asked: answers.pop()(asked) if answers else ok(asked, asked.model))
    assert (await bench.ask(1)).model == "medium"
    bench.clock.advance(4.9)
    assert (await bench.ask(2)).model == "medium"
    bench.clock.advance(0.2)
    assert (await bench.ask(3)).model == "large"


async def test_everything_down_is_no_route_with_every_attempt() -> None:
    down = end(Outcome.SERVER_ERROR)
    bench = Bench(large=down, medium=down, small=down)
    result = await bench.ask()
    assert type(result.error) is NoRoute
    assert result.error.retry_after_s >= 1
    assert [attempt.model for attempt in result.attempts] == ["large", "medium", "small"]


async def test_everything_open_is_said_without_asking_anyone() -> None:
    down = end(Outcome.DENIED)
    bench = Bench(large=down, medium=down, small=down)
    await bench.ask(1)
    before = bench.asked()
    result = await bench.ask(2)
    assert type(result.error) is CircuitOpen
    assert 0 < result.error.retry_after_s <= BreakerPolicy().open_s
    assert bench.asked() == before


async def test_everything_cooling_is_a_rate_limit() -> None:
    limited = end(Outcome.RATE_LIMITED, retry_after_s=7.0)
    bench = Bench(large=limited, medium=limited, small=limited)
    await bench.ask(1)
    result = await bench.ask(2)
    assert type(result.error) is RateLimited
    assert result.error.retry_after_s == pytest.approx(7)


async def test_a_pinned_model_has_no_fallback() -> None:
    bench = Bench(small=end(Outcome.SERVER_ERROR))
    assert isinstance((await bench.ask(options=Options(model="small"))).error, NoRoute)
    assert bench.asked() == {"small": 1}


async def test_second_attempts_are_paid_from_the_budget() -> None:
    policy = Policy(
        retry=RetryPolicy(budget_ratio=0.2, budget_floor_per_s=0), breaker=BreakerPolicy(minimum_calls=10_000)
    )
    down = end(Outcome.SERVER_ERROR)
    bench = Bench(policy, large=down, medium=down, small=down)
    for number in range(100):
        await bench.ask(number)
    assert sum(bench.asked().values()) <= 120


async def test_the_first_fallback_of_an_open_primary_costs_nothing() -> None:
    policy = Policy(retry=RetryPolicy(budget_ratio=0, budget_floor_per_s=0))
    bench = Bench(policy, large=end(Outcome.DENIED))
    assert (await bench.ask(1)).model == "medium", "it is open by the time of the fallback"
    assert (await bench.ask(2)).model == "medium", "it is open before the call"
    assert bench.asked() == {"large": 1, "medium": 2}


async def test_an_expired_call_is_never_started() -> None:
    bench = Bench()
    assert isinstance((await bench.ask(remaining_s=0)).error, DeadlineExceeded)
    assert bench.asked() == {}


async def test_each_attempt_leaves_time_for_the_next() -> None:
    bench = Bench(large=end(Outcome.SERVER_ERROR))
    await bench.ask(remaining_s=9)
    (first,), (second,) = bench.models["large"].calls, bench.models["medium"].calls
    assert first.remaining_s == pytest.approx(passed_on_s(3))
    assert second.remaining_s == pytest.approx(passed_on_s(4.5))
    assert (first.model, second.model) == ("large", "medium")


async def test_a_model_that_takes_long_for_this_program_gets_its_time() -> None:
    bench = Bench()
    bench.router._recent.observe("ask", "large", Usage(10, 5), 2.0, estimated_input_tokens=10)
    await bench.ask(remaining_s=9)
    (asked,) = bench.models["large"].calls
    assert asked.remaining_s == pytest.approx(passed_on_s(6)), (
        "three times what it usually takes, not a third of the deadline"
    )


async def test_a_caller_who_leaves_cancels_the_attempt_and_counts_for_nothing() -> None:
    bench = Bench(large=lambda _: asyncio.Event().wait())
    chunks = bench.router.run([call(1, options=HARD)])
    await anext(chunks)
    await settle()
    await chunks.aclose()
    await settle()
    assert bench.models["large"].cancelled == ["c1"]
    assert bench.router._gates["large"].report().batch.outcomes == {}


async def test_a_new_policy_holds_for_the_next_call() -> None:
    bench = Bench()
    policy = Policy.model_validate({"routing": {"strategy": "cost", "complexity": {"high": 0.7, "medium": 0.7}}})
    snapshot = replace(bench.link.snapshot, version=2, policy=policy)
    bench.link.snapshot = snapshot
    bench.router._reconfigure(snapshot)
    assert (await bench.ask()).model == "small"


async def test_a_burst_that_finds_the_primary_dead_is_answered_by_the_fallback_to_the_last_call() -> None:
    bench = Bench(Policy(), large=end(Outcome.SERVER_ERROR))
    results = await run_all(bench.router, *(call(number, options=HARD) for number in range(200)))
    assert {result.model for result in results.values()} == {"medium"}
    assert all(result.error is None for result in results.values())


async def test_a_call_falls_back_for_nothing_only_once() -> None:
    policy = Policy(retry=RetryPolicy(budget_ratio=0, budget_floor_per_s=0), breaker=BreakerPolicy(minimum_calls=1))
    bench = Bench(policy, large=end(Outcome.SERVER_ERROR), medium=end(Outcome.SERVER_ERROR))
    result = await bench.ask()
    assert isinstance(result.error, NoRoute)
    assert bench.asked() == {"large": 1, "medium": 1}


@pytest.mark.parametrize(
    ("learned", "answers"),
    [
        ({}, "medium"),
        ({("ask", Level.FULL, "small"): 0.82}, "small"),
        ({("ask", Level.FULL, "medium"): 0.5}, "large"),
        ({("ask", Level.MINIMAL, "small"): 0.9, ("other", Level.FULL, "small"): 0.9}, "medium"),
    ],
)
async def test_what_was_learned_of_a_program_takes_the_place_of_the_prior(learned, answers) -> None:
    bench = Bench()
    bench.link.snapshot = replace(bench.link.snapshot, quality=learned)
    assert (await bench.ask(options=Options(complexity=Complexity.MEDIUM))).model == answers


QUEUED = ModelLoad(slots=2, running=2, waiting=(0, 20, 0), service_s=1)
"""About ten seconds of work for a model before a new call of priority default."""


def under_load(bench: Bench, **loads: ModelLoad) -> None:
    bench.link.snapshot = replace(bench.link.snapshot, loads=loads)


@pytest.mark.parametrize(
    ("load", "spread"),
    [
        (ModelLoad(), 1),
        (ModelLoad(slots=32, running=15, replicas=4), 1),
        (ModelLoad(slots=32, running=16, replicas=4), 4),
        (ModelLoad(slots=32, running=8, waiting=(0, 8, 0), replicas=4), 4),
        (ModelLoad(slots=8, running=8, replicas=1), 1),
        (ModelLoad(slots=8, running=8), 1),
    ],
)
async def test_calls_are_divided_among_a_models_replicas_where_slots_are_scarce(load, spread) -> None:
    bench = Bench()
    under_load(bench, large=load)
    assert (await bench.ask(options=replace(HARD, model="large"))).error is None
    assert bench.router._lanes["large"].spread == spread


async def test_a_cheap_model_that_gave_a_long_answer_once_is_asked_again_in_time() -> None:
    lengths = iter([6000])

    def answer(asked) -> Result:
        return replace(
            ok(asked, "small"), attempts=(Attempt("small", Outcome.OK, 0.01, Usage(10, next(lengths, 300))),)
        )

    bench = Bench(small=answer)
    asked = {"options": Options(complexity=Complexity.LOW)}
    models = [(await bench.ask(number, **asked)).model for number in range(2)]
    assert models == ["small", "medium"]
    bench.clock.advance(2 * HALF_LIFE_S)
    assert (await bench.ask(3, **asked)).model == "small"


async def test_a_model_whose_queue_is_too_long_for_the_call_is_left_out() -> None:
    bench = Bench()
    under_load(bench, large=QUEUED)
    assert (await bench.ask(remaining_s=10)).model == "medium"
    assert bench.asked() == {"medium": 1}


async def test_a_quick_program_may_wait_for_the_slots_of_slow_ones() -> None:
    bench, pinned = Bench(), replace(HARD, model="large")
    assert (await bench.ask(1, options=pinned)).error is None  # ran for 10 ms
    under_load(bench, large=ModelLoad(slots=8, running=8, waiting=(0, 1, 0), service_s=4))
    assert (await bench.ask(2, options=pinned, remaining_s=5)).error is None
    assert isinstance((await bench.ask(3, options=pinned, remaining_s=1)).error, Overloaded)


async def test_a_call_that_a_busy_model_did_not_get_is_lost_to_it() -> None:
    bench = Bench()
    under_load(bench, large=QUEUED)
    await bench.ask(remaining_s=10)
    assert bench.link._read_gauges() == {"lost_large": 1 / LEAST_S, "lost_medium": 0, "lost_small": 0}


async def test_callers_who_leave_say_nothing_of_a_model_however_long_they_waited() -> None:
    bench = Bench(large=lambda _: asyncio.Event().wait())
    for number in range(10):
        asking = asyncio.create_task(bench.ask(number, remaining_s=100))
        await settle()
        bench.clock.advance(60)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        await settle()
    assert bench.router._gates["large"].refusal() is None


async def test_when_every_model_is_too_busy_the_call_is_refused_before_any_work() -> None:
    bench = Bench()
    under_load(bench, large=QUEUED, medium=QUEUED, small=QUEUED)
    result = await bench.ask(remaining_s=8)
    assert isinstance(result.error, Overloaded)
    assert 0 < result.error.retry_after_s < 10
    assert sum(bench.asked().values()) == 0


async def test_a_critical_call_does_not_wait_for_those_it_overtakes() -> None:
    bench = Bench()
    under_load(bench, large=QUEUED, medium=QUEUED, small=QUEUED)
    result = await bench.ask(remaining_s=8, options=replace(HARD, priority=Priority.CRITICAL))
    assert result.error is None


async def test_what_was_sent_since_the_last_report_is_in_the_queue_too() -> None:
    bench = Bench(large=lambda _: asyncio.Event().wait())
    under_load(bench, large=ModelLoad(slots=1, running=0, waiting=(0, 0, 0), service_s=1))
    first = [asyncio.create_task(bench.ask(n, options=replace(HARD, model="large"))) for n in range(20)]
    await settle()
    refused = [task.result().error for task in first if task.done()]
    assert bench.asked() == {"large": 9}  # the tenth would wait nine seconds of its ten, and run for one
    assert len(refused) == 11
    assert all(isinstance(error, Overloaded) for error in refused)
    for task in first:
        task.cancel()


def refuse(asked) -> Result:
    """A replica that has no room."""
    return Result(asked.id, error=Overloaded("full", 3.0), attempts=(Attempt(asked.model, Outcome.REJECTED, 0.0),))


async def test_a_replicas_own_refusal_says_nothing_of_the_model_and_the_next_one_is_asked_for_nothing() -> None:
    bench = Bench(NO_BUDGET, large=refuse, medium=refuse)
    for number in range(20):
        result = await bench.ask(number)
        assert result.model == "small"
    assert bench.asked() == {"large": 20, "medium": 20, "small": 20}


async def test_when_every_replica_refuses_the_refusal_is_the_callers() -> None:
    bench = Bench(large=refuse, medium=refuse, small=refuse)
    result = await bench.ask()
    assert isinstance(result.error, Overloaded)
    assert result.error.retry_after_s == 3.0
    assert [attempt.outcome for attempt in result.attempts] == [Outcome.REJECTED] * 3


async def test_a_call_whose_share_of_time_went_by_in_a_queue_goes_to_the_next_model() -> None:
    def waits(asked) -> Result:
        bench.clock.advance(asked.remaining_s)
        error = UpstreamError("no time was left", outcome=Outcome.REJECTED)
        return Result(asked.id, error=error, attempts=(Attempt(asked.model, Outcome.REJECTED, 0.0),))

    bench = Bench(NO_BUDGET, large=waits)
    assert (await bench.ask(1)).model == "medium"
    bench = Bench(NO_BUDGET, large=waits, medium=waits, small=waits)
    result = await bench.ask(2)
    assert type(result.error) is DeadlineExceeded
    assert [attempt.model for attempt in result.attempts] == ["large", "medium", "small"]


async def test_the_calls_of_a_lost_replica_open_nothing() -> None:
    bench = Bench(large=lambda asked: Result(asked.id, error=StageLost("gone", outcome=Outcome.UNREACHABLE)))
    for number in range(20):
        assert (await bench.ask(number)).model == "medium"
    assert bench.asked()["large"] == 20


DOWN = end(Outcome.SERVER_ERROR)


def too_small(asked) -> Result:
    attempt = Attempt(asked.model, Outcome.CONTEXT_WINDOW, 0.1)
    return Result(asked.id, error=UpstreamRefused("long", outcome=Outcome.CONTEXT_WINDOW), attempts=(attempt,))


@pytest.mark.parametrize(
    ("policy", "models", "error"),
    [
        (None, {"large": DOWN, "medium": DOWN, "small": too_small}, NoRoute),
        (None, {"large": too_small, "medium": DOWN, "small": too_small}, NoRoute),
        (NO_BUDGET, {"large": too_small}, NoRoute),
        (None, {"large": DOWN, "medium": too_small, "small": DOWN}, UpstreamRefused),
        (None, {"large": too_small, "medium": too_small}, UpstreamRefused),
    ],
)
async def test_inputs_are_too_long_only_when_no_larger_model_was_merely_down(policy, models, error) -> None:
    """``medium`` has the largest window."""
    assert type((await Bench(policy, **models).ask()).error) is error


async def test_the_route_is_chosen_by_what_the_level_leaves_of_the_inputs() -> None:
    bench = Bench()
    level = LevelConfig(models=("small",), max_input_chars={"question": 100})
    bench.router._levels = {"ask": Levels(full=level)}
    assert (await bench.ask(inputs={"question": "x" * 100_000})).model == "small"


async def test_a_call_that_is_left_is_left_at_its_model_and_its_neighbour_is_not() -> None:
    bench = Bench(large=lambda _: asyncio.Event().wait())
    running = asyncio.create_task(run_all(bench.router, call(1, options=HARD), call(2, options=HARD)))
    await settle()
    bench.router.leave(["c1"])
    await settle()
    assert bench.models["large"].cancelled == ["c1"]
    running.cancel()


@pytest.mark.parametrize(("pinned", "asked"), [("large", {"large": 2}), (None, {"large": 1, "medium": 1})])
async def test_what_a_lost_replica_had_goes_to_the_next_model_or_where_there_is_none_to_another_replica(
    pinned, asked
) -> None:
    lost = []

    def once(asked):
        if lost:
            return ok(asked, "large")
        lost.append(asked.id)
        return Result(asked.id, error=StageLost("gone", outcome=Outcome.UNREACHABLE))

    bench = Bench(large=once)
    assert (await bench.ask(options=replace(HARD, model=pinned))).error is None
    assert bench.asked() == asked


async def test_a_model_without_replicas_is_not_asked_twice() -> None:
    bench = Bench(large=lambda asked: Result(asked.id, error=StageAbsent("none", outcome=Outcome.UNREACHABLE)))
    assert isinstance((await bench.ask(options=replace(HARD, model="large"))).error, NoRoute)
    assert bench.asked() == {"large": 1}
