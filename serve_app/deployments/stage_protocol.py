"""What a stage and who asks it say to each other over a channel.

The caller sends ``Batch`` and ``Leave``; the stage answers each batch in chunks. A stage that
goes says ``BYE``; the caller says it back and asks nothing more here, and the stage closes once all is answered.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from serve_app.messages import Call, Result

BYE: Final = None


class Batch(NamedTuple):
    """Calls to answer; ``number`` is the caller's own, unique on the channel."""

    number: int
    calls: Sequence[Call]


class Leave(NamedTuple):
    """Calls that nobody waits for any more."""

    ids: Sequence[str]


class Chunk(NamedTuple):
    """Results of a batch; after one that ``is_last`` there are none, and what is unanswered is lost."""

    number: int
    results: Sequence[Result]
    is_last: bool = False
