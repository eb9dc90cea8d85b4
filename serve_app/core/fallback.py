"""Which model is asked next for one call, given how the attempts before ended.

``serve_app.core.outcomes`` says what each outcome leaves: any model, only those with a larger context window, the
next one once, or none. A call ends when nothing is left, or after ``max_attempts``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from serve_app.core.outcomes import MEANINGS, NextRoute
from serve_app.messages import Outcome


class FallbackPlan:
    """The models still worth asking for one call, in order.

    Args:
        models: the route.
        context_windows: tokens each model takes.
        max_attempts: most models asked.
    """

    def __init__(self, models: Sequence[str], context_windows: Mapping[str, int], max_attempts: int) -> None:
        self._left = list(models)
        self._windows = context_windows
        self._max_attempts = max_attempts
        self._attempts = 0
        self._escalated = False

    @property
    def models(self) -> tuple[str, ...]:
        """What may be asked now, best first; empty when the call is at its end."""
        return tuple(self._left) if self._attempts < self._max_attempts else ()

    def attempts_left(self, is_up: Callable[[str], bool] = lambda _: True) -> int:
        """Attempts that may still begin, at models that are up."""
        return min(sum(map(is_up, self._left)), self._max_attempts - self._attempts)

    def skip(self, model: str) -> None:
        """Leave a model out without having asked it."""
        self._left.remove(model)

    def begin(self, model: str) -> None:
        """Count an attempt at this model, which is not asked again."""
        self._attempts += 1
        self._left.remove(model)

    def record(self, model: str, outcome: Outcome) -> None:
        """Keep what the outcome of an attempt leaves; one that never ran is none."""
        self._attempts -= outcome is Outcome.REJECTED
        match MEANINGS[outcome].next_route:
            case NextRoute.NONE:
                self._left.clear()
            case NextRoute.LARGER_WINDOW:
                window = self._windows[model]
                self._left = [name for name in self._left if self._windows[name] > window]
            case NextRoute.ONCE if self._escalated:
                self._left.clear()
            case NextRoute.ONCE:
                self._escalated = True
            case NextRoute.ANY:
                pass
