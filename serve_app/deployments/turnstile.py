"""``Turnstile``: lets one through in a turn of the event loop, so that work that begins together does not move in step.

The first step of a program (its prompt, its request) takes a millisecond of CPU, and only a later turn of the loop puts
the request on the wire. Begun in one turn, the first of 32 requests would leave after the last one's step; their
answers would come back together, and the whole batch would go on as a wave in which every part of the system waits for
every other. A wave is cheaper, though, for its messages are shared: a machine, or a loop, that is ``BUSY`` has no use
for a turnstile.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

BUSY: Final = 0.75
"""Share of the CPU, the machine's or the loop's one core, from which on throughput counts for more than moving out of
step."""


class Turnstile:
    """For the tasks of one event loop; in the order in which they come."""

    def __init__(self) -> None:
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._is_taken = False

    async def passed(self) -> None:
        """Go on: at once if nobody did in this turn of the loop, else in a turn of one's own."""
        loop = asyncio.get_running_loop()
        if self._is_taken:
            place: asyncio.Future[None] = loop.create_future()
            self._waiting.append(place)
            await place
        else:
            self._is_taken = True
            loop.call_soon(self._next)

    def _next(self) -> None:
        while self._waiting:
            place = self._waiting.popleft()
            if not place.done():  # else its task was cancelled
                place.set_result(None)
                asyncio.get_running_loop().call_soon(self._next)
                return
        self._is_taken = False
