from __future__ import annotations

import re

import pytest

from serve_app.core import outcomes
from serve_app.core.outcomes import MEANINGS, BreakerEffect, Meaning, NextRoute, classify_latency, classify_timeout
from serve_app.messages import Outcome

NOTHING_OF_THE_MODEL = (Outcome.RATE_LIMITED, Outcome.CUT_SHORT, Outcome.REJECTED)
"""Another model is asked, though this one has no fault."""


def test_every_outcome_has_a_meaning():
    assert set(MEANINGS) == set(Outcome)


def test_the_table_in_the_docstring_is_the_table_in_the_code():
    rows = re.findall(
        r"^    (\w+) +(\w+) +(\w+)(?: +(operator error|bad quality))?$", outcomes.__doc__ or "", re.MULTILINE
    )
    written = {
        Outcome(name): Meaning(NextRoute(route), BreakerEffect(effect), note == "operator error", note == "bad quality")
        for name, route, effect, note in rows
    }

    assert written == dict(MEANINGS)


@pytest.mark.parametrize("outcome", [Outcome.UNREACHABLE, Outcome.TIMEOUT, Outcome.SERVER_ERROR, Outcome.MALFORMED])
def test_a_provider_that_fails_is_counted_and_replaced(outcome):
    assert MEANINGS[outcome] == Meaning(NextRoute.ANY, BreakerEffect.FAILURE)


@pytest.mark.parametrize(
    "outcome",
    [Outcome.CONTEXT_WINDOW, Outcome.CONTENT_POLICY, Outcome.BAD_REQUEST, Outcome.BAD_OUTPUT, Outcome.PROGRAM_ERROR],
)
def test_a_fault_that_is_not_the_providers_never_counts_for_the_breaker(outcome):
    assert MEANINGS[outcome].breaker is BreakerEffect.IGNORE


@pytest.mark.parametrize(
    "outcome", [o for o in Outcome if o not in (Outcome.CONTEXT_WINDOW, Outcome.BAD_OUTPUT, *NOTHING_OF_THE_MODEL)]
)
def test_another_model_is_asked_for_exactly_the_faults_of_this_one(outcome):
    faulty = MEANINGS[outcome].breaker in (BreakerEffect.FAILURE, BreakerEffect.OPEN)
    assert MEANINGS[outcome].next_route is (NextRoute.ANY if faulty else NextRoute.NONE)


@pytest.mark.parametrize(("latency_s", "outcome"), [(29.9, Outcome.OK), (30, Outcome.SLOW), (31, Outcome.SLOW)])
def test_an_answer_is_slow_from_slow_call_s_on(latency_s, outcome):
    assert classify_latency(Outcome.OK, latency_s, 30) is outcome


@pytest.mark.parametrize("outcome", [o for o in Outcome if o is not Outcome.OK])
def test_only_an_answer_can_be_slow(outcome):
    assert classify_latency(outcome, 1000, 30) is outcome


@pytest.mark.parametrize(
    ("ran_s", "took_s", "given_s", "usual_s", "outcome"),
    [
        (0.3, 0.3, 0.3, 1.0, Outcome.CUT_SHORT),
        (0.1, 2.0, 2.0, 1.0, Outcome.CUT_SHORT),  # it waited for a slot
        (0.0, 9.0, 9.0, 1.0, Outcome.CUT_SHORT),  # it waited for a replica
        (1.0, 1.0, 1.0, 1.0, Outcome.TIMEOUT),
        (60, 60, 60, 1.0, Outcome.TIMEOUT),
        (0.3, 0.3, 60, 1.0, Outcome.TIMEOUT),  # the provider's own
    ],
)
def test_a_timeout_with_less_time_than_usual_tells_of_the_deadline(ran_s, took_s, given_s, usual_s, outcome):
    found = classify_timeout(Outcome.TIMEOUT, ran_s=ran_s, took_s=took_s, given_s=given_s, usual_s=usual_s)
    assert found is outcome


@pytest.mark.parametrize("outcome", [o for o in Outcome if o is not Outcome.TIMEOUT])
def test_only_a_timeout_is_cut_short(outcome):
    assert classify_timeout(outcome, ran_s=0.1, took_s=0.3, given_s=0.3, usual_s=1.0) is outcome
