"""Calls and callers' verdicts written down as JSON lines, off the event loop, in a bounded directory.

    <path>/<program>/<replica>-<n>.jsonl        mode 0600, each replica its own files

A full or missing disk loses lines, which is counted and logged; no call waits for it.
``serve_app.trainset`` reads what stands here.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Final

from serve_app.config import RecordConfig
from serve_app.core.clock import Clock

log = logging.getLogger("switchyard.record")

MAX_WAITING: Final = 256
"""Most lines that wait to be written; further ones are dropped and counted."""
SEGMENTS: Final = 16
"""A replica begins a new file when the old one reached this share of ``max_bytes``."""
CLOSE_S: Final = 2.0
"""Seconds a replica that ends waits for its last lines."""
REDACTED: Final = "[redacted]"
COMMENT: Final = "comment"
"""What ``redact`` calls the words a caller writes with a verdict."""

Line = Mapping[str, Any]


class CallRecord:
    """One program's record in one replica.

    Args:
        program: its name.
        config: where, how much and what to leave out.
        source: unique name of the replica.
        lost: told how many lines were lost, and why: ``busy`` or ``unwritable``.
        unix_clock: seconds since 1970.
    """

    def __init__(
        self,
        program: str,
        config: RecordConfig,
        source: str,
        lost: Callable[[str, int], None],
        *,
        unix_clock: Clock = time.time,
    ) -> None:
        self.share = config.share
        self._redact = frozenset(config.redact)
        self._segments = Segments(Path(config.path) / program, source, config.max_bytes)
        self._lost = lost
        self._unix_clock = unix_clock
        self._program = program
        self._is_failing = False
        self._waiting: deque[Line] = deque()
        self._writer: asyncio.Task[None] | None = None

    def write(self, line: Line) -> None:
        """Write a line soon, with the time."""
        if len(self._waiting) >= MAX_WAITING:
            self._lost("busy", 1)
            return
        self._waiting.append({"at": round(self._unix_clock(), 3), **line})
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._drain())

    async def aclose(self) -> None:
        """Wait a moment for what is still to be written."""
        if self._writer is not None:
            await asyncio.wait([self._writer], timeout=CLOSE_S)

    async def _drain(self) -> None:
        while self._waiting:
            lines = list(self._waiting)
            self._waiting.clear()
            error = await asyncio.to_thread(self._append, lines)
            if error is not None and not self._is_failing:
                log.error("record.unwritable", extra={"program": self._program, "why": os.strerror(error.errno or 0)})
            self._is_failing = error is not None

    def _append(self, lines: list[Line]) -> OSError | None:
        """Write what can be written; the last error, after telling how many lines it cost."""
        last = None
        for line in lines:
            text = json.dumps(redacted(line, self._redact), default=str)
            try:
                self._segments.append(text.encode() + b"\n")
            except OSError as error:
                last = error
                self._lost("unwritable", 1)
        return last


def redacted(line: Line, names: Collection[str]) -> Line:
    """The line without the values of these inputs and outputs, nor its comment if it is among them."""
    return {key: _without(key, value, names) for key, value in line.items()}


def _without(key: str, value: object, names: Collection[str]) -> object:
    if key == COMMENT:
        return REDACTED if value and COMMENT in names else value
    if key in ("inputs", "outputs") and isinstance(value, Mapping):
        return {name: REDACTED if name in names else item for name, item in value.items()}
    return value


class Segments:
    """The files of one replica in a program's directory, and the bound on that directory.

    Files are opened anew for each batch, so one that was deleted under the replica is simply begun again.

    Args:
        directory: of the program.
        source: unique name of the replica.
        max_bytes: of all files in the directory together.
    """

    def __init__(self, directory: Path, source: str, max_bytes: int) -> None:
        self._directory = directory
        self._source = source
        self._max_bytes = max_bytes
        self._segment_bytes = max_bytes // SEGMENTS
        self._number = 0
        self._size = 0

    def append(self, data: bytes) -> None:
        """Write a line; the oldest files go when there is no more room.

        Raises:
            OSError: it could not be written.
        """
        if not self._size or self._size + len(data) > self._segment_bytes:
            self._begin()
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            file = os.open(self._path(), flags, 0o600)
            try:
                self._size += len(data)
                while data:
                    data = data[os.write(file, data) :]
            finally:
                os.close(file)
        except OSError:
            self._size = 0  # a line may be cut short: the next one begins another file
            self._drop_empty()
            raise

    def _path(self) -> Path:
        return self._directory / f"{self._source}-{self._number:06d}.jsonl"

    def _begin(self) -> None:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._number += 1
        self._size = 0
        self._make_room()

    def _drop_empty(self) -> None:
        """Leave no file behind that nothing could be written to: a full disk would gather one for each lost line."""
        with contextlib.suppress(OSError):
            if not self._path().lstat().st_size:
                self._path().unlink()

    def _make_room(self) -> None:
        """Delete the oldest files until a new one fits; other replicas may do the same at the same time."""
        found = sorted((stat.st_mtime, stat.st_size, path) for path, stat in _files(self._directory))
        surplus = sum(size for _, size, _ in found) + self._segment_bytes - self._max_bytes
        for _, size, path in found:
            if surplus <= 0:
                return
            path.unlink(missing_ok=True)
            surplus -= size


def _files(directory: Path) -> list[tuple[Path, os.stat_result]]:
    found = []
    for path in directory.glob("*.jsonl"):
        try:
            found.append((path, path.stat()))
        except FileNotFoundError:  # another replica made room
            continue
    return found
