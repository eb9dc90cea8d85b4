"""Identical work in flight is done once, and everyone who asked gets its result."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from serve_app.core.flight_terms import Terms
from serve_app.deployments.call_context import detached

T = TypeVar("T")
Make = Callable[[bool], Coroutine[Any, Any, T]]
"""Does the work; is told whether the same is being done on other terms."""


@dataclass(slots=True, eq=False)
class _Flight(Generic[T]):
    """One run of the work, and what its waiters get: its own result, or that of one beside it, and who made that."""

    key: str
    group: str
    terms: Terms
    beside: list[_Flight[T]]
    task: asyncio.Task[T]
    landed: asyncio.Future[tuple[T, _Flight[T]]] = field(default_factory=asyncio.Future)
    waiting: int = 0


class SingleFlight(Generic[T]):
    """Request coalescing for one event loop.

    The work belongs to all who wait for it: one who leaves hurts nobody, and when the last one leaves it is cancelled.
    Whom no flight suits starts one beside those there are, and who comes later joins the last one that suits. The first
    result that serves all is everybody's, and ends the others of its key; any other belongs to its own flight alone.

    Args:
        serves_all: whether a result is as good for those who wait for another flight of the same key.
    """

    def __init__(self, serves_all: Callable[[T], bool]) -> None:
        self._serves_all = serves_all
        self._flights: dict[str, list[_Flight[T]]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._flights.values()))

    def __contains__(self, key: str) -> bool:
        return key in self._flights

    async def do(
        self, key: str, make: Make[T], terms: Terms, *, may_join: Callable[[Terms], bool], group: str = ""
    ) -> tuple[T, Terms | None]:
        """The result of ``make``, and on what terms somebody else had it made; ``None`` for one's own."""
        # One that is done lands in a later turn of the loop.
        running = [flight for flight in self._flights.get(key, ()) if not flight.task.done()]
        suits = next((flight for flight in reversed(running) if may_join(flight.terms)), None)
        flight = suits or self._start(key, group, terms, make(bool(running)))
        flight.waiting += 1
        try:
            result, maker = await asyncio.shield(flight.landed)
            return result, maker.terms if suits or maker is not flight else None
        finally:
            flight.waiting -= 1
            if not flight.waiting and not flight.task.done():
                self._land(flight)
                flight.task.cancel()

    def close_group(self, group: str) -> None:
        """Let nobody join what of that group is in flight; those who wait for it already get it."""
        for key in [key for key, flights in self._flights.items() if flights[0].group == group]:
            del self._flights[key]

    def _start(self, key: str, group: str, terms: Terms, work: Coroutine[Any, Any, T]) -> _Flight[T]:
        beside = self._flights.setdefault(key, [])
        flight = _Flight(key, group, terms, beside, asyncio.create_task(work, context=detached()))
        beside.append(flight)
        flight.task.add_done_callback(lambda _: self._ended(flight))
        return flight

    def _ended(self, flight: _Flight[T]) -> None:
        self._land(flight)
        error = None if flight.task.cancelled() else flight.task.exception()
        if flight.landed.done():  # another's result was everybody's
            return
        if flight.task.cancelled():
            flight.landed.cancel()
        elif error:
            flight.landed.set_exception(error)
        else:
            self._deliver(flight, flight.task.result())

    def _deliver(self, flight: _Flight[T], result: T) -> None:
        flight.landed.set_result((result, flight))
        if self._serves_all(result):
            for other in tuple(flight.beside):
                self._land(other)
                other.landed.set_result((result, flight))  # its waiters leave, which ends its work

    def _land(self, flight: _Flight[T]) -> None:
        """Let nobody join a flight any more; one that was cancelled ends later than the next of its key may begin."""
        if flight in flight.beside:
            flight.beside.remove(flight)
        if not flight.beside and self._flights.get(flight.key) is flight.beside:
            del self._flights[flight.key]
