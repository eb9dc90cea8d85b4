r"""The output of a bulk run: a JSON Lines file that says which rows are done, so that a run can go on where it ended.

Either ``{"row": 7, "hash": "…", "outputs": {…}, "meta": {…}}`` or ``{"row": 7, "hash": "…", "error": {"code": "…",
"detail": "…"}}``, in the order in which calls finish. A line is written whole, with its ``\n`` last: one without was
torn by the end of a run and is taken away.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from serve_app.bulk.attempt import Answer, Failure
from serve_app.bulk.rows import Row
from serve_app.errors import ConfigError

try:
    import fcntl
except ImportError:  # Windows: two runs on one output are not noticed there
    fcntl = None  # type: ignore[assignment]


@dataclass(frozen=True)
class Done:
    """A line of the output: which row it is of, and whether it holds an answer."""

    row: int
    hash: str
    is_answer: bool
    cost_usd: float = 0.0


class Output:
    """An open output file; ``append`` adds to it."""

    def __init__(self, file: IO[bytes], path: Path) -> None:
        self._file = file
        self._path = path

    @classmethod
    @contextmanager
    def open(cls, path: Path) -> Iterator[Output]:
        """The output at ``path``, made when there is none; no other run can open it meanwhile.

        A block that raises before anything is written leaves no file behind that was not there.

        Raises:
            ConfigError: it cannot be opened, another run writes it, or it holds something else.
        """
        is_new = not path.exists()
        try:
            output = cls(path.open("a+b"), path)
        except OSError as error:
            raise ConfigError([f"{path}: {error.strerror or error}"]) from error
        try:
            output._lock()
            output._must_be_there()
            with output._gone_when_empty() if is_new else nullcontext():
                output._repair()
                yield output
        finally:
            output._file.close()

    def done(self) -> Iterator[Done]:
        """What the file holds.

        Raises:
            ConfigError: a line is not of a bulk run; it names the line.
        """
        self._file.seek(0)
        for number, line in enumerate(self._file, 1):
            yield self._parsed(number, line)

    def append(self, row: Row, outcome: Answer | Failure) -> None:
        """Write what became of a row; whoever reads the file sees it at once."""
        line: dict[str, Any] = {"row": row.number, "hash": row.hash}
        if isinstance(outcome, Answer):
            line |= {"outputs": outcome.outputs, "meta": outcome.meta}
        else:
            line |= {"error": {"code": outcome.code, "detail": outcome.detail}}
        self._file.write(_to_line(line))
        self._file.flush()

    def clear(self) -> None:
        """Forget what the file holds."""
        self._file.truncate(0)

    def drop_failed(self) -> None:
        """Take away the lines with errors, so that their rows are asked again."""
        done = list(self.done())
        self._file.seek(0)
        kept = [line for line, found in zip(self._file, done, strict=True) if found.is_answer]
        if len(kept) < len(done):
            self._replace(kept)

    @contextmanager
    def _gone_when_empty(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            if os.fstat(self._file.fileno()).st_size == 0:
                with suppress(PermissionError):  # Windows removes no file that is open
                    self._path.unlink(missing_ok=True)
            raise

    def _repair(self) -> None:
        """Cut a torn last line off."""
        self._file.seek(0)
        whole = 0
        for number, line in enumerate(self._file, 1):
            if number == 1 and line.endswith(b"\n"):
                self._parsed(number, line)
            whole += len(line) if line.endswith(b"\n") else 0
        size = self._file.tell()
        if whole == 0 and size and not _is_torn_first_line(self._file):
            raise self._foreign(1)
        if whole < size:
            self._file.truncate(whole)

    def _replace(self, lines: list[bytes]) -> None:
        """Write beside, then rename, so that no moment is without the answers."""
        beside = self._path.with_name(f"{self._path.name}.new")
        beside.unlink(missing_ok=True)
        self._file.close()
        self._file = beside.open("a+b")
        self._lock()
        self._file.writelines(lines)
        self._file.flush()
        os.fsync(self._file.fileno())
        beside.replace(self._path)

    def _lock(self) -> None:
        if fcntl is None:
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise self._taken() from None

    def _must_be_there(self) -> None:
        """Another run may have removed or replaced the file between its being opened and locked here."""
        if not self._path.exists() or not os.path.samestat(self._path.stat(), os.fstat(self._file.fileno())):
            raise self._taken()

    def _taken(self) -> ConfigError:
        return ConfigError([f"{self._path}: another run is writing it"])

    def _parsed(self, number: int, line: bytes) -> Done:
        try:
            value = json.loads(line)
            row, digest = value["row"], value["hash"]
            answers = "outputs" in value
            if not isinstance(row, int) or not isinstance(digest, str) or answers == ("error" in value):
                raise self._foreign(number)
            return Done(row, digest, answers, _cost_usd(value.get("meta")))
        except (ValueError, KeyError, TypeError):
            raise self._foreign(number) from None

    def _foreign(self, number: int) -> ConfigError:
        return ConfigError([f"{self._path}:{number}: not a line of a bulk run; it is left as it is"])


def _is_torn_first_line(file: IO[bytes]) -> bool:
    """Whether a file without a whole line may be the beginning of ours."""
    file.seek(0)
    start = b'{"row": '
    return start.startswith(head) if len(head := file.read(len(start))) < len(start) else head == start


def _cost_usd(meta: Any) -> float:  # noqa: ANN401 - whatever JSON can hold
    cost_usd = meta.get("cost_usd") if isinstance(meta, Mapping) else None
    return float(cost_usd) if isinstance(cost_usd, (int, float)) else 0.0


def _to_line(line: Mapping[str, Any]) -> bytes:
    try:
        return json.dumps(line, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:  # half of a surrogate pair, which only escapes can hold
        return json.dumps(line).encode() + b"\n"
