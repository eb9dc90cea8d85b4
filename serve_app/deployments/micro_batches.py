"""Programs that batch: calls that get their slots in the same turn of the loop are handed over as one.

A whole batch gives its slots back at once, so the next one forms from what waits for them. Where it fails by the fault
of one of its calls, parts of it run again until that one fails alone (``core/isolation.py``), each part as a batch of
its own in the slots that its calls hold anyway. What the program spent is shared out evenly among those who wait for
it, and an answer that the token limit cut off counts as each call's; a batch has no journal. One who leaves hurts
nobody, and the last one ends the work.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from serve_app.adapters.call_scope import CallScope, call_scope
from serve_app.adapters.dspy_program import Answer, Program
from serve_app.adapters.json_log import about_call
from serve_app.adapters.program_runner import out_of_time
from serve_app.adapters.tracing import join
from serve_app.core.isolation import is_perhaps_one_calls_fault, parts
from serve_app.errors import SwitchyardError
from serve_app.messages import Call, Level, Outcome, Usage

if TYPE_CHECKING:
    import dspy

log = logging.getLogger("switchyard.batches")

_Key = tuple[str, Level, int | None]


@dataclass(slots=True, eq=False)
class _Item:
    call: Call
    scope: CallScope
    answer: asyncio.Future[Answer]
    is_again: bool = False
    """Whether a batch that it was in failed, perhaps by the fault of another."""

    @property
    def is_worth_a_run(self) -> bool:
        """Whether its caller is there and it has time left."""
        return not self.answer.done() and self.scope.remaining_s() > 0

    def settle(self, outcome: Answer | SwitchyardError) -> None:
        """Tell the caller, who is told once; where another's fault took time, a timeout says nothing of the model."""
        if self.answer.done():
            return
        if not isinstance(outcome, SwitchyardError):
            self.answer.set_result(outcome)
        elif self.is_again and outcome.outcome is Outcome.TIMEOUT:
            self.answer.set_exception(out_of_time(Outcome.CUT_SHORT))
        else:
            self.answer.set_exception(outcome)


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
        deadline = loop.call_later(scope.remaining_s(), item.settle, out_of_time())
        try:
            return await item.answer
        finally:
            deadline.cancel()

    def _send(self, key: _Key, program: Program) -> None:
        items = [item for item in self._forming.pop(key) if not item.answer.done()]
        if items:
            self._start(program, items)

    def _start(self, program: Program, items: Sequence[_Item]) -> None:
        task = asyncio.create_task(self._answer(program, items), context=_context([item.call for item in items]))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        for item in items:
            item.answer.add_done_callback(partial(_end_if_deserted, task, items))

    async def _answer(self, program: Program, items: Sequence[_Item]) -> None:
        outcomes: list[Answer | SwitchyardError]
        try:
            outcomes = await self._run(program, items)
        except SwitchyardError as error:
            if is_perhaps_one_calls_fault(error.outcome, len(items)):
                self._run_again(program, items, error.outcome)
                return
            outcomes = [error] * len(items)
        for item, outcome in zip(items, outcomes, strict=True):
            item.settle(outcome)

    def _run_again(self, program: Program, items: Sequence[_Item], outcome: Outcome) -> None:
        left = [item for item in items if item.is_worth_a_run]
        ids = [item.call.request_id for item in left]
        log.warning("batch.run_again", extra={"program": program.name, "outcome": outcome, "request_ids": ids})
        for item in left:
            item.is_again = True
        for part in parts(left):
            self._start(program, part)

    async def _run(self, program: Program, items: Sequence[_Item]) -> list[Answer | SwitchyardError]:
        longest_s = max(item.scope.remaining_s() for item in items)
        with call_scope(longest_s, items[0].scope.max_tokens) as spent:
            try:
                return await program.run_batch([item.call for item in items], self._lm)
            finally:
                _share(spent, [item for item in items if not item.answer.done()])


def _context(calls: Sequence[Call]) -> contextvars.Context:
    """What is asked for several calls has one parent, the first that is traced; its lines are about none of them."""
    context = contextvars.Context()
    context.run(join, next((call.trace for call in calls if call.trace), None))
    if len(calls) == 1:
        context.run(about_call, calls[0].request_id)
    return context


def _share(spent: CallScope, items: Sequence[_Item]) -> None:
    """Charge each call its part of what the batch spent; the sum of the tokens stays exact."""
    count = len(items)
    for at, item in enumerate(items):
        item.scope.usage += Usage(
            _part(spent.usage.input_tokens, at, count), _part(spent.usage.output_tokens, at, count)
        )
        item.scope.lm_answers += spent.lm_answers / count
        item.scope.lm_s += spent.lm_s / count
        item.scope.is_truncated |= spent.is_truncated
        item.scope.is_cut_off |= spent.is_cut_off


def _part(total: int, at: int, count: int) -> int:
    return total // count + (at < total % count)


def _end_if_deserted(task: asyncio.Task[None], items: Sequence[_Item], _: asyncio.Future[Answer]) -> None:
    if all(item.answer.done() for item in items):
        task.cancel()
