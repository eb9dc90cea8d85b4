"""The log of a run: what Ray and the replicas print, in a file of bounded size."""

from __future__ import annotations

import errno
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Final

from serve_app.errors import ConfigError

MAX_BYTES: Final = 20 * 2**20
"""Size at which the file becomes ``<name>.1`` and a new one begins."""
TAIL_LINES: Final = 15

_CHUNK: Final = 64 * 1024


@dataclass
class LogFile:
    """Copies a child's output into ``path``, and to standard output when ``echo`` is set."""

    path: Path
    echo: bool
    _file: IO[bytes]
    _is_broken: bool = False
    _copied: threading.Event = field(default_factory=threading.Event)

    @classmethod
    @contextmanager
    def open(cls, path: Path, *, echo: bool) -> Iterator[LogFile]:
        """A new log; the one of the run before stays as ``<name>.1``.

        Raises:
            ConfigError: it cannot be written.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            log = cls(path, echo, _begin(path))
        except OSError as error:
            raise ConfigError([f"the log {path} cannot be written: {error.strerror or error}"]) from None
        try:
            yield log
        finally:
            log._file.close()

    def copy(self, source: IO[bytes]) -> None:
        """Copy until ``source`` ends, also when nothing can be written: the child would wait for its reader.

        Chunks, not lines, so a busy service's log costs little.
        """
        try:
            while chunk := os.read(source.fileno(), _CHUNK):
                try:
                    self._write(chunk)
                except OSError as error:
                    self._complain(error)
        finally:
            self._copied.set()

    def _complain(self, error: OSError) -> None:
        if not self._is_broken:
            self._is_broken = True
            sys.stderr.write(f"The log {self.path} is incomplete: {error.strerror or error}\n")

    def tail(self, timeout_s: float = 2.0) -> list[str]:
        """The last lines that are not empty, once the child's output has ended or ``timeout_s`` has passed."""
        self._copied.wait(timeout_s)
        text = self.path.read_bytes()[-_CHUNK:].decode(errors="replace")
        return [line for line in text.splitlines() if line.strip()][-TAIL_LINES:]

    def _write(self, chunk: bytes) -> None:
        if self.echo:
            self._show(chunk)
        if self._file.closed:  # the run is over; what ends late has no one to tell
            return
        self._file.write(chunk)
        if self._file.tell() > MAX_BYTES:
            self._file.close()
            self._file = _begin(self.path)

    def _show(self, chunk: bytes) -> None:
        try:
            sys.stdout.buffer.write(chunk)
            sys.stdout.flush()
        except OSError as error:  # who reads slowly misses a part, who went away (`switchyard run -v | head`) all
            self.echo = isinstance(error, BlockingIOError)


def _begin(path: Path) -> IO[bytes]:
    """A new file; the old one is kept, and so is a link to it. What is no file, as /dev/null, stays where it is."""
    if path.exists():
        if not path.is_file():
            raise OSError(errno.EINVAL, "it is not a file")
        old = path.resolve()
        old.replace(old.with_name(old.name + ".1"))
    return path.open("wb", buffering=0)  # nothing is left to be written when it is closed
