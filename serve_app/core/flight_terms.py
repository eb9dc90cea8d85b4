"""Whether a call waits for an answer that is being made for another one.

A flight is an answer on its way; who started it, leads it.

    led at              a call
    a worse priority    leads a flight of its own: it would wait at the other's place in every queue
    any other           joins it
"""

from __future__ import annotations

from typing import NamedTuple

from serve_app.messages import PRIORITIES, Priority


class Terms(NamedTuple):
    """On what terms a model is asked.

    Attributes:
        priority: whom it goes before.
    """

    priority: Priority

    def may_join(self, led: Terms) -> bool:
        """Whether a call of these terms waits for an answer that is made on those it is ``led`` on."""
        return PRIORITIES.index(led.priority) <= PRIORITIES.index(self.priority)
