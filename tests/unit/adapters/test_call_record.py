"""Calls written down: whole lines, bounded, private, redacted."""

import asyncio
import errno
import json
import os
import stat
from pathlib import Path

import pytest

from serve_app.adapters.call_record import MAX_WAITING, CallRecord, Segments, redacted
from serve_app.config import RecordConfig

LINE = {"request_id": "r1", "inputs": {"ticket": "secret", "n": 1}, "outputs": {"category": "bug"}, "comment": "no"}


class Bench:
    def __init__(self, path: Path, source: str = "Model-small-1", **config) -> None:
        self.lost: list[tuple[str, int]] = []
        record = RecordConfig(path=str(path), **config)
        self.directory = path / "triage"
        self.record = CallRecord(
            "triage", record, source, lambda *lost: self.lost.append(lost), unix_clock=lambda: 12.3456
        )

    def lines(self) -> list[dict]:
        files = sorted(self.directory.glob("*.jsonl"))
        return [json.loads(line) for file in files for line in file.read_text().splitlines()]


async def test_lines_are_json_with_the_time(tmp_path) -> None:
    bench = Bench(tmp_path / "new" / "below")
    bench.record.write(LINE)
    await bench.record.aclose()
    assert bench.lines() == [{"at": 12.346, **LINE}]


async def test_only_the_user_may_read_them(tmp_path) -> None:
    bench = Bench(tmp_path / "new")
    bench.record.write(LINE)
    await bench.record.aclose()
    (file,) = bench.directory.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(bench.directory.stat().st_mode) == 0o700


async def test_replicas_write_files_of_their_own(tmp_path) -> None:
    benches = [Bench(tmp_path, f"Model-small-{number}") for number in range(4)]
    for _ in range(50):
        for bench in benches:
            bench.record.write(LINE)
    await asyncio.gather(*(bench.record.aclose() for bench in benches))
    assert len(list(benches[0].directory.iterdir())) == 4
    assert len(benches[0].lines()) == 200


async def test_redacted_fields_never_reach_the_disk(tmp_path) -> None:
    bench = Bench(tmp_path, redact=("ticket", "comment"))
    bench.record.write(LINE)
    await bench.record.aclose()
    assert b"secret" not in next(bench.directory.iterdir()).read_bytes()
    (line,) = bench.lines()
    assert line["inputs"] == {"ticket": "[redacted]", "n": 1}
    assert line["comment"] == "[redacted]"


def test_what_is_written_is_not_changed_in_the_callers_hands() -> None:
    redacted(LINE, {"ticket"})
    assert LINE["inputs"]["ticket"] == "secret"


async def test_a_disk_that_is_too_slow_loses_lines_and_says_how_many(tmp_path) -> None:
    bench = Bench(tmp_path)
    for _ in range(MAX_WAITING + 7):
        bench.record.write(LINE)
    await bench.record.aclose()
    assert sum(count for reason, count in bench.lost if reason == "busy") == 7
    assert len(bench.lines()) == MAX_WAITING


async def test_a_path_that_cannot_be_written_costs_lines_and_nothing_else(tmp_path, caplog) -> None:
    (tmp_path / "triage").write_text("a file where the directory should be")
    bench = Bench(tmp_path)
    for _ in range(3):
        bench.record.write(LINE)
        await bench.record.aclose()
    assert bench.lost == [("unwritable", 1)] * 3
    assert len([entry for entry in caplog.records if entry.message == "record.unwritable"]) == 1
    (tmp_path / "triage").unlink()
    bench.record.write(LINE)
    await bench.record.aclose()
    assert len(bench.lines()) == 1


def test_a_full_disk_gathers_no_empty_files(tmp_path, monkeypatch) -> None:
    segments = Segments(tmp_path, "a", 2**20)
    segments.append(b"1\n")
    with monkeypatch.context() as full:
        full.setattr(os, "write", no_space)
        for _ in range(10):
            with pytest.raises(OSError, match="No space"):
                segments.append(b"2\n")
    segments.append(b"3\n")
    assert sorted(path.read_bytes() for path in tmp_path.iterdir()) == [b"1\n", b"3\n"]


def no_space(*_: object) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_link_in_the_way_is_not_followed(tmp_path) -> None:
    target = tmp_path / "elsewhere"
    (tmp_path / "triage").mkdir()
    (tmp_path / "triage" / "a-000001.jsonl").symlink_to(target)
    with pytest.raises(OSError, match="symbolic"):
        Segments(tmp_path / "triage", "a", 2**20).append(b"x\n")
    assert not target.exists()


def test_the_directory_stays_within_its_bound_and_the_newest_lines_stay(tmp_path) -> None:
    most, line = 1600, b"x" * 49 + b"\n"
    segments = Segments(tmp_path, "a", most)
    for number in range(500):
        segments.append(line)
        for at, path in enumerate(sorted(tmp_path.iterdir())):
            os.utime(path, (number * 1000 + at, number * 1000 + at))
        assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= most
    names = sorted(path.name for path in tmp_path.iterdir())
    assert len(names) >= 14
    assert names[-1] == "a-000250.jsonl"


def test_a_file_deleted_under_a_replica_is_begun_again(tmp_path) -> None:
    segments = Segments(tmp_path, "a", 2**20)
    segments.append(b"1\n")
    next(tmp_path.iterdir()).unlink()
    segments.append(b"2\n")
    assert next(tmp_path.iterdir()).read_bytes() == b"2\n"
