"""Whether a call waits for an answer that is being made for another one, and what that one's failure says to it.

A flight is an answer on its way; who started it, leads it.

    led                       a call
    at a worse priority       leads a flight of its own: it would wait at the other's place in every queue
    with much more time       leads a flight of its own: the next model, should the first one hang, would come too late
    otherwise                 joins it

    its flight failed         a call that had joined
    for want of time or room  asks in its own right: these are not its own
    ... as a model's replica
    said that has no room     shares it, unless it goes before the leader or has much more time: else a herd would ask
                              there one by one
    in a way that may pass,
    and was led with much
    less time than it has     asks in its own right: the flight was cut short, or tried fewer models
    otherwise                 shares the failure

Calls with one deadline that arrive within seconds of each other have about the same time left, and are one flight.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from serve_app.errors import DeadlineExceeded, Overloaded, RateLimited, SwitchyardError
from serve_app.messages import PRIORITIES, Priority

MUCH: Final = 1.5
"""Times as much is much more.

A first model of two that hangs has half of its call's time (``serve_app.core.deadline``), so of one who joined with no
less than two thirds of that time a quarter is left for the second model.
"""


class Terms(NamedTuple):
    """On what terms a model is asked.

    Attributes:
        priority: whom it goes before.
        asked_at: when, by the clock.
        ends_at: when the answer is worth nothing any more.
    """

    priority: Priority
    asked_at: float
    ends_at: float

    @property
    def time_s(self) -> float:
        """Seconds that it had when it was asked."""
        return self.ends_at - self.asked_at

    def may_join(self, led: Terms, *, again: bool = False) -> bool:
        """Whether a call of these terms waits for an answer that is made on those it is ``led`` on.

        Args:
            led: the flight's.
            again: whether the call has joined a flight that failed it; it joins none with much less time any more.
        """
        if PRIORITIES.index(led.priority) > PRIORITIES.index(self.priority):
            return False
        return led.ends_at - self.asked_at <= MUCH * self.time_s and not (again and self._has_much_more_than(led))

    def asks_after(self, error: SwitchyardError, led: Terms, *, was_tried: bool = False) -> bool:
        """Whether a call of these terms, which had joined a flight, asks in its own right.

        Args:
            error: that the flight ended with.
            led: the terms that it was led on.
            was_tried: whether models were asked for it, or their replicas.
        """
        if isinstance(error, DeadlineExceeded) or (type(error) is Overloaded and not was_tried):
            return True
        if type(error) is Overloaded:
            goes_before = PRIORITIES.index(self.priority) < PRIORITIES.index(led.priority)
            return goes_before or self._has_much_more_than(led)
        is_everybodys = isinstance(error, RateLimited) or not error.retryable
        return not is_everybodys and self._has_much_more_than(led)

    def _has_much_more_than(self, led: Terms) -> bool:
        return self.time_s > MUCH * led.time_s
