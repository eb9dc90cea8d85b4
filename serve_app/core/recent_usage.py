"""What calls have lately cost and taken, by program and model: the averages that routing goes by.

Exponentially weighted: the n-th answer moves an average by ``max(1/n, WEIGHT)`` of the difference, so the first
answers count in full and old ones fade. What is expected also fades with time, back to its prior, halving its distance
every ``HALF_LIFE_S``: a model left alone because it was slow, or its answers long and so dear, is looked at again,
though no call tells.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from serve_app.messages import Usage

PRIOR_OUTPUT_TOKENS: Final = 256
"""Output tokens a call is expected to take before any has been seen."""
PRIOR_OVERHEAD_TOKENS: Final = 0.0
"""Input tokens beyond its inputs that it is expected to take."""
WEIGHT: Final = 0.2
HALF_LIFE_S: Final = 300.0
"""Seconds without an answer that halve the distance of what is expected to its prior."""
MAX_PAIRS: Final = 4096
"""Most (program, model) pairs remembered; the one first seen goes first."""


@dataclass(frozen=True, slots=True)
class Expectation:
    """What the next call will take, as far as recent ones tell.

    Attributes:
        output_tokens: of all its LM calls together.
        latency_s: from start to answer.
        overhead_tokens: input tokens beyond the inputs' own estimate: instructions, demos, further LM calls.
    """

    output_tokens: float
    latency_s: float
    overhead_tokens: float


@dataclass(slots=True)
class _Averages:
    count: int = 0
    output_tokens: float = 0.0
    overhead_tokens: float = 0.0
    latency_s: float = 0.0
    ran_s: float = 0.0
    seen_at: float = 0.0

    def add(self, output_tokens: float, overhead_tokens: float, latency_s: float, ran_s: float, now: float) -> None:
        self.count += 1
        weight = max(1 / self.count, WEIGHT)
        self.output_tokens += (output_tokens - self.output_tokens) * weight
        self.overhead_tokens += (overhead_tokens - self.overhead_tokens) * weight
        self.latency_s += (latency_s - self.latency_s) * weight
        self.ran_s += (ran_s - self.ran_s) * weight
        self.seen_at = now


class RecentUsage:
    """Learns from successful answers; bounded, pure arithmetic over an injected monotonic ``clock``."""

    def __init__(self, *, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._pairs: dict[tuple[str, str], _Averages] = {}

    def observe(
        self,
        program: str,
        model: str,
        usage: Usage,
        latency_s: float,
        *,
        estimated_input_tokens: int,
        ran_s: float | None = None,
    ) -> None:
        """Count one successful attempt; failed ones say nothing about what an answer takes.

        ``ran_s`` is the part of ``latency_s`` that its program ran, if that is known.
        """
        averages = self._pairs.get((program, model))
        if averages is None:
            if len(self._pairs) >= MAX_PAIRS:
                del self._pairs[next(iter(self._pairs))]
            averages = self._pairs[program, model] = _Averages()
        overhead = max(0, usage.input_tokens - estimated_input_tokens)
        ran_s = latency_s if ran_s is None else ran_s
        averages.add(usage.output_tokens, overhead, latency_s, ran_s, self._clock())

    def usual_run_s(self, program: str, model: str) -> float:
        """Seconds that the program has lately run for an answer, waits not included; 0 when there has been none."""
        averages = self._pairs.get((program, model))
        return averages.ran_s if averages else 0.0

    def expect(self, program: str, model: str, *, prior_latency_s: float) -> Expectation:
        """What to expect of the next call; the priors when there has been none, or none for long."""
        averages = self._pairs.get((program, model))
        if averages is None:
            return Expectation(PRIOR_OUTPUT_TOKENS, prior_latency_s, PRIOR_OVERHEAD_TOKENS)
        kept = 0.5 ** ((self._clock() - averages.seen_at) / HALF_LIFE_S)
        return Expectation(
            _faded(averages.output_tokens, PRIOR_OUTPUT_TOKENS, kept),
            _faded(averages.latency_s, prior_latency_s, kept),
            _faded(averages.overhead_tokens, PRIOR_OVERHEAD_TOKENS, kept),
        )


def _faded(average: float, prior: float, kept: float) -> float:
    return prior + (average - prior) * kept
