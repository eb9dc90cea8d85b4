"""The frozen values that cross a process.

Everything here pickles small and means the same on every node: times are *remaining seconds* or durations,
never readings of a clock.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import StrEnum
from operator import attrgetter
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from serve_app.core.permit import Refusal
    from serve_app.errors import SwitchyardError


T = TypeVar("T")


def _crosses(kind: type[T]) -> type[T]:
    """A dataclass that crosses processes with every call: pickled as its constructor's arguments, at half the cost."""
    values = attrgetter(*(member.name for member in fields(kind)))  # type: ignore[arg-type]  # it is a dataclass
    kind.__reduce__ = lambda self: (kind, values(self))  # type: ignore[method-assign]
    return kind


class Level(StrEnum):
    """What a program may become under pressure, best first."""

    FULL = "full"
    DEGRADED = "degraded"
    MINIMAL = "minimal"

    @property
    def rank(self) -> int:
        """0 full, 1 degraded, 2 minimal: the value of ``dspy_degradation_level``."""
        return _RANKS[self]


_RANKS = {level: rank for rank, level in enumerate(Level)}


class Complexity(StrEnum):
    """How hard a caller says the call is; ``auto`` lets the router estimate it from the inputs."""

    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"
    AUTO = "auto"


class Priority(StrEnum):
    """Who goes first when there is too much work; ``sheddable`` is refused first, ``critical`` last."""

    CRITICAL = "critical"
    DEFAULT = "default"
    SHEDDABLE = "sheddable"


PRIORITIES = tuple(Priority)
"""Every priority, the best first."""


class CacheStatus(StrEnum):
    """How the cache took part in an answer (``meta.cache``)."""

    HIT = "hit"
    STALE = "stale"
    MISS = "miss"
    COALESCED = "coalesced"
    BYPASS = "bypass"


class BreakerState(StrEnum):
    """State of one model's circuit breaker."""

    CLOSED = "closed"
    HALF_OPEN = "half_open"
    OPEN = "open"


class Outcome(StrEnum):
    """How one attempt at one model ended. ``serve_app.core.outcomes`` says what each means."""

    OK = "ok"
    SLOW = "slow"
    UNREACHABLE = "unreachable"
    TIMEOUT = "timeout"
    CUT_SHORT = "cut_short"
    SERVER_ERROR = "server_error"
    MALFORMED = "malformed"
    RATE_LIMITED = "rate_limited"
    DENIED = "denied"
    CONTEXT_WINDOW = "context_window"
    CONTENT_POLICY = "content_policy"
    BAD_REQUEST = "bad_request"
    BAD_OUTPUT = "bad_output"
    PROGRAM_ERROR = "program_error"
    CANCELLED = "cancelled"
    REJECTED = "rejected"


@_crosses
@dataclass(frozen=True, slots=True)
class Options:
    """What a caller may ask for beside the inputs."""

    complexity: Complexity = Complexity.AUTO
    budget_usd: float | None = None
    deadline_s: float | None = None
    priority: Priority = Priority.DEFAULT
    model: str | None = None
    max_tokens: int | None = None


@_crosses
@dataclass(frozen=True, slots=True)
class Freshness:
    """A request's ``Cache-Control`` directives (RFC 9111 §5.2.1); the defaults ask for nothing."""

    no_cache: bool = False
    no_store: bool = False
    only_if_cached: bool = False
    max_age_s: float | None = None
    max_stale_s: float | None = None
    min_fresh_s: float | None = None


@dataclass(frozen=True, slots=True)
class TraceContext:
    """Where a call stands in its caller's trace, as W3C Trace Context writes it; made by ``core.trace_context``.

    Attributes:
        traceparent: version, trace, parent span and flags.
        tracestate: what tracing systems keep beside it; may be empty.
    """

    traceparent: str
    tracestate: str = ""

    @property
    def trace_id(self) -> str:
        """32 hex digits."""
        return self.traceparent[3:35]


class StepKind(StrEnum):
    """What a program's step asked."""

    LM = "lm"
    TOOL = "tool"


@dataclass(frozen=True, slots=True)
class Step:
    """One finished LM or tool call of an attempt that failed later; ``serve_app.core.journal`` says how it is used.

    Attributes:
        kind: what was asked.
        fingerprint: what the question was, as 32 hex digits.
        occurrence: 0 for the first question with that fingerprint, 1 for the second, …
        reply: the answer as JSON text.
    """

    kind: StepKind
    fingerprint: str
    occurrence: int
    reply: str


@_crosses
@dataclass(frozen=True, slots=True)
class Call:
    """One validated call of one program, on its way down the graph.

    Attributes:
        id: unique among all calls in flight; results are matched by it.
        request_id: what the caller sees and greps for; may repeat.
        program: name of a configured program.
        inputs: validated, in JSON form.
        remaining_s: seconds left until the deadline, counted when the value was made.
        level: what the program is at the moment.
        model: the one model to ask; set by the router on its way to a replica.
        key: cache key; ``""`` keeps the call out of every cache.
        level_keys: the same call's keys at every level, best first, ``key`` among them. What is stored for a better
            level may answer this call; what is stored for a worse one may only stand in for an error. Cut off after
            ``key`` when nothing may stand in; empty when only ``key`` matters.
        tenant: who asks; answers are never shared between tenants.
        journal: what earlier attempts at this call finished; the next one goes on from there.
        trace: the span that this call is part of; ``None`` when nobody traces it.
        shed: what it is told in place of asking a model: the ingress has no room for it, yet a cache may know.
        together: whether its program answers many calls at once, which is worth more than an even load.
        version: of the program that its keys are of; ``""`` where nobody says so.
    """

    id: str
    request_id: str
    program: str
    inputs: dict[str, Any]
    remaining_s: float
    options: Options = Options()
    level: Level = Level.FULL
    model: str = ""
    key: str = ""
    level_keys: tuple[str, ...] = ()
    tenant: str = ""
    freshness: Freshness = Freshness()
    journal: tuple[Step, ...] = ()
    trace: TraceContext | None = None
    shed: Refusal | None = None
    together: bool = False
    version: str = ""

    def key_at(self, level: Level) -> str:
        """Key of an answer of that level to this call; ``""`` when it is not known."""
        if level is self.level:
            return self.key
        return self.level_keys[level.rank] if self.key and level.rank < len(self.level_keys) else ""


@dataclass(frozen=True, slots=True)
class Route:
    """The models to ask, in order; never empty unless ``refused`` says why."""

    models: tuple[str, ...]
    estimated_cost_usd: float = 0.0
    refused: str = ""


@_crosses
@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens spent."""

    input_tokens: int = 0
    output_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(self.input_tokens + other.input_tokens, self.output_tokens + other.output_tokens)


@_crosses
@dataclass(frozen=True, slots=True)
class Attempt:
    """One model asked once for one call.

    Attributes:
        latency_s: from when it was asked.
        resumed: LM steps that were taken over from earlier attempts.
        waited_s: seconds of the latency in which its program did not run; ``None`` where no replica said so.
    """

    model: str
    outcome: Outcome
    latency_s: float
    usage: Usage = Usage()
    cost_usd: float = 0.0
    resumed: int = 0
    waited_s: float | None = None


@_crosses
@dataclass(frozen=True, slots=True)
class Result:
    """What became of one call: ``outputs``, or an ``error`` and the ``journal`` of what was finished before it.

    Attributes:
        cache: how the cache took part; ``tier`` is who had a stored answer, ``age_s`` how old it is.
        forwarded: why a cache asked a model though it was to look first: ``request`` or ``stale`` (RFC 9211 §2.2);
            empty when it knew nothing.
        fresh_for_s: seconds the answer stays fresh in the cache, negative for a stale one; ``None`` when not there.
        saved_cost_usd: what a stored or shared answer cost when it was made.
        saved_s: how long that took.
        level_reason: what holds a level below full, at the moment of the call.
        is_other_version: whether another version of the program made it than the call's keys are of, as happens while
            replicas are replaced one by one; such an answer is given and never stored.
        is_truncated: whether a token limit ended what a model wrote for it; given, and never stored.
    """

    id: str
    outputs: dict[str, Any] | None = None
    error: SwitchyardError | None = None
    model: str = ""
    level: Level = Level.FULL
    attempts: tuple[Attempt, ...] = ()
    usage: Usage = Usage()
    cost_usd: float = 0.0
    cache: CacheStatus = CacheStatus.MISS
    tier: str = ""
    age_s: float = 0.0
    confidence: float | None = None
    journal: tuple[Step, ...] = ()
    level_reason: str = ""
    saved_cost_usd: float = 0.0
    saved_s: float = 0.0
    fresh_for_s: float | None = None
    forwarded: str = ""
    is_other_version: bool = False
    is_truncated: bool = False
