"""``RemoteStage``: a stage in other processes, over channels where there are some and over Ray where there is none.

Replicas say where they listen to the control plane, and every snapshot tells those who ask them. Until the first
snapshot, while a model has no replica, and where no connection comes about, Ray's handle finds whoever there is.
"""

from __future__ import annotations

import asyncio
import contextvars
import itertools
import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from serve_app.adapters.channel import Channel, ChannelClosed, connect
from serve_app.core.clock import Clock
from serve_app.deployments.stage import Chunks, HandleStage, StageAbsent, StageLost
from serve_app.deployments.stage_protocol import BYE, Batch, Chunk, Leave
from serve_app.messages import Call, Outcome, Result
from serve_app.reports import Endpoint

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

    from serve_app.deployments.control_link import ControlLink

log = logging.getLogger("switchyard.stage")

UNLISTED_S = 3.0
"""Seconds after which a replica that no snapshot names any more is asked only if there is no other: it has not reported
for longer than a new control plane needs to hear from everybody."""


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
        usable = [replica for replica in self._replicas.values() if not replica.is_leaving]
        now = self._clock()
        listed = [replica for replica in usable if now - replica.listed_at <= UNLISTED_S]
        return min(listed or usable, key=ReplicaStage.preference, default=None)

    def _found(self, endpoints: Sequence[Endpoint]) -> None:
        """Take the newest list of replicas: connect to those that are new, and to those that were lost."""
        now = self._clock()
        self._gone.intersection_update(endpoints)
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
            log.info("stage.unreachable", extra={"deployment": self._deployment, "why": str(error)})
            return
        finally:
            self._connecting.pop(endpoint, None)
        replica = ReplicaStage(channel, self._deployment, accept_timeout_s=self._accept_timeout_s)
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
        asked_at: number of its last batch among all of this process; 0 before the first.
        listed_at: when a snapshot last named it.
        is_leaving: whether it has said good-bye.
        is_stalled: whether it let a batch wait in vain and has said nothing since.
    """

    _numbers = itertools.count(1)

    def __init__(self, channel: Channel, deployment: str, *, accept_timeout_s: float | None = None) -> None:
        self.outstanding = 0
        self.asked_at = 0
        self.listed_at = 0.0
        self.is_leaving = False
        self.is_stalled = False
        self._channel = channel
        self._deployment = deployment
        self._accept_timeout_s = accept_timeout_s
        self._is_over = False
        self._batches: dict[int, asyncio.Queue[Chunk | None]] = {}
        self._asked: set[str] = set()

    def preference(self) -> tuple[bool, int, int]:
        """What sorts replicas, the next to ask first; of one that let calls wait in vain few are left."""
        return self.is_stalled, self.outstanding, self.asked_at

    async def run(self, calls: Sequence[Call]) -> Chunks:
        """Pass the batch on, as ``RemoteStage.run`` says."""
        self.asked_at = number = next(self._numbers)
        chunks = self._batches[number] = asyncio.Queue()
        waiting = {call.id for call in calls}
        self._asked |= waiting
        self.outstanding += len(waiting)
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
                self.is_stalled = False
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
            self.is_stalled = True
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
