"""Every error of the tree crosses a process with everything it says."""

import inspect
import pickle

import pytest

from serve_app import errors
from serve_app.errors import ConfigError, NoRoute, SwitchyardError, UpstreamError
from serve_app.messages import Attempt, Outcome

TREE = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, SwitchyardError)]
ATTEMPTS = (Attempt("large", Outcome.TIMEOUT, 1.5),)


@pytest.mark.parametrize("kind", [kind for kind in TREE if kind is not ConfigError])
def test_an_error_survives_pickling(kind) -> None:
    error = pickle.loads(pickle.dumps(kind("why", 2.5, ATTEMPTS, "r1")))
    assert type(error) is kind
    assert (str(error), error.retry_after_s, error.attempts, error.request_id) == ("why", 2.5, ATTEMPTS, "r1")


def test_an_upstream_error_keeps_its_outcome_when_told_of_its_call() -> None:
    error = UpstreamError("why", 2.5, outcome=Outcome.RATE_LIMITED).about("r1", ATTEMPTS)
    error = pickle.loads(pickle.dumps(error))
    assert (error.outcome, error.request_id, error.attempts) == (Outcome.RATE_LIMITED, "r1", ATTEMPTS)


def test_a_configuration_error_keeps_its_lines() -> None:
    error = pickle.loads(pickle.dumps(ConfigError(["one", "two"])))
    assert error.problems == ("one", "two")
    assert str(error) == "one\ntwo"


@pytest.mark.parametrize("kind", TREE)
def test_each_is_documented_with_its_code_and_status(kind) -> None:
    assert kind.__name__ in (errors.__doc__ or "")
    assert 400 <= kind.status <= 599
    assert str(kind([]) if kind is ConfigError else kind()) == kind.title


def test_retryable_errors_are_those_that_time_may_mend() -> None:
    assert NoRoute.retryable
    assert {kind.code for kind in TREE if kind.retryable} == {
        "no_route",
        "shed",
        "rate_limited",
        "bad_output",
        "deadline_exceeded",
        "control_plane_unreachable",
    }
