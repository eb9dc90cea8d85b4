"""Sends a completion at the model's pace, whole or as a stream, and breaks it where a fault says so."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from serve_app.simulator.faults import Fault, SilenceFault, SlowFault
from serve_app.simulator.openai_wire import CHARS_PER_TOKEN, Choice, Completion

if TYPE_CHECKING:
    from collections.abc import Iterator
    from random import Random

    from serve_app.simulator.exchange import Exchange
    from serve_app.simulator.profile import ModelProfile

_CHUNK_CHARS = 4 * CHARS_PER_TOKEN
"""Characters in a chunk: as small as providers send them, for clients that look for markers in each."""
_SHORTEST_PAUSE_S = 0.005
"""Shorter pauses are added up: a fast model is kept at its pace without waking up for each chunk."""
_GARBAGE = b'data: {"id": "chatcmpl-, "choices": [{]\xff\n\n'
_GARBAGE_BODY = b"<html><body>upstream\xff fell over</body></html>"
_BREAKS = frozenset({"stream_cut", "stream_stall", "malformed_chunk", "truncated_json"})


class Delivery:
    """One completion on its way to one client.

    Args:
        exchange: the connection.
        profile: the model's pace.
        dice: source of the jitter.
    """

    def __init__(self, exchange: Exchange, profile: ModelProfile, dice: Random) -> None:
        self._exchange = exchange
        self._profile = profile
        self._dice = dice
        self._owed_s = 0.0

    async def deliver(self, completion: Completion, request: dict[str, Any], fault: Fault | None) -> None:
        """Send the completion as the request wants it.

        Raises:
            ClientGoneError: the client left before the end.
        """
        if request.get("stream"):
            await self._stream(completion, request, fault)
        else:
            await self._whole(completion, fault)

    async def silence(self, max_s: float, *, is_started: bool) -> None:
        """Say nothing until the client leaves; reset the connection after ``max_s`` seconds."""
        await self._exchange.pause(max_s)
        await self._exchange.reset(is_started=is_started)

    async def _whole(self, completion: Completion, fault: Fault | None) -> None:
        await self._pause(self._first_token_s(fault) + completion.output_tokens / self._profile.tokens_per_s)
        body = completion.body()
        if fault is None or fault.kind not in _BREAKS:
            await self._exchange.reply(200, body)
        elif fault.kind == "malformed_chunk":
            await self._exchange.reply(200, _GARBAGE_BODY)
        elif fault.kind == "truncated_json":
            await self._exchange.reply(200, body[: len(body) // 2])
        else:
            headers = {"content-type": "application/json", "content-length": str(len(body))}
            await self._exchange.start(200, headers)
            await self._exchange.write(body[: len(body) // 2])
            await self._end_early(fault)

    async def _stream(self, completion: Completion, request: dict[str, Any], fault: Fault | None) -> None:
        await self._exchange.start(200, {"content-type": "text/event-stream", "cache-control": "no-cache"})
        await self._pause(self._first_token_s(fault))
        events = list(self._events(completion))
        if fault is not None and fault.kind in _BREAKS:
            events = events[: max(1, len(events) // 2)]
        for data, tokens in events:
            await self._pause(tokens / self._profile.tokens_per_s, _SHORTEST_PAUSE_S)
            await self._exchange.write(data)
        if fault is not None and fault.kind in _BREAKS:
            await self._break(completion, fault)
            return
        options = request.get("stream_options")
        if isinstance(options, dict) and options.get("include_usage"):
            await self._exchange.write(completion.usage_event())
        await self._exchange.write(b"data: [DONE]\n\n", more=False)

    async def _break(self, completion: Completion, fault: Fault) -> None:
        """End a stream half way through."""
        if fault.kind == "malformed_chunk":
            await self._exchange.write(_GARBAGE)
            await self._exchange.write(b"data: [DONE]\n\n", more=False)
        elif fault.kind == "truncated_json":
            whole = completion.delta(0, {"content": "…"})
            await self._exchange.write(whole[: len(whole) // 2] + b"\n\n", more=False)
        else:
            await self._end_early(fault)

    async def _end_early(self, fault: Fault) -> None:
        if isinstance(fault, SilenceFault):
            await self.silence(fault.max_s, is_started=True)
        else:
            await self._exchange.reset(is_started=True)

    def _events(self, completion: Completion) -> Iterator[tuple[bytes, int]]:
        """Every event of the stream with the output tokens that it carries."""
        for index, choice in enumerate(completion.choices):
            yield completion.delta(index, {"role": "assistant", "content": None if choice.tool else ""}), 0
            if choice.tool:
                yield from _tool_events(completion, index, choice)
            for start in range(0, len(choice.text), _CHUNK_CHARS):
                piece = choice.text[start : start + _CHUNK_CHARS]
                yield completion.delta(index, {"content": piece}), -(-len(piece) // CHARS_PER_TOKEN)
            yield completion.delta(index, {}, choice.finish_reason), 0

    def _first_token_s(self, fault: Fault | None) -> float:
        return self._profile.ttft_s + (fault.delay_s if isinstance(fault, SlowFault) else 0.0)

    async def _pause(self, delay_s: float, shortest_s: float = 0.0) -> None:
        jitter = self._profile.jitter
        self._owed_s += delay_s * self._dice.uniform(1 - jitter, 1 + jitter) if jitter else delay_s
        if self._owed_s >= shortest_s:
            owed_s, self._owed_s = self._owed_s, 0.0
            await self._exchange.pause(owed_s)


def _tool_events(completion: Completion, index: int, choice: Choice) -> Iterator[tuple[bytes, int]]:
    call = completion.tool_call(choice, index)
    opening = {**call, "index": 0, "function": {"name": choice.tool, "arguments": ""}}
    yield completion.delta(index, {"tool_calls": [opening]}), 0
    for start in range(0, len(choice.arguments), _CHUNK_CHARS):
        piece = {"index": 0, "function": {"arguments": choice.arguments[start : start + _CHUNK_CHARS]}}
        yield completion.delta(index, {"tool_calls": [piece]}), _CHUNK_CHARS // CHARS_PER_TOKEN
