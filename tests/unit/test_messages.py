"""Values that cross a process: small, frozen, and the same on the other side."""

import dataclasses
import inspect
import pickle

import pytest

from serve_app import messages
from serve_app.messages import (
    Attempt,
    BreakerState,
    CacheStatus,
    Call,
    Freshness,
    Level,
    Options,
    Outcome,
    Result,
    Route,
    Usage,
)
from serve_app.policy import Policy
from serve_app.reports import ModelHealth, OutcomeCount, Report, Snapshot

ATTEMPT = Attempt("large", Outcome.TIMEOUT, 1.5, Usage(3, 4), 0.5)
SAMPLES = [
    Options(),
    Freshness(no_cache=True, max_age_s=3.0),
    Call("c1", "r1", "ask", {"question": "why?"}, 3.0),
    Route(("large", "small"), 0.5),
    Usage(3, 4),
    ATTEMPT,
    Result("c1", {"answer": "x"}, attempts=(ATTEMPT,), cache=CacheStatus.COALESCED),
    OutcomeCount("large", Outcome.OK, 3, 1.5),
    Report("s", "Router", (OutcomeCount("large", Outcome.OK, 3, 1.5),), breakers={"large": BreakerState.OPEN}),
    ModelHealth(BreakerState.HALF_OPEN, 3, 1.0, "why"),
    Snapshot(1, Policy(), Level.MINIMAL, "why", {"large": ModelHealth()}),
]
DATACLASSES = [kind for _, kind in inspect.getmembers(messages, dataclasses.is_dataclass)]


@pytest.mark.parametrize("value", SAMPLES, ids=lambda value: type(value).__name__)
def test_a_value_is_the_same_on_the_other_side(value) -> None:
    assert pickle.loads(pickle.dumps(value)) == value


@pytest.mark.parametrize("kind", DATACLASSES)
def test_a_value_cannot_be_changed(kind) -> None:
    assert kind.__dataclass_params__.frozen
    assert hasattr(kind, "__slots__")


def test_levels_rank_from_best_to_least() -> None:
    assert [level.rank for level in (Level.FULL, Level.DEGRADED, Level.MINIMAL)] == [0, 1, 2]


def test_tokens_add_up() -> None:
    assert sum([Usage(1, 2), Usage(10, 20)], Usage()) == Usage(11, 22)


def test_words_are_their_own_text_in_json_and_labels() -> None:
    assert f"{Outcome.RATE_LIMITED} {CacheStatus.HIT} {BreakerState.HALF_OPEN}" == "rate_limited hit half_open"
