"""What replicas and the control plane tell each other: a report out, a snapshot in.

Like those of ``serve_app.messages`` they are frozen, and times are durations unless an attribute says otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from serve_app.messages import PRIORITIES, BreakerState, Level, Outcome, Priority

if TYPE_CHECKING:
    from serve_app.core.breaker_messages import BreakerReply, BreakerReport
    from serve_app.policy import Policy


class MetricType(StrEnum):
    """Who scored an answer: the program itself, its reward function, or a caller."""

    CONFIDENCE = "confidence"
    REWARD = "reward"
    FEEDBACK = "feedback"


@dataclass(frozen=True, slots=True)
class Origin:
    """Where an answer came from."""

    program: str
    version: str
    model: str
    level: Level


@dataclass(frozen=True, slots=True)
class ScoreSum:
    """What a replica's recent answers of one origin scored: how many they count for, faded with age, and their sum."""

    origin: Origin
    metric_type: MetricType
    weight: float
    total: float


class AnsweredCall(NamedTuple):
    """An answered call, so that a verdict on it finds its origin; ``call_id`` is unique, ``request_id`` may repeat."""

    request_id: str
    call_id: str
    origin: Origin


@dataclass(frozen=True, slots=True)
class Claim:
    """The call that a verdict is about; ``None`` when it is not known, or known and not this verdict's to have."""

    call: AnsweredCall | None = None
    is_known: bool = False


Quality = Mapping[tuple[str, Level, str], float]
"""What was learned, 0..1, by program, level and model."""


@dataclass(frozen=True, slots=True)
class OutcomeCount:
    """How often one model's attempts ended one way since the last report, and how long they took together."""

    model: str
    outcome: Outcome
    count: int
    total_latency_s: float


@dataclass(frozen=True, slots=True)
class Orders:
    """What operators ordered while the system ran; of two orders about one thing the later holds.

    Attributes:
        pin: a level held whatever the readings or the policy say; ``None`` leaves the level to them.
        pinned_at: Unix time of the order about the level; 0 when there was none.
        forgotten: Unix time of the last order to forget a program's stored answers, by program.
    """

    pin: Level | None = None
    pinned_at: float = 0.0
    forgotten: Mapping[str, float] = field(default_factory=dict)

    def merged(self, other: Orders) -> Orders:
        """The later of both, order by order."""
        later = self if self.pinned_at >= other.pinned_at else other
        programs = self.forgotten.keys() | other.forgotten.keys()
        times = {name: max(self.forgotten.get(name, 0.0), other.forgotten.get(name, 0.0)) for name in programs}
        return Orders(later.pin, later.pinned_at, times)


class Endpoint(NamedTuple):
    """Where a replica takes calls over a channel, and the key that a caller has to know."""

    host: str
    port: int
    key: bytes

    def __repr__(self) -> str:
        """Without the key."""
        return f"Endpoint({self.host!r}, {self.port})"


NOWHERE: Final = Endpoint("", 0, b"")
"""Of a replica that takes no calls over channels: nobody reaches it, so all go over Ray."""


@dataclass(frozen=True, slots=True)
class Report:
    """What a replica tells the control plane, a few times a second.

    Attributes:
        source: unique name of the replica.
        deployment: which part of the graph it is.
        outcomes: attempts finished since the last report that arrived.
        calls: calls answered since then, refused ones left out.
        failed_calls: those of them that failed for a reason of ours.
        latencies_s: how long these calls took; a sample when there were many.
        waits_s: how long calls waited for a model slot; a sample when there were many.
        denials: what providers said when they denied access since then, by model; only a person can mend it.
        breakers: what this router tells of its models, by name; empty from whoever is no router.
        gauges: figures of this moment by name (queue depths, entries, bytes).
        metrics: the replica's Prometheus samples, as ``serve_app.adapters.telemetry`` writes them.
        level: what it was last told; teaches a control plane that was born again, like ``orders``.
        orders: what it was last told.
        versions: of the programs this replica runs, by name; empty from whoever runs none.
        scores: what its recent answers scored, in all and not since the last report.
        answered: calls answered since the last report that arrived, for callers' verdicts.
        told: version of the snapshot it goes by; 0 before the first.
        endpoint: where it takes calls over a channel, maybe ``NOWHERE``; ``None`` from whoever takes none, or goes.
        callees: the deployments whose endpoints it wants to know.
    """

    source: str
    deployment: str
    outcomes: tuple[OutcomeCount, ...] = ()
    calls: int = 0
    failed_calls: int = 0
    latencies_s: tuple[float, ...] = ()
    waits_s: tuple[float, ...] = ()
    denials: Mapping[str, str] = field(default_factory=dict)
    breakers: Mapping[str, BreakerReport] = field(default_factory=dict)
    gauges: Mapping[str, float] = field(default_factory=dict)
    metrics: tuple[Any, ...] = ()
    level: Level = Level.FULL
    orders: Orders = Orders()
    versions: Mapping[str, str] = field(default_factory=dict)
    scores: tuple[ScoreSum, ...] = ()
    answered: tuple[AnsweredCall, ...] = ()
    told: int = 0
    endpoint: Endpoint | None = None
    callees: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelHealth:
    """What the whole cluster knows of one model.

    Attributes:
        state: breaker state.
        generation: grows with every change of state.
        retry_after_s: seconds until an open breaker admits a probe, or a cooling model may be asked again.
        reason: why it is not closed; empty when closed.
        requests: attempts in the current window.
        failures: failed attempts in the current window.
    """

    state: BreakerState = BreakerState.CLOSED
    generation: int = 0
    retry_after_s: float = 0.0
    reason: str = ""
    requests: int = 0
    failures: int = 0


@dataclass(frozen=True, slots=True)
class ModelLoad:
    """How busy one model's replicas were together when they last reported.

    Attributes:
        slots: calls that may run at once; 0 when nothing is known.
        running: calls that ran.
        waiting: calls that waited for a slot, by priority, best first.
        service_s: seconds that a served call takes; of a replica that served none lately, those of its last ones.
        replicas: how many reported.
        lost: calls that would run, had routers not refused them or sent them elsewhere as too many wait.
    """

    slots: float = 0.0
    running: float = 0.0
    waiting: tuple[float, ...] = (0.0, 0.0, 0.0)
    service_s: float = 0.0
    replicas: int = 0
    lost: float = 0.0

    @property
    def spread(self) -> int:
        """Replicas among which calls that come together are divided: one, until half of all slots are taken."""
        is_scarce = 0 < self.slots <= 2 * (self.running + sum(self.waiting))
        return max(1, self.replicas) if is_scarce else 1

    def waiting_before(self, priority: Priority) -> float:
        """Waiting calls that go before a new one of this priority."""
        return sum(self.waiting[: PRIORITIES.index(priority) + 1])


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the control plane tells a replica; ``version`` grows whenever anything but ``breakers`` changes.

    Attributes:
        breakers: the replies to the breakers' reports of this very router, by model.
        quality: what routing is to use in place of the priors; empty unless the policy says so. Moves all the time,
            and changes no version.
        loads: how busy each model is; changes no version either.
        endpoints: where the replicas of this replica's callees take calls, by deployment; like ``breakers`` its own.
        control: where the control plane itself takes reports over channels; ``None`` where it does not.
    """

    version: int
    policy: Policy
    level: Level = Level.FULL
    reason: str = ""
    models: Mapping[str, ModelHealth] = field(default_factory=dict)
    orders: Orders = Orders()
    breakers: Mapping[str, BreakerReply] = field(default_factory=dict)
    quality: Quality = field(default_factory=dict)
    loads: Mapping[str, ModelLoad] = field(default_factory=dict)
    endpoints: Mapping[str, tuple[Endpoint, ...]] = field(default_factory=dict)
    control: Endpoint | None = None
