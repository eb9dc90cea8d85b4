"""What routers and the control plane tell each other of one model's breaker, a few times a second.

    report   router → control plane   what it saw, which leases it holds, what it was last told
    reply    control plane → router   what the cluster decided, and a lease to probe when it is this router's turn

Either side may be away, late or born again, and any message may be lost. Therefore a report repeats what was seen
until a reply says that it arrived, a reply repeats a lease until a report says what became of it, and both carry the
cluster's whole state, so that whoever forgot it learns it again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Final

from pydantic import Field, TypeAdapter, ValidationError

from serve_app.messages import BreakerState, Outcome

_Count = Annotated[int, Field(ge=0)]
_Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


@dataclass(frozen=True, slots=True)
class BreakerSnapshot:
    """A breaker's state in a form that outlives its process: all times are remaining seconds.

    Attributes:
        wait_s: until an open breaker admits a probe.
        cooling_s: until a cooling model may be asked.
        probation_s: until the next trip is no longer one in a row.
        leases: number and remaining seconds of each probe in flight.
        last_lease: number of the last probe.
    """

    state: BreakerState
    generation: _Count
    reason: str = ""
    isolated: bool = False
    trips: _Count = 0
    wait_s: _Seconds = 0.0
    cooling_s: _Seconds = 0.0
    probation_s: _Seconds = 0.0
    successes: _Count = 0
    leases: tuple[tuple[_Count, _Seconds], ...] = ()
    last_lease: _Count = 0

    def aged(self, seconds: float) -> BreakerSnapshot:
        """The same, ``seconds`` later."""
        return replace(
            self,
            wait_s=max(0.0, self.wait_s - seconds),
            cooling_s=max(0.0, self.cooling_s - seconds),
            probation_s=max(0.0, self.probation_s - seconds),
            leases=tuple((lease, left_s - seconds) for lease, left_s in self.leases if left_s > seconds),
        )


_SNAPSHOT: Final = TypeAdapter(BreakerSnapshot)


def snapshot_to_plain(snapshot: BreakerSnapshot) -> dict[str, object]:
    """A snapshot as a dict of JSON's own types."""
    plain: dict[str, object] = _SNAPSHOT.dump_python(snapshot, mode="json")
    return plain


def snapshot_from_plain(data: object) -> BreakerSnapshot | None:
    """What ``snapshot_to_plain`` wrote; ``None`` for anything that no breaker could have written."""
    try:
        snapshot = _SNAPSHOT.validate_python(data)
    except ValidationError:
        return None
    is_open, is_half_open = snapshot.state is BreakerState.OPEN, snapshot.state is BreakerState.HALF_OPEN
    last_lease = max((number for number, _ in snapshot.leases), default=0)
    contradicts_itself = (
        (snapshot.isolated and not is_open) or (last_lease > 0 and not is_half_open) or last_lease > snapshot.last_lease
    )
    return None if contradicts_itself else snapshot


@dataclass(frozen=True, slots=True)
class ProbeLease:
    """Leave for one router to ask the model once.

    Attributes:
        number: tells it from every other lease of the model.
        generation: the cluster's; the lease dies with it.
        use_within_s: seconds, counted from the report that it answers, within which the probe must begin unless the
            lease is given again.
        expires_in_s: seconds, counted likewise, after which the probe's result comes too late.
    """

    number: int
    generation: int
    use_within_s: float
    expires_in_s: float


@dataclass(frozen=True, slots=True)
class LeaseClaim:
    """A router holds this lease: its probe has not begun, is in flight, or ended with a result not yet reported."""

    number: int
    generation: int
    has_begun: bool


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """How a probe ended.

    Attributes:
        lease: its number; 0 for a probe made without one, while the control plane was away.
        generation: the cluster's when the probe began.
        outcome: ``rejected`` when the lease was not used, ``slow`` rather than ``ok`` for an answer that came slowly.
    """

    lease: int
    generation: int
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class ReportBatch:
    """What a router saw, sent unchanged until it arrives and counted once.

    Attributes:
        number: 1 for a router's first batch, then one more with each.
        generation: the cluster's in which the calls were admitted.
        outcomes: how many calls ended which way; only outcomes that say something of the model.
        probes: results of leased probes, and of the last one made without a lease.
    """

    number: int
    generation: int
    outcomes: Mapping[Outcome, int] = field(default_factory=dict)
    probes: tuple[ProbeResult, ...] = ()


@dataclass(frozen=True, slots=True)
class BreakerReport:
    """What a router tells of one model.

    Attributes:
        sequence: grows with every report; an older one that comes late is known by it.
        batch: what the router saw.
        known: the cluster's state as the router knows it.
        claims: leases it holds.
        cooling_s: seconds until the time is over that a 429 to this very router asked for.
        wanted_s: seconds since a call was last refused for want of a lease; ``None`` when none was lately.
    """

    sequence: int
    batch: ReportBatch
    known: BreakerSnapshot
    claims: tuple[LeaseClaim, ...] = ()
    cooling_s: float = 0.0
    wanted_s: float | None = None


@dataclass(frozen=True, slots=True)
class BreakerReply:
    """What the control plane answers to a report.

    Attributes:
        sequence: the report's; its batch has arrived.
        known: the cluster's state.
        lease: the lease this router may begin to use; ``None`` takes back one that it has not begun to use.
    """

    sequence: int
    known: BreakerSnapshot
    lease: ProbeLease | None = None
