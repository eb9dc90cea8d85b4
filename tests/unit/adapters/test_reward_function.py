"""A person's reward function: scores, refusals, and what it cannot do to us."""

import asyncio
import math
from fractions import Fraction

import dspy
import pytest
import reward_samples

from serve_app.adapters.reward_function import MAX_RUNNING, RewardFailed, RewardFunction, read_score
from serve_app.config import RewardConfig
from serve_app.errors import ConfigError


def reward(name: str, **changes) -> RewardFunction:
    return RewardFunction(RewardConfig(function=f"reward_samples:{name}", **changes))


async def score(function: RewardFunction, answer: object = "x") -> float:
    return await function.score(lambda: ({"question": answer}, dspy.Prediction(answer="x")))


async def failure(function: RewardFunction, answer: object = "x") -> tuple[str, str]:
    with pytest.raises(RewardFailed) as caught:
        await score(function, answer)
    return caught.value.reason, caught.value.kind


async def outcome(function: RewardFunction) -> str:
    try:
        await score(function)
    except RewardFailed as error:  # ten milliseconds are over before an answer comes, where no core is free
        return error.reason
    return "scored"


async def wait_until(condition) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


@pytest.fixture(autouse=True)
def released():
    reward_samples.release.clear()
    yield
    reward_samples.release.set()


async def test_sync_and_async_functions_and_callable_objects_score() -> None:
    assert await score(reward("exact")) == 1.0
    assert await score(reward("exact"), "y") == 0.0
    assert await score(reward("gentle")) == 0.25
    assert await score(reward("judge")) == 0.5


async def test_it_gets_the_inputs_and_a_prediction_as_dspy_has_it() -> None:
    await score(reward("exact"))
    args, pred = reward_samples.seen[-1]
    assert args == {"question": "x"}
    assert isinstance(pred, dspy.Prediction)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("raises", ("raised", "KeyError")),
        ("leaves", ("raised", "RuntimeError")),
        ("cancels", ("raised", "CancelledError")),
        ("times_out", ("raised", "TimeoutError")),
    ],
)
async def test_whatever_it_raises_is_a_failed_reward(name, expected) -> None:
    function = reward(name)
    for _ in range(MAX_RUNNING + 1):
        assert await failure(function) == expected


async def test_inputs_that_cannot_be_had_are_a_failed_reward() -> None:
    def arguments():
        raise ValueError("inputs")

    with pytest.raises(RewardFailed, match="raised"):
        await reward("exact").score(arguments)


async def test_an_async_function_that_hangs_is_given_up_in_time() -> None:
    function = reward("sleeps", timeout_s=0.01)
    for _ in range(MAX_RUNNING + 1):
        assert (await failure(function))[0] == "timeout"


async def test_a_sync_function_that_hangs_holds_its_place_and_no_more() -> None:
    function = reward("hangs", timeout_s=0.01)
    for _ in range(MAX_RUNNING):
        assert (await failure(function))[0] == "timeout"
    for _ in range(100):
        assert (await failure(function))[0] == "busy"
    reward_samples.release.set()
    await wait_until(lambda: function._running == 0)
    assert await score(reward("hangs")) == 1.0, "it hangs no more"
    assert (await outcome(function)) != "busy"


@pytest.mark.parametrize("value", [0, 1, 0.5, True, False, Fraction(1, 2), dspy.Prediction(score=0.3)])
def test_numbers_from_0_to_1_are_scores(value) -> None:
    assert 0 <= read_score(value) <= 1


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "abstained"),
        ("0.5", "not_a_number"),
        ([1], "not_a_number"),
        (dspy.Prediction(answer="x"), "not_a_number"),
        (math.nan, "not_finite"),
        (math.inf, "not_finite"),
        (1.01, "out_of_range"),
        (-0.01, "out_of_range"),
        (85, "out_of_range"),
    ],
)
def test_everything_else_is_refused_with_its_reason(value, reason) -> None:
    with pytest.raises(RewardFailed) as caught:
        read_score(value)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("exakt", r"'reward_samples' has no 'exakt'; did you mean 'exact'"),
        ("not_a_function", "is a int, not a function"),
        ("one_argument", r"must take \(args, pred\)"),
    ],
)
def test_what_is_no_reward_function_is_refused_in_one_line(name, words) -> None:
    with pytest.raises(ConfigError, match=words):
        reward(name)
