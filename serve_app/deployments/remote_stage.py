"""``RemoteStage``: a stage in other processes, over channels where there are some and over Ray where there is none.

Replicas say where they listen to the control plane, and every snapshot tells those who ask them. Until the first
snapshot, and while a model has no replica, Ray's handle finds whoever there is. Where one replica stays out of reach,
the handle carries all, or nobody would ever ask that one.
"""

from __future__ import annotations

import asyncio
import contextvars
import itertools
import logging
import math
import random
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from serve_app.adapters.channel import Channel, ChannelClosed, connect
from serve_app.core.clock import Clock
from serve_app.core.roster import SILENCE_S
from serve_app.deployments.stage import Chunks, HandleStage, StageAbsent, StageLost
from serve_app.deployments.stage_protocol import BYE, Batch, Chunk, Leave
from serve_app.messages import Call, Outcome, Result
from serve_app.reports import Endpoint

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

    from serve_app.deployments.control_link import ControlLink

log = logging.getLogger("switchyard.stage")

UNLISTED_S = 3.0
"""Seconds after which a replica that no snapshot names any more is asked only if there is no other: longer than a new
control plane needs to hear from everybody."""
STALL_S = 1.0
"""Seconds after which a replica that has not even said that it took a batch is asked after the others; it has 20 ms."""
GRACE_S = SILENCE_S + 1.0
"""Seconds for which a replica may be named and not be reached before calls go over Ray, to all of them: one that was
killed is named for ``SILENCE_S``."""


class RemoteStage:
    """A deployment's replicas; each batch goes to the one that has fewest of our calls.

    Args:
        handle: of a deployment whose ``run`` keeps the contract.
        link: whose snapshots say where the replicas are.
        accept_timeout_s: seconds within which a replica must take a batch; ``None`` waits as long as it lives.
    """

    def __init__(
        self,
        handle: DeploymentHandle[Any],
        link: ControlLink,
        *,
        accept_timeout_s: float | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        self._over_ray = HandleStage(handle, accept_timeout_s=accept_timeout_s)
        self._deployment = handle.deployment_name
        self._accept_timeout_s = accept_timeout_s
        self._clock = clock
        self._replicas: dict[Endpoint, ReplicaStage] = {}
        self._gone: set[Endpoint] = set()
        self._connecting: dict[Endpoint, asyncio.Task[None]] = {}
        self._missed_at: dict[Endpoint, float] = {}
        link.follow(self._deployment, self._found)

    def run(self, calls: Sequence[Call]) -> Chunks:
        """Pass the batch on.

        Raises:
            StageAbsent: no replica took it in time.
            StageLost: the one that did is gone.
            Overloaded: Ray's own bound on queued batches is reached.
        """
        return (self._idlest() or self._over_ray).run(calls)

    def leave(self, ids: Sequence[str]) -> None:
        """Tell whoever has them."""
        self._over_ray.leave(ids)
        for replica in self._replicas.values():
            replica.leave(ids)

    def _idlest(self) -> ReplicaStage | None:
        """Who is to have the next batch; nobody where one of them is out of reach, or it would never have any."""
        now = self._clock()
        if any(now - missed_at > GRACE_S for missed_at in self._missed_at.values()):
            return None
        usable = [replica for replica in self._replicas.values() if not replica.is_leaving]
        listed = [replica for replica in usable if now - replica.listed_at <= UNLISTED_S]
        return min(listed or usable, key=ReplicaStage.preference, default=None)

    def _found(self, endpoints: Sequence[Endpoint]) -> None:
        """Take the newest list of replicas: connect to those that are new, and to those that were lost."""
        now = self._clock()
        self._gone.intersection_update(endpoints)
        self._missed_at = {endpoint: since for endpoint, since in self._missed_at.items() if endpoint in endpoints}
        for endpoint in endpoints:
            if replica := self._replicas.get(endpoint):
                replica.listed_at = now
            elif endpoint not in self._gone and endpoint not in self._connecting:
                task = asyncio.create_task(self._keep(endpoint), context=contextvars.Context())
                self._connecting[endpoint] = task

    async def _keep(self, endpoint: Endpoint) -> None:
        """Connect, and hear the replica until the connection ends."""
        try:
            channel = await connect(endpoint)
        except ChannelClosed as error:
            if endpoint not in self._missed_at:
                log.info("stage.unreachable", extra={"deployment": self._deployment, "why": str(error)})
            self._missed_at.setdefault(endpoint, self._clock())
            return
        finally:
            self._connecting.pop(endpoint, None)
        self._missed_at.pop(endpoint, None)
        replica = ReplicaStage(channel, self._deployment, accept_timeout_s=self._accept_timeout_s, clock=self._clock)
        replica.listed_at = self._clock()
        self._replicas[endpoint] = replica
        try:
            await replica.listen()
        finally:
            del self._replicas[endpoint]
            if replica.is_leaving:
                self._gone.add(endpoint)
            channel.close()


class ReplicaStage:
    """One replica at the other end of a channel.

    Attributes:
        outstanding: calls that it has of us.
        asked_at: number of its last batch among all of this process; below 0, at random, before the first.
        listed_at: when a snapshot last named it.
        is_leaving: whether it has said good-bye.
    """

    _numbers = itertools.count(1)

    def __init__(
        self,
        channel: Channel,
        deployment: str,
        *,
        accept_timeout_s: float | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        self.outstanding = 0
        self.asked_at = -random.random()  # noqa: S311 - or all callers would begin with the same one
        self.listed_at = 0.0
        self.is_leaving = False
        self._clock = clock
        self._silent_since = math.inf
        self._channel = channel
        self._deployment = deployment
        self._accept_timeout_s = accept_timeout_s
        self._is_over = False
        self._batches: dict[int, asyncio.Queue[Chunk | None]] = {}
        self._asked: set[str] = set()

    @property
    def is_stalled(self) -> bool:
        """Whether it has said nothing since it was asked, for longer than it takes to say that it took a batch."""
        return self._clock() - self._silent_since > STALL_S

    def preference(self) -> tuple[bool, int, float]:
        """What sorts replicas, the next to ask first; of one that lets calls wait in vain few are left."""
        return self.is_stalled, self.outstanding, self.asked_at

    async def run(self, calls: Sequence[Call]) -> Chunks:
        """Pass the batch on, as ``RemoteStage.run`` says."""
        self.asked_at = number = next(self._numbers)
        chunks = self._batches[number] = asyncio.Queue()
        waiting = {call.id for call in calls}
        self._asked |= waiting
        self.outstanding += len(waiting)
        self._silent_since = min(self._silent_since, self._clock())
        try:
            self._channel.send(Batch(number, calls))
            chunk = None if self._is_over else await self._accepted(chunks)
            while chunk is not None and not chunk.is_last:
                self._answered(chunk.results, waiting)
                yield chunk.results
                if not waiting:
                    return
                chunk = await chunks.get()
            log.warning("stage.lost", extra=self._lost(calls, waiting))
            raise StageLost("the replica that had the calls is gone", outcome=Outcome.UNREACHABLE)
        finally:
            del self._batches[number]
            self.outstanding -= len(waiting)
            self.leave(sorted(waiting))

    async def listen(self) -> None:
        """Hear what it answers, until the connection ends."""
        try:
            while True:
                heard = await self._channel.receive()
                self._silent_since = math.inf
                if heard is BYE:
                    self.is_leaving = True
                    self._channel.send(BYE)
                elif batch := self._batches.get(heard.number):
                    batch.put_nowait(heard)
        except ChannelClosed:
            pass
        finally:
            self._is_over = True
            for batch in self._batches.values():
                batch.put_nowait(None)

    def leave(self, ids: Sequence[str]) -> None:
        """Tell it, if it has them."""
        if ours := [call_id for call_id in ids if call_id in self._asked]:
            self._asked.difference_update(ours)
            self._channel.send(Leave(ours))

    async def _accepted(self, chunks: asyncio.Queue[Chunk | None]) -> Chunk | None:
        try:
            async with asyncio.timeout(self._accept_timeout_s):
                return await chunks.get()
        except TimeoutError as error:
            self._silent_since = -math.inf
            raise StageAbsent("no replica took the calls in time", outcome=Outcome.UNREACHABLE) from error

    def _answered(self, results: Sequence[Result], waiting: set[str]) -> None:
        for result in results:
            if result.id in waiting:
                waiting.discard(result.id)
                self._asked.discard(result.id)
                self.outstanding -= 1

    def _lost(self, calls: Sequence[Call], waiting: set[str]) -> dict[str, Any]:
        ids = [call.request_id for call in calls if call.id in waiting]
        return {"deployment": self._deployment, "why": "channel closed", "request_ids": ids}
