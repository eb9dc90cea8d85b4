"""Errors over HTTP, member by member."""

import inspect
import json

import pytest

from serve_app import errors
from serve_app.deployments.http_problems import PROBLEM_TYPE, problem, problem_response, to_json
from serve_app.errors import ConfigError, NoRoute, Overloaded, SwitchyardError
from serve_app.messages import Attempt, Outcome

TREE = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, SwitchyardError) and kind is not ConfigError
]
MEMBERS = {"type", "title", "status", "detail", "code", "request_id", "retryable", "retry_after_s", "attempts"}


@pytest.mark.parametrize("kind", TREE)
def test_every_error_is_a_whole_problem_document(kind) -> None:
    response = problem_response(kind("why", 2.0, (Attempt("large", Outcome.TIMEOUT, 1.5),)), "r1")
    body = json.loads(response.body)
    assert body.keys() == MEMBERS
    assert response.status_code == body["status"] == kind.status
    assert response.headers["content-type"] == PROBLEM_TYPE
    assert (body["detail"], body["request_id"], body["type"]) == ("why", "r1", f"urn:switchyard:problem:{kind.code}")
    assert (body["attempts"][0]["model"], body["attempts"][0]["outcome"]) == ("large", "timeout")


def test_an_error_without_a_detail_says_its_title() -> None:
    assert problem(Overloaded(), "r1")["detail"] == Overloaded.title


@pytest.mark.parametrize(
    ("seconds", "header"),
    [(0.0, "1"), (0.1, "1"), (1.0, "1"), (1.01, "2"), (30.0, "30"), (-5.0, "1"), (None, None)],
)
def test_retry_after_is_in_whole_seconds_and_at_least_one(seconds, header) -> None:
    assert problem_response(NoRoute("down", seconds), "r1").headers.get("retry-after") == header


@pytest.mark.parametrize("seconds", [float("inf"), float("nan")])
def test_a_wait_that_is_no_number_is_left_out(seconds) -> None:
    response = problem_response(NoRoute("down", seconds), "r1")
    assert "retry-after" not in response.headers
    assert json.loads(response.body)["retry_after_s"] is None


@pytest.mark.parametrize(
    "value", [{"a": "\ud800"}, {"a": 2**80}, {"a": "\ud800", "b": float("nan")}, {"a": [1.5, None, True, "é"]}]
)
def test_whatever_a_program_answers_becomes_valid_json(value) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    read = json.loads(to_json(value), parse_constant=refuse)
    assert read["a"] == value["a"]
