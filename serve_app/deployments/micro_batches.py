"""Programs that batch: calls that get their slots in the same turn of the loop are handed over as one.

A whole batch gives its slots back at once, so the next one forms from what waits for them. What the program spent is
shared out evenly, and an answer that the token limit cut off counts as each call's; a batch has no journal. One who
leaves hurts nobody, and the last one ends the work.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from serve_app.adapters.call_scope import CallScope, call_scope
from serve_app.adapters.dspy_program import Answer, Program
from serve_app.adapters.program_runner import out_of_time
from serve_app.errors import SwitchyardError
from serve_app.messages import Call, Level, Usage

if TYPE_CHECKING:
    import dspy

_Key = tuple[str, Level, int | None]


@dataclass(frozen=True, slots=True, eq=False)
class _Item:
    call: Call
    scope: CallScope
    answer: asyncio.Future[Answer]


class MicroBatches:
    """The batches of one model's replica.

    Args:
        lm: the model.
    """

    def __init__(self, lm: dspy.LM) -> None:
        self._lm = lm
        self._forming: dict[_Key, list[_Item]] = {}
        self._running: set[asyncio.Task[None]] = set()

    async def run(self, program: Program, call: Call, scope: CallScope) -> Answer:
        """Answer the call together with others of its program, level and token limit.

        Raises:
            SwitchyardError: what went wrong with this call, or with the whole batch.
        """
        loop, key = asyncio.get_running_loop(), (program.name, call.level, scope.max_tokens)
        if key not in self._forming:
            self._forming[key] = []
            loop.call_soon(self._send, key, program)
        item = _Item(call, scope, loop.create_future())
        self._forming[key].append(item)
        try:
            async with asyncio.timeout(scope.remaining_s()):
                return await item.answer
        except TimeoutError as error:
            raise out_of_time() from error

    def _send(self, key: _Key, program: Program) -> None:
        items = [item for item in self._forming.pop(key) if not item.answer.done()]
        if not items:
            return
        task = asyncio.create_task(self._answer(program, items), context=contextvars.Context())
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        for item in items:
            item.answer.add_done_callback(partial(_end_if_deserted, task, items))

    async def _answer(self, program: Program, items: Sequence[_Item]) -> None:
        longest_s = max(item.scope.remaining_s() for item in items)
        outcomes: list[Answer | SwitchyardError]
        with call_scope(longest_s, items[0].scope.max_tokens) as spent:
            try:
                outcomes = await program.run_batch([item.call for item in items], self._lm)
            except SwitchyardError as error:
                outcomes = [error] * len(items)
            finally:
                _share(spent, items)
        for item, outcome in zip(items, outcomes, strict=True):
            if item.answer.done():
                continue
            if isinstance(outcome, SwitchyardError):
                item.answer.set_exception(outcome)
            else:
                item.answer.set_result(outcome)


def _share(spent: CallScope, items: Sequence[_Item]) -> None:
    """Charge each call its part of what the batch spent; the sum of the tokens stays exact."""
    count = len(items)
    for at, item in enumerate(items):
        item.scope.usage += Usage(
            _part(spent.usage.input_tokens, at, count), _part(spent.usage.output_tokens, at, count)
        )
        item.scope.lm_answers += spent.lm_answers / count
        item.scope.lm_s += spent.lm_s / count
        item.scope.is_cut_off |= spent.is_cut_off


def _part(total: int, at: int, count: int) -> int:
    return total // count + (at < total % count)


def _end_if_deserted(task: asyncio.Task[None], items: Sequence[_Item], _: asyncio.Future[Answer]) -> None:
    if all(item.answer.cancelled() for item in items):
        task.cancel()
