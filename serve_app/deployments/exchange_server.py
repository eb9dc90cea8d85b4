"""``ExchangeServer``: takes replicas' reports over channels, as the control plane's handle does over Ray."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace

from serve_app.adapters.channel import Channel, ChannelClosed, Listener
from serve_app.reports import Endpoint, Report, Snapshot

log = logging.getLogger("switchyard.exchange_server")


class ExchangeServer:
    """Answers each report with a snapshot.

    Args:
        exchange: the control plane's.
        host: address of this machine that replicas reach it at.
    """

    def __init__(self, exchange: Callable[[Report], Awaitable[Snapshot]], host: str) -> None:
        self._exchange = exchange
        self._listener = Listener(host)
        self._callers: set[Channel] = set()

    @property
    def endpoint(self) -> Endpoint:
        """Where, and with which key."""
        return self._listener.endpoint

    def start(self) -> None:
        """Begin to answer; needs a running loop."""
        self._listener.start(self._serve)

    async def aclose(self) -> None:
        """Let everybody go; they find the next control plane by its handle."""
        await self._listener.stop()
        for channel in self._callers:
            channel.close()

    async def _serve(self, channel: Channel) -> None:
        self._callers.add(channel)
        try:
            while True:
                snapshot = await self._exchange(await channel.receive())
                channel.send(replace(snapshot, control=None))  # a channel's key does not travel on it
        except ChannelClosed:
            pass
        except Exception:  # the replica hears what is wrong when it tries again by handle
            log.exception("exchange.failed")
        finally:
            self._callers.discard(channel)
