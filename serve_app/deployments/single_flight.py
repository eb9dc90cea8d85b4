"""Identical work in flight is done once, and everyone who asked gets its result."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from serve_app.deployments.call_context import detached

T = TypeVar("T")


@dataclass(slots=True)
class _Flight(Generic[T]):
    task: asyncio.Task[T]
    group: str
    waiting: int = 0


class SingleFlight(Generic[T]):
    """Request coalescing for one event loop.

    The work belongs to all who wait for it: one who leaves hurts nobody, and when the last one leaves it is cancelled.
    """

    def __init__(self) -> None:
        self._flights: dict[str, _Flight[T]] = {}

    def __len__(self) -> int:
        return len(self._flights)

    def __contains__(self, key: str) -> bool:
        return key in self._flights

    async def do(self, key: str, make: Callable[[], Coroutine[Any, Any, T]], *, group: str = "") -> tuple[T, bool]:
        """The result of ``make``, and whether somebody else had started it."""
        flight = self._flights.get(key)
        joined = flight is not None and not flight.task.done()  # one that is done lands in a later turn of the loop
        if flight is None or not joined:
            flight = self._start(key, make, group)
        flight.waiting += 1
        try:
            return await asyncio.shield(flight.task), joined
        finally:
            flight.waiting -= 1
            if not flight.waiting and not flight.task.done():
                self._land(key, flight)
                flight.task.cancel()

    def close_group(self, group: str) -> None:
        """Let nobody join what of that group is in flight; those who wait for it already get it."""
        for key in [key for key, flight in self._flights.items() if flight.group == group]:
            del self._flights[key]

    def _start(self, key: str, make: Callable[[], Coroutine[Any, Any, T]], group: str) -> _Flight[T]:
        flight = self._flights[key] = _Flight(asyncio.create_task(make(), context=detached()), group)
        flight.task.add_done_callback(lambda _: self._land(key, flight))
        return flight

    def _land(self, key: str, flight: _Flight[T]) -> None:
        """Forget a flight; one that was cancelled ends later than the next of its key may begin."""
        if self._flights.get(key) is flight:
            del self._flights[key]
