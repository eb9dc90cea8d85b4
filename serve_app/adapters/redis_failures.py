"""What went wrong with a Redis operation, in one word for a counter, and whether the server is to be left alone.

    timeout      no reply in time                              down
    connection   refused, reset, closed, no free connection    down
    auth         user or password refused                      down
    loading      the server still reads its data               down
    protocol     the reply is no Redis reply                   down
    oom          no memory for a write                         reads go on
    read_only    a replica                                     reads go on
    denied       the user may not run the command              reads go on
    wrong_type   a key holds something that is not ours        reads go on
    moved        a cluster, and the URL says one server        reads go on
    refused      any other error reply                         reads go on
    unexpected   anything else                                 down

An error reply comes at once, so it costs no caller any time, and what the server refuses for one key or for writes it
may well do for others.
"""

from __future__ import annotations

from typing import Final

from redis import exceptions as errors

_REASONS: Final[tuple[tuple[type[Exception] | tuple[type[Exception], ...], str], ...]] = (
    (TimeoutError, "timeout"),
    (errors.TimeoutError, "timeout"),
    ((errors.AuthenticationError, errors.AuthorizationError), "auth"),
    (errors.BusyLoadingError, "loading"),
    (errors.InvalidResponse, "protocol"),
    ((errors.ConnectionError, OSError), "connection"),
    (errors.OutOfMemoryError, "oom"),
    (errors.ReadOnlyError, "read_only"),
    (errors.NoPermissionError, "denied"),
    ((errors.AskError, errors.ClusterError, errors.ClusterCrossSlotError), "moved"),
)


class BadReply(Exception):
    """A reply that is well-formed and still not what the command answers; never raised to a caller.

    Args:
        reason: one of the words above.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def reason_of(error: BaseException) -> str:
    """One of the words above."""
    if isinstance(error, BadReply):
        return error.reason
    if isinstance(error, errors.ConnectionError) and isinstance(error.__cause__, errors.RedisError):
        return reason_of(error.__cause__)  # what went wrong while connecting
    for kind, reason in _REASONS:
        if isinstance(error, kind):
            return reason
    if isinstance(error, errors.ResponseError):
        return "wrong_type" if str(error).startswith("WRONGTYPE") else "refused"
    return "unexpected"


def takes_down(error: BaseException) -> bool:
    """Whether to leave the server alone for a while."""
    if isinstance(error, BadReply):
        return error.reason == "protocol"
    return not isinstance(error, errors.ResponseError)
