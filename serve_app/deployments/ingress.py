"""``Ingress``: where calls enter, over HTTP or from Python, and where they become batches."""

from __future__ import annotations

import asyncio
import itertools
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NoReturn

from serve_app.adapters.dspy_program import Program
from serve_app.adapters.json_log import about_call
from serve_app.adapters.telemetry import MetricsPage, Telemetry
from serve_app.adapters.tracing import current_trace, join, traced
from serve_app.config import AppConfig, BatchingConfig
from serve_app.core.admission import Admission, Ticket
from serve_app.core.cache_control import parse_cache_control
from serve_app.core.cache_key import cache_keys, level_fingerprint
from serve_app.core.cache_policy import may_use_stored
from serve_app.core.clock import Clock
from serve_app.core.deadline import passed_on_s
from serve_app.core.loop_lag import TICK_S, LoopLag
from serve_app.core.permit import Refusal
from serve_app.core.recent_refusals import RecentRefusals
from serve_app.core.standing_queue import patience_for
from serve_app.core.trace_context import trace_context
from serve_app.deployments.call_log import NO_PROGRAM, Ending
from serve_app.deployments.control_link import ControlLink
from serve_app.deployments.feedback import Feedback
from serve_app.deployments.lane import Lane
from serve_app.deployments.near_cache import NearCache
from serve_app.deployments.reply import reply
from serve_app.deployments.requests import RequestReader
from serve_app.deployments.stage import Stage
from serve_app.errors import (
    ClientClosed,
    ControlPlaneUnreachable,
    DeadlineExceeded,
    Overloaded,
    SwitchyardError,
    UnknownProgram,
)
from serve_app.messages import CacheStatus, Call, Freshness, Level, Options, Outcome, Result

_MADE = frozenset({CacheStatus.MISS, CacheStatus.BYPASS})
_REFUSED = frozenset(
    {
        "invalid_inputs",
        "unknown_program",
        "too_large",
        "unsupported_media_type",
        "shed",
        "rate_limited",
        "client_closed",
    }
)


class Ingress:
    """Validates, stamps, admits, answers from its near cache, and batches the rest downstream.

    Args:
        config: the application's topology.
        programs: by name.
        downstream: the stage behind the batches.
        telemetry: this replica's metrics.
        link: the line to the control plane.
    """

    def __init__(
        self,
        config: AppConfig,
        programs: Mapping[str, Program],
        downstream: Stage,
        telemetry: Telemetry,
        link: ControlLink,
        *,
        clock: Clock = time.monotonic,
        unix_clock: Clock = time.time,
    ) -> None:
        self.config = config
        self.programs = programs
        self.link = link
        self.telemetry = telemetry
        self.feedback = Feedback(programs, telemetry, link)
        self.reader = RequestReader(programs, (model.name for model in config.models), config.limits.max_deadline_s)
        self.near = NearCache(config, self._from_downstream, telemetry, clock=clock, unix_clock=unix_clock)
        self.lane = Lane(downstream, resubmit=True, sent=telemetry.batched)
        self._lag = LoopLag()
        self._admission = Admission(config.limits.max_queued_requests, self._lag, clock=clock)
        self._refusals = RecentRefusals(clock=clock)
        self._clock = clock
        self._prefix = uuid.uuid4().hex[:8]
        self._ids = itertools.count()
        self._deadlines: dict[str, float] = {}
        self._asked: dict[str, asyncio.Future[Result]] = {}
        self._keys_asked: Counter[str] = Counter()
        self._fingerprints: dict[tuple[str, Level, str | None], str] = {}
        Ingress.set_batching(self, config.batching)
        link.add_gauges(self._gauges)
        link.on_snapshot(self.near.heard)

    def set_batching(self, batching: BatchingConfig) -> None:
        """Change how batches form, from the next one on."""
        self.lane.max_batch_size = batching.max_batch_size
        self._admission.patience = patience_for(self.config.models, batching)

    async def watch_loop(self) -> NoReturn:
        """Measure for ever how late this loop runs; a busy one refuses calls (``serve_app.core.loop_lag``)."""
        while True:
            due = self._clock() + TICK_S
            await asyncio.sleep(TICK_S)
            self._lag.ticked(due, self._clock())

    async def predict(
        self,
        program: str,
        inputs: Mapping[str, Any],
        options: Mapping[str, Any] | None = None,
        request_id: str = "",
        cache_control: str = "",
        trace: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        """Answer one call: ``{"outputs": {…}, "meta": {…}}``, as over HTTP; ``trace`` has the headers of its trace.

        Raises:
            SwitchyardError: one of the tree in ``serve_app.errors``.
        """
        request_id = request_id or uuid.uuid4().hex
        started = self._clock()
        join(trace_context(trace or {}))
        result = await self.answer(program, inputs, options or {}, request_id, parse_cache_control(cache_control))
        return reply(program, request_id, result, self._clock() - started)

    async def answer(
        self,
        program: str,
        inputs: Mapping[str, Any],
        options: Mapping[str, Any],
        request_id: str,
        freshness: Freshness,
    ) -> Result:
        """Answer one call and count it, whatever becomes of it."""
        started = self._clock()
        try:
            name = self.reader.program(program).name
        except UnknownProgram as error:
            self.refused(NO_PROGRAM, error, request_id, self._clock() - started)
            raise
        return await self._answer(name, inputs, options, request_id, freshness)

    @traced("call {program}", is_entry=True)
    async def _answer(
        self,
        program: str,
        inputs: Mapping[str, Any],
        options: Mapping[str, Any],
        request_id: str,
        freshness: Freshness,
    ) -> Result:
        about_call(request_id)
        started, snapshot = self._clock(), self.link.snapshot
        ending = Ending(program, request_id, snapshot.level)
        try:
            call = self._call(program, inputs, options, request_id, freshness)
            ending.read(call)
            result = await self._result(call)
            if result.level is not Level.FULL:
                result = replace(result, level_reason=snapshot.reason)
            ending.answered(result)
            if result.error:
                raise result.error.about(request_id, result.attempts)
        except SwitchyardError as error:
            ending.failed(error)
            raise
        except asyncio.CancelledError:
            ending.failed(ClientClosed)
            raise
        finally:
            self._finished(ending, self._clock() - started)
        self.feedback.answered(program, request_id, result)
        return result

    def refused(self, program: str, error: SwitchyardError, request_id: str, latency_s: float) -> None:
        """Count a call that was refused before it could be read."""
        ending = Ending(program, request_id, self.link.snapshot.level)
        ending.failed(error)
        self._finished(ending, latency_s)

    def _finished(self, ending: Ending, latency_s: float) -> None:
        ending.write(latency_s)
        self.telemetry.call_finished(ending.program, ending.model, ending.code, latency_s)
        if ending.code not in _REFUSED:
            self.link.call_finished(latency_s, failed=ending.is_failure)

    def _call(
        self,
        program: str,
        inputs: Mapping[str, Any],
        raw_options: Mapping[str, Any],
        request_id: str,
        freshness: Freshness,
    ) -> Call:
        options = self.reader.options(raw_options)
        known = self.programs[program]
        values = self.reader.inputs(known, inputs)
        level = self.link.snapshot.level
        remaining_s = options.deadline_s or self.config.limits.default_deadline_s
        call_id = f"{self._prefix}-{next(self._ids)}"
        keys = self._keys(known, level, values, options) if known.config.cache.ttl_s else ()
        return Call(
            call_id,
            request_id,
            program,
            values,
            remaining_s,
            options,
            level,
            key=keys[level.rank] if keys else "",
            level_keys=keys if len(keys) > 1 else (),
            freshness=freshness,
            trace=current_trace(),
            together=known.takes_batches(level),
            version=known.version,
        )

    def _keys(self, program: Program, level: Level, inputs: Mapping[str, Any], options: Options) -> tuple[str, ...]:
        """The call's keys by level, best first: its own, the better ones, those that may stand in for an error."""
        may_stand_in = program.config.cache.stale_if_error_s > 0
        levels = list(Level) if may_stand_in else list(Level)[: level.rank + 1]
        return cache_keys(
            program=program.name,
            version=program.version,
            tenant="",
            inputs=inputs,
            options=options,
            fingerprints={each: self._fingerprint(program, each, options.model) for each in levels},
        )

    def _fingerprint(self, program: Program, level: Level, pin: str | None) -> str:
        known = self._fingerprints.get((program.name, level, pin))
        if known is None:
            models, default = self.config.models, self.config.default_model
            known = level_fingerprint(program.config, level, models, default_model=default, pin=pin)
            self._fingerprints[program.name, level, pin] = known
        return known

    async def _result(self, call: Call) -> Result:
        return self.near.answer(call) or await self._from_downstream(call)

    async def _from_downstream(self, call: Call) -> Result:
        begun_at = self._clock()
        with self._admitted(call) as ticket:
            call = replace(call, shed=ticket.shed) if ticket.shed else call
            result = await self._asked_for(call)
            ticket.ran_s = _ran_s(result, may_overlap=self.programs[call.program].config.hedge_after_s is not None)
        if not call.shed:
            self._refusals.note(call, call.remaining_s - (self._clock() - begun_at), result)
        self.near.keep(call, result, begun_at)
        if isinstance(result.error, Overloaded):
            result = replace(result, error=self._in_turn(call, result.error))
        return result

    async def _asked_for(self, call: Call) -> Result:
        with self._waiting_for(call):
            try:
                async with asyncio.timeout(call.remaining_s):
                    return await (await self._collect(call))
            except TimeoutError as error:
                message = f"no answer within {call.remaining_s:g} s"
                raise DeadlineExceeded(message, request_id=call.request_id) from error

    async def _collect(self, call: Call) -> asyncio.Future[Result]:
        """Put the call into a batch; the deployment overrides this with ``@serve.batch``."""
        return self.start_batch([call])[0]

    def start_batch(self, calls: Sequence[Call]) -> list[asyncio.Future[Result]]:
        """Send a batch on its way; one future a call, so that no caller waits for a neighbour."""
        now = self._clock()
        left_s = {call.id: passed_on_s(self._deadlines.get(call.id, now) - now) for call in calls}
        futures = self.lane.ask_all([replace(call, remaining_s=left_s[call.id]) for call in calls])
        for call, future in zip(calls, futures, strict=True):
            if call.id in self._deadlines:
                self._asked[call.id] = future
            else:  # its caller left while the batch formed
                future.cancel()
        return futures

    @contextmanager
    def _waiting_for(self, call: Call) -> Iterator[None]:
        """Know the call's deadline while its batch forms, and leave the batch with its caller.

        ``@serve.batch`` loses the future of a caller who is cancelled at the moment the batch is handed over.
        """
        key = call.key if not call.shed and may_use_stored(call) else ""
        self._deadlines[call.id] = self._clock() + call.remaining_s
        self._keys_asked[key] += 1
        try:
            yield
        finally:
            del self._deadlines[call.id]
            self._keys_asked[key] -= 1
            if not self._keys_asked[key]:
                del self._keys_asked[key]
            if future := self._asked.pop(call.id, None):
                future.cancel()

    @contextmanager
    def _admitted(self, call: Call) -> Iterator[Ticket]:
        """Hold a place for the call, or refuse it before any work.

        What was refused a moment ago is refused again, and what would join a queue that stands, unless a cache further
        on may have an answer; a loop that is short of time spares itself the way there.

        Raises:
            Overloaded: too much is waiting.
        """
        options = call.options
        goes_on = self._may_be_known(call) and not self._lag.is_noticeable
        refusal = None if goes_on else self._refusals.find(call, call.remaining_s)
        ticket = refusal or self._admission.admit(
            options.priority, call.remaining_s, (call.program, options.model), may_be_known=goes_on
        )
        if isinstance(ticket, Refusal):
            self.telemetry.shed(ticket.reason, call.options.priority)
            raise self._in_turn(call, Overloaded(f"too much traffic: {ticket.reason}", ticket.retry_after_s))
        with ticket:
            yield ticket

    def _in_turn(self, call: Call, error: Overloaded) -> Overloaded:
        """The refusal, with a time to come back at that others were not told, too."""
        asked_s, kind = error.retry_after_s or 0.0, (call.program, call.options.model)
        return error.again_after(self._admission.retry_after_s(call.options.priority, asked_s, kind))

    def _may_be_known(self, call: Call) -> bool:
        """Whether a cache behind the near one may answer.

        It is shared, a stale answer is wanted, or the same question is on its way already.
        """
        cache, wanted = self.programs[call.program].config.cache, call.freshness
        is_shared = self.config.cache.redis_url is not None or self.config.ingress.max > 1
        takes_stale = cache.stale_while_revalidate_s > 0 or cache.stale_if_error_s > 0 or wanted.max_stale_s is not None
        is_asked = call.key in self._keys_asked
        return may_use_stored(call) and (is_shared or takes_stale or wanted.only_if_cached or is_asked)

    async def status(self) -> dict[str, Any]:
        """What ``GET /v1/status`` shows; says so when the control plane cannot be asked."""
        cluster: dict[str, Any] | None = await self.link.ask("status")
        snapshot = self.link.snapshot
        level = {"level": snapshot.level.value, "reason": snapshot.reason}
        own: dict[str, Any] = {"ready": self.link.is_ready, "level": level}
        return own | (cluster if cluster is not None else {"control_plane": "unreachable"})

    async def metrics(self) -> bytes:
        """The cluster's metrics; this replica's own when there is no control plane.

        Raises:
            ControlPlaneUnreachable: a failed scrape is a gap, but one replica's own totals would read as a reset.
        """
        cluster: bytes | None = await self.link.ask("metrics")
        if cluster is not None:
            return cluster
        if not self.link.is_alone:
            raise ControlPlaneUnreachable("the control plane, which adds the metrics up, cannot be asked", 1.0)
        self._gauges()
        page = MetricsPage()
        page.update(self.link.source, self.link.samples())
        return page.render()

    def _gauges(self) -> dict[str, float]:
        self.telemetry.set_active(self._admission.held)
        self.telemetry.cache.holds("near", self.near.stats())
        return {"active": self._admission.held} | self.telemetry.cache.gauges()


def _ran_s(result: Result, *, may_overlap: bool) -> float | None:
    """Seconds that models ran a call's program, one after the other.

    ``None`` for a failure, for an answer that no model made for this call, where an attempt did not say, and where
    two may have run beside each other.
    """
    if result.error or result.cache not in _MADE:
        return None
    ended = [attempt for attempt in result.attempts if attempt.outcome is not Outcome.CANCELLED]  # those were hedges
    waits_s = [attempt.waited_s for attempt in ended if attempt.waited_s is not None]
    if not ended or len(waits_s) < len(ended) or (may_overlap and len(ended) > 1):
        return None
    return sum(attempt.latency_s for attempt in ended) - sum(waits_s)
