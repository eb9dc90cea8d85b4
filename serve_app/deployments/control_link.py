"""A replica's line to the control plane: report out, snapshot in, four times a second; less often with nothing to say.

Never on the request's path. While the control plane is away, the last snapshot stays in force and what could
not be reported waits, bounded, for the next exchange.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from serve_app.adapters.channel import Channel, ChannelClosed, connect
from serve_app.adapters.system_stats import node_cpu, node_memory, process_cpu, process_memory_mb
from serve_app.core.breaker_messages import BreakerReply, BreakerReport
from serve_app.core.clock import Clock
from serve_app.core.score_tally import ScoreTally
from serve_app.errors import SwitchyardError
from serve_app.messages import Attempt, BreakerState, Outcome
from serve_app.policy import Policy
from serve_app.reports import AnsweredCall, Endpoint, OutcomeCount, Report, Snapshot

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

    from serve_app.adapters.telemetry import Family, Telemetry

log = logging.getLogger("switchyard.control_link")

EXCHANGE_INTERVAL_S = 0.25
QUIET_INTERVALS = 3
"""After how many intervals a replica with nothing to say exchanges, which takes some milliseconds on either side."""
EXCHANGE_TIMEOUT_S = 2.0
CONNECT_TIMEOUT_S = 1.0
"""Seconds that a connection to the control plane may take, for meanwhile nothing is reported."""
CONNECT_AGAIN_S = 60.0
"""Seconds after which one that did not come about is tried again."""
LAST_REPORT_S = 0.5
"""Seconds that the last report may take: a replica that ends, ends soon, also together with the control plane."""


MAX_SAMPLES = 500
"""Most latencies, and most waits, that one report carries; the newest are kept."""


MAX_ANSWERED = 5000
"""Most answered calls that one report names; the newest are kept, and verdicts on the others find nothing."""


@dataclass(slots=True)
class _Pending:
    """What the next report will say."""

    outcomes: dict[tuple[str, Outcome], OutcomeCount] = field(default_factory=dict)
    calls: int = 0
    failed_calls: int = 0
    latencies_s: deque[float] = field(default_factory=lambda: deque(maxlen=MAX_SAMPLES))
    waits_s: deque[float] = field(default_factory=lambda: deque(maxlen=MAX_SAMPLES))
    denials: dict[str, str] = field(default_factory=dict)
    answered: deque[AnsweredCall] = field(default_factory=lambda: deque(maxlen=MAX_ANSWERED))

    def __bool__(self) -> bool:
        return bool(self.outcomes or self.calls or self.waits_s or self.denials or self.answered)

    def add(self, outcome: OutcomeCount) -> None:
        key = (outcome.model, outcome.outcome)
        if before := self.outcomes.get(key):
            total_s = before.total_latency_s + outcome.total_latency_s
            outcome = replace(outcome, count=before.count + outcome.count, total_latency_s=total_s)
        self.outcomes[key] = outcome

    def merge(self, later: _Pending) -> None:
        for outcome in later.outcomes.values():
            self.add(outcome)
        self.calls += later.calls
        self.failed_calls += later.failed_calls
        self.latencies_s += later.latencies_s
        self.waits_s += later.waits_s
        self.denials |= later.denials
        self.answered += later.answered


def _ignore(_: Mapping[str, BreakerReply]) -> None:
    """What a replica without breakers does with replies."""


class ControlLink:
    """Exchanges with the control plane on behalf of one replica.

    Attributes:
        source: unique name of the replica.
        snapshot: the newest one.
        scores: what this replica's answers scored; sent with every report.
        versions: of the programs that this replica runs; sent with every report.
        endpoint: where this replica takes calls over channels; sent with every report.
        cpu_in_use: share of the machine's CPU, or of the one core that an event loop can take, that was in use before
            the last report, 0..1: the larger.

    Args:
        handle: of the control plane; ``None`` keeps the default policy and reports to nobody.
        deployment: name of the part this replica plays.
        telemetry: the replica's metrics, sent with every report.
    """

    def __init__(
        self,
        handle: DeploymentHandle[Any] | None,
        deployment: str,
        telemetry: Telemetry,
        *,
        clock: Clock = time.monotonic,
    ) -> None:
        self.source = f"{deployment}-{uuid.uuid4().hex[:8]}"
        self.snapshot = Snapshot(version=0, policy=Policy())
        self.scores = ScoreTally(self.snapshot.policy.routing.learning.half_life_s, clock=clock)
        self.versions: Mapping[str, str] = {}
        self.endpoint: Endpoint | None = None
        self.cpu_in_use = 0.0
        self._handle = handle
        self._deployment = deployment
        self._telemetry = telemetry
        self._pending = _Pending()
        self._gauges: list[Callable[[], Mapping[str, float]]] = []
        self._told: Mapping[str, float] = {}
        self._read_breakers: Callable[[], Mapping[str, BreakerReport]] = dict
        self._apply_breakers: Callable[[Mapping[str, BreakerReply]], None] = _ignore
        self._listeners: list[Callable[[Snapshot], None]] = []
        self._followers: dict[str, Callable[[Sequence[Endpoint]], None]] = {}
        self._task: asyncio.Task[None] | None = None
        self._channel: Channel | None = None
        self._clock = clock
        self._connect_at = -math.inf
        self._is_connected = False

    @property
    def is_ready(self) -> bool:
        """Whether a snapshot has ever arrived."""
        return self._handle is None or self.snapshot.version > 0

    @property
    def is_connected(self) -> bool:
        """Whether the last exchange worked."""
        return self._handle is None or self._is_connected

    def add_gauges(self, read: Callable[[], Mapping[str, float]]) -> None:
        """Send what ``read`` returns with every report."""
        self._gauges.append(read)

    def on_snapshot(self, listener: Callable[[Snapshot], None]) -> None:
        """Call ``listener`` with every snapshot that differs from the one before."""
        self._listeners.append(listener)

    def add_breakers(
        self, read: Callable[[], Mapping[str, BreakerReport]], apply: Callable[[Mapping[str, BreakerReply]], None]
    ) -> None:
        """Send what ``read`` returns with every report, and give what comes back to ``apply``."""
        self._read_breakers, self._apply_breakers = read, apply

    def follow(self, deployment: str, found: Callable[[Sequence[Endpoint]], None]) -> None:
        """Call ``found`` with where the deployment's replicas take calls, at every exchange."""
        self._followers[deployment] = found

    def attempt_finished(self, attempt: Attempt) -> None:
        """Put a finished attempt into the next report."""
        self._pending.add(OutcomeCount(attempt.model, attempt.outcome, 1, attempt.latency_s))

    def call_finished(self, latency_s: float, *, failed: bool) -> None:
        """Put an answered call into the next report."""
        self._pending.calls += 1
        self._pending.failed_calls += failed
        self._pending.latencies_s.append(latency_s)

    def call_answered(self, call: AnsweredCall) -> None:
        """Put into the next report what a caller may give a verdict on."""
        self._pending.answered.append(call)

    def waited(self, wait_s: float) -> None:
        """Put a call's wait for a slot into the next report."""
        self._pending.waits_s.append(wait_s)

    def denied(self, model: str, why: str) -> None:
        """Put a provider's denial of access into the next report."""
        self._pending.denials[model] = why

    def start(self) -> None:
        """Begin to exchange; needs a running loop."""
        if self._handle is not None and self._task is None:
            self._task = asyncio.create_task(self._run())

    def stop(self) -> None:
        """Stop exchanging."""
        if self._task is not None:
            self._task.cancel()
            self._task = None
        self._close_channel()

    async def aclose(self) -> None:
        """Stop exchanging after one last report, and say that it was the last.

        So what was counted since the one before is not lost, nor all of it when the control plane ends a moment later.
        """
        task = self._task
        if task is None:
            return
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        try:
            async with asyncio.timeout(LAST_REPORT_S):
                await self._exchange()
                await self.ask("depart", self.source)
        except Exception as error:  # noqa: BLE001 - as in ``_run``
            log.warning("control_plane.last_report_lost", extra={"why": type(error).__name__})
        finally:
            self.stop()

    @property
    def is_alone(self) -> bool:
        """Whether there is no control plane to report to."""
        return self._handle is None

    async def ask(self, method: str, *args: object) -> Any | None:  # noqa: ANN401 - what the method returns
        """What the control plane answers to ``method``; ``None`` when it cannot be asked.

        Raises:
            SwitchyardError: it refused the question.
        """
        if self._handle is None:
            return None
        try:
            async with asyncio.timeout(EXCHANGE_TIMEOUT_S):
                return await getattr(self._handle, method).remote(*args)
        except SwitchyardError:
            raise
        except Exception as error:  # noqa: BLE001 - as in ``_run``
            log.warning("control_plane.silent", extra={"method": method, "why": type(error).__name__})
            return None

    async def _run(self) -> None:
        while True:
            try:
                await self._exchange()
                await self._connect()
            except Exception as error:  # noqa: BLE001 - Ray's, gRPC's, or what a reply of another version is read with
                self._note_connection(is_connected=False, why=type(error).__name__)
            for _ in range(QUIET_INTERVALS):
                await asyncio.sleep(EXCHANGE_INTERVAL_S)
                if self._has_news():
                    break

    def _has_news(self) -> bool:
        """Whether anybody waits for the next exchange; scores and the counts of what was refused bear to wait.

        A breaker that is not closed has a clock of its own, and probes to be asked for and handed out.
        """
        is_routine = all(reply.known.state is BreakerState.CLOSED for reply in self.snapshot.breakers.values())
        return not (is_routine and self._is_connected) or bool(self._pending) or self._read_gauges() != self._told

    def _read_gauges(self) -> dict[str, float]:
        return {name: value for read in self._gauges for name, value in read().items()}

    async def _exchange(self) -> None:
        sent, self._pending = self._pending, _Pending()
        try:
            async with asyncio.timeout(EXCHANGE_TIMEOUT_S):
                snapshot = await self._ask_for_snapshot(self._report(sent))
        except BaseException:
            sent.merge(self._pending)
            self._pending = sent
            raise
        self._note_connection(is_connected=True)
        self._apply_breakers(snapshot.breakers)
        is_news = snapshot.version != self.snapshot.version
        self.snapshot = snapshot
        if is_news:
            self.scores.reconfigure(snapshot.policy.routing.learning.half_life_s)
            for listener in self._listeners:
                listener(snapshot)
        for deployment, found in self._followers.items():
            found(snapshot.endpoints.get(deployment, ()))

    async def _ask_for_snapshot(self, report: Report) -> Snapshot:
        """Over the channel where there is one, which ends when anything goes wrong there; else by handle."""
        if self._channel is None:
            assert self._handle is not None  # noqa: S101 - start() makes the task only with a handle
            snapshot: Snapshot = await self._handle.exchange.remote(report)
            return snapshot
        try:
            self._channel.send(report)
            snapshot = await self._channel.receive()
        except BaseException:
            self._close_channel()
            raise
        return snapshot

    async def _connect(self) -> None:
        """A channel to the control plane, if it says where, and that has not failed a moment ago."""
        endpoint, now = self.snapshot.control, self._clock()
        if self._channel is not None or endpoint is None or now < self._connect_at:
            return
        try:
            self._channel = await connect(endpoint, CONNECT_TIMEOUT_S)
        except ChannelClosed as error:
            self._connect_at = now + CONNECT_AGAIN_S
            log.info("control_plane.unreachable", extra={"why": str(error)})

    def _close_channel(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    def _report(self, pending: _Pending) -> Report:
        self._told = self._read_gauges()
        return Report(
            self.source,
            self._deployment,
            tuple(pending.outcomes.values()),
            pending.calls,
            pending.failed_calls,
            tuple(pending.latencies_s),
            tuple(pending.waits_s),
            pending.denials,
            self._read_breakers(),
            {**self._node(), **self._told},
            self.samples(),
            self.snapshot.level,
            self.snapshot.orders,
            self.versions,
            self.scores.sums(),
            tuple(pending.answered),
            self.snapshot.version,
            self.endpoint,
            tuple(self._followers),
        )

    def samples(self) -> tuple[Family, ...]:
        """The replica's metrics, its memory as it is now."""
        self._telemetry.set_memory_mb(process_memory_mb())
        return self._telemetry.samples()

    def _node(self) -> dict[str, float]:
        machine = node_cpu()
        self.cpu_in_use = min(1.0, max(machine, process_cpu()))
        return {"node_cpu": machine, "node_memory": node_memory()}

    def _note_connection(self, *, is_connected: bool, why: str = "") -> None:
        if is_connected != self._is_connected:
            log.warning("control_plane.%s", "reached" if is_connected else "lost", extra={"why": why})
        self._is_connected = is_connected
