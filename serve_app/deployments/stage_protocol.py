"""What a stage and who asks it say to each other over a channel.

The caller sends ``Batch`` and ``Leave``; the stage answers each batch in chunks. A stage that
goes says ``BYE``; the caller says it back and asks nothing more here, and the stage closes once all is answered.

Calls and results are packed for themselves: what one side cannot read, as while an application is replaced by one of
other types, ends its batch and not the channel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from serve_app.adapters.channel import pack, unpack
from serve_app.messages import Call, Result

BYE: Final = None


class Batch(NamedTuple):
    """Calls to answer; ``number`` is the caller's own, unique on the channel."""

    number: int
    calls: Sequence[Call]

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """How it is pickled."""
        return _read_batch, (self.number, pack(self.calls))


class Unreadable(NamedTuple):
    """What a batch is to a stage that cannot read its calls."""

    number: int
    why: str


class Leave(NamedTuple):
    """Calls that nobody waits for any more."""

    ids: Sequence[str]


class Chunk(NamedTuple):
    """Results of a batch; after one that ``is_last`` there are none, and what is unanswered is lost."""

    number: int
    results: Sequence[Result]
    is_last: bool = False

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """How it is pickled."""
        return _read_chunk, (self.number, pack(self.results), self.is_last)


def _read_batch(number: int, calls: bytes) -> Batch | Unreadable:
    try:
        return Batch(number, unpack(calls))
    except Exception as error:  # noqa: BLE001 - whatever a value of another version is read with; the stage says so
        return Unreadable(number, type(error).__name__)


def _read_chunk(number: int, results: bytes, is_last: bool) -> Chunk:  # noqa: FBT001 - pickle passes no names
    try:
        return Chunk(number, unpack(results), is_last)
    except Exception:  # noqa: BLE001 - likewise; its calls are lost
        return Chunk(number, (), is_last=True)
