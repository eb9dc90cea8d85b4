"""Whose call the running code works for, where it must not know whose request it is."""

from __future__ import annotations

import asyncio
import contextvars

from serve_app.adapters.json_log import about_call, call_in_hand
from serve_app.adapters.tracing import current_trace, join


def detached() -> contextvars.Context:
    """A context for work that outlives the request it began with: it knows the call's id and trace, and nothing else.

    Ray keeps the request in the context and cancels what was begun in it together with the request.
    """
    context = contextvars.Context()
    context.run(about_call, call_in_hand())
    context.run(join, current_trace())
    return context


def is_left() -> bool:
    """Whether the running task itself is being cancelled; else a ``CancelledError`` only tells of something else's end.

    Ray raises one out of a stream whose work was cancelled in the replica.
    """
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0
