"""A log line is one JSON object, whatever is logged."""

import json
import logging
import sys
from datetime import UTC, datetime

import pytest

from serve_app.adapters.json_log import JsonFormatter, configure_logging


def line(event="thing.happened", severity=logging.INFO, args=(), exc_info=None, **fields) -> dict:
    record = logging.LogRecord("switchyard.test", severity, __file__, 1, event, args, exc_info)
    vars(record).update(fields)
    text = JsonFormatter().format(record)
    assert "\n" not in text
    return json.loads(text)


def test_a_line_has_when_how_bad_and_what() -> None:
    read = line("breaker.%s", logging.WARNING, ("opened",), model="large")
    at = datetime.fromisoformat(read.pop("at"))
    assert abs((datetime.now(UTC) - at).total_seconds()) < 60
    assert read == {"level": "warning", "event": "breaker.opened", "logger": "switchyard.test", "model": "large"}


@pytest.mark.parametrize("name", ["level", "event", "at", "logger"])
def test_a_field_never_takes_the_place_of_what_every_line_has(name) -> None:
    record = logging.LogRecord("switchyard.test", logging.WARNING, __file__, 1, "level.changed", (), None)
    vars(record)[name] = "degraded"
    read = json.loads(JsonFormatter().format(record))
    assert (read["level"], read["event"], read["logger"]) == ("warning", "level.changed", "switchyard.test")
    assert read[f"{name}_"] == "degraded"


def test_an_exception_comes_with_its_traceback_in_the_same_line() -> None:
    try:
        int("no")
    except ValueError:
        read = line(exc_info=sys.exc_info())
    assert "Traceback" in read["exception"]
    assert "ValueError: invalid literal" in read["exception"]


@pytest.mark.parametrize(
    "value",
    ["\ud800", 2**80, {1: "a"}, {(1, 2): "a"}, {"\ud800": 1}, object(), ValueError("x"), float("nan"), b"\xff", {"a"}],
    ids=["surrogate", "huge", "int-key", "tuple-key", "surrogate-key", "object", "error", "nan", "bytes", "set"],
)
def test_no_value_loses_the_line(value) -> None:
    read = line(request_id="r1", value=value)
    assert (read["request_id"], read["event"]) == ("r1", "thing.happened")
    assert "value" in read


@pytest.fixture
def bare_logger():
    root = logging.getLogger("switchyard")
    before = (root.handlers[:], root.level, root.propagate)
    root.handlers.clear()
    yield root
    root.handlers[:], root.propagate = before[0], before[2]
    root.setLevel(before[1])


def test_logging_is_configured_once_and_says_who_started(bare_logger, capfd) -> None:
    configure_logging("Router")
    configure_logging("Router")
    assert len(bare_logger.handlers) == 1
    (text,) = capfd.readouterr().err.splitlines()
    read = json.loads(text)
    assert (read["event"], read["deployment"]) == ("replica.started", "Router")
