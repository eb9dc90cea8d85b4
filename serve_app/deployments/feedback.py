"""Callers' verdicts: which answered call one is about, and where it goes.

Each ingress tells the control plane, with its reports, what it answered; so whichever ingress gets the verdict finds
the call. It claims the call from the control plane, settles it there, and counts the score
(``serve_app.core.recent_calls``). When the reply to the claim does not come, nothing is counted, and the same verdict
given again, at whichever ingress, gets the call.
"""

from __future__ import annotations

import asyncio
import contextvars
import hashlib
from collections.abc import Mapping
from typing import Final

from serve_app.adapters.dspy_program import Program
from serve_app.adapters.telemetry import Telemetry
from serve_app.deployments.control_link import EXCHANGE_INTERVAL_S, ControlLink
from serve_app.deployments.scoring import Scores, ids, records_of
from serve_app.errors import AlreadyScored, ControlPlaneUnreachable, UnknownRequest
from serve_app.messages import Level, Result
from serve_app.reports import AnsweredCall, Claim, MetricType, Origin

SECOND_LOOK_S: Final = 2 * EXCHANGE_INTERVAL_S
"""Seconds after which an unknown call is looked for again: it may have been answered a moment ago."""
MAX_SECOND_LOOKS: Final = 64
"""Most verdicts that wait for a second look at once; further ones get none."""


class Feedback:
    """One ingress' part.

    Args:
        programs: by name.
        telemetry: the ingress' metrics.
        link: its line to the control plane.
    """

    def __init__(self, programs: Mapping[str, Program], telemetry: Telemetry, link: ControlLink) -> None:
        self._versions = {name: program.version for name, program in programs.items()}
        self._origins: dict[tuple[str, str, Level], Origin] = {}
        self._link = link
        self._scores = Scores(telemetry, link)
        self._records = records_of(programs, telemetry, link)
        self._second_looks = 0
        self._counting: set[asyncio.Task[Origin]] = set()

    def answered(self, program: str, request_id: str, result: Result) -> None:
        """Let verdicts on this answer find it."""
        key = (program, result.model, result.level)
        origin = self._origins.get(key)
        if origin is None:  # one object for each: a report names thousands of calls and few origins
            origin = self._origins[key] = Origin(program, self._versions[program], result.model, result.level)
        self._link.call_answered(AnsweredCall(request_id, result.id, origin))

    async def give(self, request_id: str, score: float, comment: str = "") -> Origin:
        """Count a verdict on the newest call of that request id; says whose answer it was.

        Args:
            request_id: as the answer's ``meta`` has it.
            score: 0..1.
            comment: goes into the program's record, if it keeps one, and nowhere else.

        Raises:
            UnknownRequest: no such call, or it is too long ago.
            AlreadyScored: the call has its verdict.
            ControlPlaneUnreachable: nobody knows at the moment.
        """
        token = _token(score, comment)
        claim = await self._claim(request_id, token)
        if not claim.is_known and self._second_looks < MAX_SECOND_LOOKS:
            claim = await self._look_again(request_id, token)
        if claim.call is None:
            raise _refusal(claim)
        return await asyncio.shield(self._begin_count(claim.call, score, comment))

    async def aclose(self) -> None:
        """Finish what is being counted and written."""
        await asyncio.gather(*self._counting, return_exceptions=True)
        await asyncio.gather(*(record.aclose() for record in self._records.values()))

    def _begin_count(self, call: AnsweredCall, score: float, comment: str) -> asyncio.Task[Origin]:
        """Count a verdict, also when its caller leaves, who would find the call settled next time.

        In a context of its own, or Ray would cancel what it asks together with the caller's request.
        """
        counting = asyncio.create_task(self._count(call, score, comment), context=contextvars.Context())
        self._counting.add(counting)
        counting.add_done_callback(self._counting.discard)
        return counting

    async def _count(self, call: AnsweredCall, score: float, comment: str) -> Origin:
        if await self._link.ask("settle", call.call_id) is False:
            raise _already_scored()
        self._scores.add(call.origin, MetricType.FEEDBACK, score)
        record = self._records.get(call.origin.program)
        if record is not None:
            record.write({**ids(call.request_id, call.call_id, call.origin), "score": score, "comment": comment})
        return call.origin

    async def _look_again(self, request_id: str, token: str) -> Claim:
        self._second_looks += 1
        try:
            await asyncio.sleep(SECOND_LOOK_S)
            return await self._claim(request_id, token)
        finally:
            self._second_looks -= 1

    async def _claim(self, request_id: str, token: str) -> Claim:
        claim: Claim | None = await self._link.ask("claim", request_id, token)
        if claim is None:
            raise ControlPlaneUnreachable("the control plane cannot be asked; give the verdict again", 1.0)
        return claim


def _token(score: float, comment: str) -> str:
    """What stands for a verdict; nobody reads a comment out of it."""
    return hashlib.blake2b(f"{float(score)} {comment}".encode(), digest_size=8).hexdigest()


def _refusal(claim: Claim) -> UnknownRequest | AlreadyScored:
    if claim.is_known:
        return _already_scored()
    return UnknownRequest("no call of that request id was answered lately")


def _already_scored() -> AlreadyScored:
    return AlreadyScored("this call has its verdict")
