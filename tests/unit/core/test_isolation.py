"""One call that breaks its batch: who is run again beside whom, and what that costs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.core import isolation
from serve_app.core.isolation import PARTS, is_perhaps_one_calls_fault, parts
from serve_app.messages import Outcome

OF_THE_CALL = {
    Outcome.CONTEXT_WINDOW,
    Outcome.CONTENT_POLICY,
    Outcome.BAD_REQUEST,
    Outcome.BAD_OUTPUT,
    Outcome.PROGRAM_ERROR,
}


@pytest.mark.parametrize("outcome", Outcome)
def test_only_a_fault_of_inputs_or_program_may_be_one_calls(outcome) -> None:
    assert is_perhaps_one_calls_fault(outcome, 2) is (outcome in OF_THE_CALL)


@pytest.mark.parametrize("outcome", sorted(OF_THE_CALL))
def test_what_fails_alone_is_not_run_again(outcome) -> None:
    assert not is_perhaps_one_calls_fault(outcome, 1)


@given(st.lists(st.integers(), max_size=100))
def test_every_call_is_in_one_part_and_each_part_is_smaller(calls) -> None:
    found = parts(calls)
    assert [call for part in found for call in part] == calls
    assert len(found) <= PARTS
    assert all(0 < len(part) < max(2, len(calls)) for part in found)


def runs(calls: Sequence[bool]) -> list[int]:
    """Runs of each round until every call has its own outcome; a call says whether it is poisoned."""
    batches, rounds = [calls], []
    while batches:
        rounds.append(len(batches))
        batches = [part for batch in batches if any(batch) and len(batch) > 1 for part in parts(batch)]
    return rounds


@given(st.integers(2, 200), st.data())
def test_one_in_many_costs_a_few_runs_in_few_rounds(size, data) -> None:
    poisoned = data.draw(st.integers(0, size - 1))
    rounds = runs([at == poisoned for at in range(size)])
    depth = math.ceil(math.log(size, PARTS))
    assert len(rounds) <= 1 + depth
    assert sum(rounds) <= 1 + PARTS * depth


@given(st.lists(st.booleans(), min_size=1, max_size=200))
def test_the_worst_case_is_less_than_two_runs_a_call_and_never_more_at_once_than_calls(calls) -> None:
    rounds = runs(calls)
    assert sum(rounds) < 2 * len(calls)
    assert max(rounds) <= len(calls)


def test_the_table_is_what_happens() -> None:
    one, every = runs([True] + [False] * 31), runs([True] * 32)
    row = f"quarters {sum(one)} runs, {len(one)} rounds {sum(every)} runs"
    assert row in " ".join((isolation.__doc__ or "").split())
