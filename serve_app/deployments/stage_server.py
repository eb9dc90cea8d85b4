"""``StageServer``: answers for a stage over channels, as its deployment's handle does over Ray.

A message by handle costs milliseconds of CPU, one over a channel a fraction of one. Ray starts, places, watches and
ends the replicas as ever; it only no longer carries the calls, so what it knew by carrying them is done here: a replica
that Ray ends finishes what it has first, and says how many calls it has for autoscaling.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
from collections.abc import Sequence

from serve_app.adapters.channel import Channel, ChannelClosed, Listener
from serve_app.deployments.stage import Stage
from serve_app.deployments.stage_protocol import BYE, Batch, Chunk, Leave, Unreadable
from serve_app.messages import Call
from serve_app.reports import Endpoint

log = logging.getLogger("switchyard.stage_server")

BYE_TIMEOUT_S = 2.0
"""Seconds that callers have to say good-bye, and in the end to read their last answers; what one that stalls sends
later is lost, and asked elsewhere."""


class StageServer:
    """Listens from the start; answers once ``start`` was called.

    Args:
        stage: who answers.
        host: address of this machine that callers reach it at.

    Attributes:
        calls: how many it has in hand.
    """

    def __init__(self, stage: Stage, host: str) -> None:
        self.calls = 0
        self._stage = stage
        self._listener = Listener(host)
        self._is_closing = False
        self._callers: dict[Channel, asyncio.Event] = {}
        self._batches: set[asyncio.Task[None]] = set()

    @property
    def endpoint(self) -> Endpoint:
        """Where, and with which key."""
        return self._listener.endpoint

    def start(self) -> None:
        """Begin to answer; needs a running loop."""
        self._listener.start(self._serve)

    async def aclose(self) -> None:
        """Take no new callers, ask those there are to go elsewhere, and return once every call is answered."""
        self._is_closing = True
        await self._listener.stop()
        for channel in self._callers:
            channel.send(BYE)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(BYE_TIMEOUT_S):
                for has_gone in list(self._callers.values()):
                    await has_gone.wait()
        while self._batches:
            await asyncio.wait(self._batches)
        channels = list(self._callers)
        for channel in channels:
            channel.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(BYE_TIMEOUT_S):
                await asyncio.gather(*(channel.wait_closed() for channel in channels))

    async def _serve(self, channel: Channel) -> None:
        """One caller's wishes, until it is gone; what it still waited for is given up then."""
        if self._is_closing:
            return  # it was at the door when everybody else was asked to go
        has_gone = self._callers[channel] = asyncio.Event()
        batches: set[asyncio.Task[None]] = set()
        try:
            while True:
                match await channel.receive():
                    case Batch(number, calls):
                        task = asyncio.create_task(self._answer(channel, number, calls), context=contextvars.Context())
                        for known in (batches, self._batches):
                            known.add(task)
                            task.add_done_callback(known.discard)
                        await asyncio.sleep(0)  # the stage has the calls before it hears which of them were left
                    case Unreadable(number, why):
                        log.warning("stage.unreadable", extra={"why": why})
                        channel.send(Chunk(number, (), is_last=True))
                    case Leave(ids):
                        self._stage.leave(ids)
                    case _:
                        has_gone.set()
        except ChannelClosed:
            pass
        finally:
            has_gone.set()
            del self._callers[channel]
            for task in batches:
                task.cancel()

    async def _answer(self, channel: Channel, number: int, calls: Sequence[Call]) -> None:
        unanswered = {call.id for call in calls}
        self.calls += len(unanswered)
        try:
            async with contextlib.aclosing(self._stage.run(calls)) as chunks:
                async for results in chunks:
                    channel.send(Chunk(number, results))
                    answered = unanswered.intersection(result.id for result in results)
                    unanswered -= answered
                    self.calls -= len(answered)
        except Exception:  # a defect of the stage must not hang its callers, who take the calls for lost
            log.exception("stage.failed", extra={"request_ids": [call.request_id for call in calls]})
        finally:
            self.calls -= len(unanswered)
            if unanswered:
                channel.send(Chunk(number, (), is_last=True))
