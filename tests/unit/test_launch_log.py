"""The log of a run never stops the run, and takes nothing that is not a log."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from serve_app.errors import ConfigError
from serve_app.launch_log import LogFile


def test_what_is_no_file_is_refused_and_stays_where_it_is(tmp_path: Path) -> None:
    path = tmp_path / "device"
    os.mkfifo(path)
    with pytest.raises(ConfigError) as refused, LogFile.open(path, echo=False):
        pass
    assert refused.value.problems == (f"the log {path} cannot be written: it is not a file",)
    assert path.is_fifo()
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_to_a_log_stays_a_link(tmp_path: Path) -> None:
    target, link = tmp_path / "target.log", tmp_path / "serve.log"
    target.write_bytes(b"before")
    link.symlink_to(target)
    with LogFile.open(link, echo=False):
        assert link.is_symlink()
    assert (tmp_path / "target.log.1").read_bytes() == b"before"


def rest_of(log: LogFile, content: bytes) -> bytes:
    """What is left unread of ``content`` once it was copied."""
    with tempfile.TemporaryFile(buffering=0) as source:
        source.write(content)
        source.seek(0)
        log.copy(source)
        return source.read()


def test_a_log_that_breaks_is_told_once_and_the_child_is_read_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("serve_app.launch_log.MAX_BYTES", 10)
    path = tmp_path / "gone" / "serve.log"
    with LogFile.open(path, echo=False) as log:
        path.unlink()
        path.parent.rmdir()
        assert rest_of(log, b"x" * 300_000) == b""
    assert capsys.readouterr().err == f"The log {path} is incomplete: No such file or directory\n"


@pytest.mark.parametrize(("error", "goes_on"), [(BrokenPipeError, False), (BlockingIOError, True)])
def test_a_reader_of_the_output_that_leaves_or_is_slow_does_not_end_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[OSError], goes_on: bool
) -> None:
    def leave(_: bytes) -> None:
        raise error

    monkeypatch.setattr(sys, "stdout", SimpleNamespace(buffer=SimpleNamespace(write=leave)))
    path = tmp_path / "serve.log"
    with LogFile.open(path, echo=True) as log:
        assert rest_of(log, b"x" * 300_000) == b""
        assert log.echo is goes_on
    assert path.read_bytes() == b"x" * 300_000
