"""``Policy``, the ``user_config`` of ``ControlPlane``: changing it and running ``serve deploy`` restarts nothing.

Durations end in ``_s`` (seconds), ratios and qualities are 0..1. Unknown keys are errors.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from serve_app.config import BatchingConfig, Ratio, Section
from serve_app.messages import Level


class ComplexityThresholds(Section):
    """Quality a model must reach for a call of that complexity."""

    high: Ratio = 0.9
    """For hard calls."""
    medium: Ratio = 0.8
    """For ordinary calls."""
    low: Ratio = 0.0
    """For easy calls."""

    @model_validator(mode="after")
    def _harder_asks_for_more(self) -> Self:
        if not self.high >= self.medium >= self.low:
            raise ValueError(f"high ({self.high:g}), medium ({self.medium:g}), low ({self.low:g}): must not rise")
        return self


class LearningPolicy(Section):
    """How scores move a model's quality; ``serve_app.core.learned_quality`` has the formula."""

    sources: tuple[Literal["reward", "feedback", "confidence"], ...] = Field(("reward", "feedback"), min_length=1)
    """Scores that count, all alike; leave ``feedback`` out where callers are not trusted with your routing."""
    min_samples: NonNegativeFloat = 20
    """Scored answers of a model for a program that move nothing yet."""
    prior_weight: PositiveFloat = 20
    """Scored answers, beyond those, that weigh as much as the prior."""
    max_change: Ratio = 0.5
    """Furthest the learned quality may be from the prior."""
    half_life_s: PositiveFloat = 3600.0
    """Seconds after which a score counts half."""


class RoutingPolicy(Section):
    """How the router orders models."""

    strategy: Literal["cost", "quality", "latency", "ordered"] = "cost"
    """``cost`` cheapest first, ``quality`` best first, ``latency`` fastest first, ``ordered`` as listed."""
    complexity: ComplexityThresholds = ComplexityThresholds()
    """Quality thresholds by complexity."""
    max_attempts: PositiveInt = 3
    """Most models asked for one call."""
    learn_quality: bool = False
    """Route by what answers scored, for each program and model, in place of the models' ``quality``."""
    learning: LearningPolicy = LearningPolicy()
    """How scores move a model's quality; also decides what ``/v1/status`` shows while ``learn_quality`` is off."""


class BreakerPolicy(Section):
    """When a model is left alone, and how it comes back."""

    failure_rate_threshold: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of failed calls in the window that opens the breaker."""
    slow_call_s: PositiveFloat = 30.0
    """Seconds from which an answered call counts as slow."""
    slow_call_rate_threshold: Annotated[float, Field(gt=0, le=1)] = 0.8
    """Share of slow calls in the window that opens the breaker."""
    minimum_calls: PositiveInt = 5
    """Calls in the window below which no rate is judged."""
    window_s: PositiveFloat = 30.0
    """Seconds of the sliding window."""
    open_s: PositiveFloat = 30.0
    """Seconds an open breaker waits before it admits a probe; doubles with each trip in a row."""
    max_open_s: PositiveFloat = 30.0
    """Cap on the growth of ``open_s``; a model that recovers is asked again within this time."""
    half_open_probes: PositiveInt = 1
    """Probes in flight at once, and successes needed to close."""
    probe_lease_s: PositiveFloat = 60.0
    """Seconds after which a probe that said nothing is given up."""

    @model_validator(mode="after")
    def _cap_reaches_open(self) -> Self:
        if self.max_open_s < self.open_s:
            raise ValueError(f"max_open_s ({self.max_open_s:g}) is below open_s ({self.open_s:g})")
        return self


class RetryPolicy(Section):
    """The retry budget: how much load second attempts may add."""

    budget_ratio: Ratio = 0.2
    """Retries allowed as a share of recent calls."""
    budget_floor_per_s: NonNegativeFloat = 1.0
    """Retries a second allowed however few calls there are."""


class Thresholds(Section):
    """Readings that enter a level; null never does."""

    cpu: Ratio | None = None
    """CPU use of the busiest node, 0..1."""
    memory: Ratio | None = None
    """Memory use of the fullest node, 0..1."""
    error_rate: Ratio | None = None
    """Share of calls that failed; not judged below 5 calls in the window."""
    p95_latency_s: PositiveFloat | None = None
    """95th percentile of answer time, seconds; not judged below 5 answers in the window."""
    queue_wait_s: PositiveFloat | None = None
    """95th percentile of the wait for a model slot, seconds; not judged below 5 waits in the window."""


class DegradationPolicy(Section):
    """When the service becomes less, on purpose: one level for all programs, each of which says what it is then."""

    degraded: Thresholds = Thresholds(cpu=0.80, p95_latency_s=5, queue_wait_s=2)
    """Any one of these enters ``degraded``."""
    minimal: Thresholds = Thresholds(memory=0.90, error_rate=0.10)
    """Any one of these enters ``minimal``."""
    exit_ratio: Annotated[float, Field(gt=0, le=1)] = 0.8
    """A level is left when every reading is below its threshold times this."""
    dwell_s: NonNegativeFloat = 15.0
    """Seconds a level is kept at least."""
    window_s: PositiveFloat = 10.0
    """Seconds over which readings are taken."""
    pin: Level | None = None
    """Holds a level whatever the readings say."""

    @model_validator(mode="after")
    def _minimal_is_worse(self) -> Self:
        for reading in Thresholds.model_fields:
            degraded, minimal = getattr(self.degraded, reading), getattr(self.minimal, reading)
            if degraded is not None and minimal is not None and minimal < degraded:
                raise ValueError(f"minimal.{reading} ({minimal:g}) is below degraded.{reading} ({degraded:g})")
        return self


class Policy(Section):
    """``user_config`` of ``ControlPlane``: changed while running, without a restart."""

    routing: RoutingPolicy = RoutingPolicy()
    """Model selection."""
    breaker: BreakerPolicy = BreakerPolicy()
    """Circuit breakers."""
    retry: RetryPolicy = RetryPolicy()
    """Retry budget."""
    degradation: DegradationPolicy = DegradationPolicy()
    """Levels of service."""
    batching: BatchingConfig | None = None
    """How calls are batched from now on; null leaves it to ``args.batching``."""
