"""Counts what happened to every request, by model."""

from __future__ import annotations

from collections import Counter
from typing import Any


class _Counts:
    def __init__(self) -> None:
        self.requests = 0
        self.in_flight = 0
        self.max_in_flight = 0
        self.outcomes: Counter[str] = Counter()

    def began(self) -> None:
        self.requests += 1
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)

    def ended(self, outcome: str) -> None:
        self.in_flight -= 1
        self.outcomes[outcome] += 1

    def reset(self) -> None:
        self.requests = self.max_in_flight = self.in_flight
        self.outcomes.clear()

    def report(self) -> dict[str, Any]:
        return {
            "requests": self.requests,
            "in_flight": self.in_flight,
            "max_in_flight": self.max_in_flight,
            "cancelled": self.outcomes["cancelled"],
            "outcomes": dict(self.outcomes),
        }


class Stats:
    """Requests by model and outcome.

    An outcome is ``ok``, ``cancelled`` (the client left first), ``rate_limited``, ``bad_request``, ``context_length``,
    or the kind of the fault that happened (``status_503``, ``reset``, …).
    """

    def __init__(self) -> None:
        self._all = _Counts()
        self._models: dict[str, _Counts] = {}

    def began(self, model: str) -> None:
        """A request for the model has arrived."""
        self._all.began()
        self._of(model).began()

    def ended(self, model: str, outcome: str) -> None:
        """That request is over."""
        self._all.ended(outcome)
        self._of(model).ended(outcome)

    def reset(self) -> None:
        """Start counting anew; requests in flight stay counted."""
        for counts in (self._all, *self._models.values()):
            counts.reset()

    def report(self) -> dict[str, Any]:
        """The totals, and the same by model."""
        return {**self._all.report(), "models": {model: counts.report() for model, counts in self._models.items()}}

    def _of(self, model: str) -> _Counts:
        return self._models.setdefault(model, _Counts())
