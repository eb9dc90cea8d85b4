"""A log line is one JSON object, whatever is logged."""

import asyncio
import builtins
import json
import logging
import sys
from datetime import UTC, datetime
from logging.handlers import MemoryHandler, RotatingFileHandler

import pytest

from serve_app.adapters.json_log import CALLS, JsonFormatter, about_call, configure_logging


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


def test_a_traceback_is_whole_where_print_is_ray_serves_own(monkeypatch) -> None:
    python_s = builtins.print
    monkeypatch.setattr(builtins, "print", lambda *objects, **options: python_s(objects, **options))
    try:
        int("no")
    except ValueError:
        written = line(exc_info=sys.exc_info())["exception"].splitlines()
    assert written[0] == "Traceback (most recent call last):"
    assert written[-1].startswith("ValueError: invalid literal")


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


async def test_lines_of_a_task_have_the_request_id_of_its_call_and_of_no_other() -> None:
    async def work(request_id: str) -> dict:
        about_call(request_id)
        await asyncio.sleep(0)
        return line()

    first, second = await asyncio.gather(work("r1"), work("r2"))
    assert (first["request_id"], second["request_id"]) == ("r1", "r2")
    assert "request_id" not in line()


@pytest.fixture
def serve_file(tmp_path):
    """The file that Ray Serve keeps for a replica, behind a buffer as in throughput mode."""
    known = RotatingFileHandler(tmp_path / "replica_app_Ingress_1.log", maxBytes=2000, backupCount=2)
    buffer = MemoryHandler(1000, target=known)
    logging.getLogger("ray.serve").addHandler(buffer)
    yield known
    logging.getLogger("ray.serve").removeHandler(buffer)
    known.close()


def test_in_a_replica_lines_go_to_a_file_at_once_and_those_about_calls_nowhere_else(
    bare_logger, serve_file, tmp_path, capfd
) -> None:
    configure_logging("Ingress")
    logging.getLogger(CALLS).info("call.finished", extra={"request_id": "r1"})
    logging.getLogger("switchyard.router").error("model.denied")
    path = tmp_path / "replica_app_Ingress_1.jsonl"
    written = [json.loads(text) for text in path.read_text().splitlines()]
    assert [read["event"] for read in written] == ["replica.started", "call.finished", "model.denied"]
    shown = [json.loads(text) for text in capfd.readouterr().err.splitlines()]
    assert [read["event"] for read in shown] == ["replica.started", "model.denied"]
    assert shown[0]["log"] == str(path)
    close(bare_logger)


def test_a_full_file_starts_anew_and_no_line_is_lost_or_cut(bare_logger, serve_file, tmp_path) -> None:
    configure_logging("Ingress")
    for number in range(40):
        logging.getLogger(CALLS).info("call.finished", extra={"number": number})
    files = sorted(tmp_path.glob("*.jsonl*"), reverse=True)
    assert [file.name for file in files] == [f"replica_app_Ingress_1.jsonl{end}" for end in (".2", ".1", "")]
    read = [json.loads(text) for file in files for text in file.read_text().splitlines()]
    assert [entry["number"] for entry in read if "number" in entry] == list(range(40))
    assert all(file.stat().st_size < 2500 for file in files)
    close(bare_logger)


def close(root: logging.Logger) -> None:
    for handler in root.handlers:
        handler.close()
