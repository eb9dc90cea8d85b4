"""Callers' verdicts: which answered call one is about, and where it goes.

Each ingress tells the control plane, with its reports, what it answered; so whichever ingress gets the verdict finds
the call. The control plane hands each call out once, and the ingress that asked counts the score.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Final

from serve_app.adapters.dspy_program import Program
from serve_app.adapters.telemetry import Telemetry
from serve_app.deployments.control_link import EXCHANGE_INTERVAL_S, ControlLink
from serve_app.deployments.scoring import Scores, ids, records_of
from serve_app.errors import AlreadyScored, ControlPlaneUnreachable, UnknownRequest
from serve_app.messages import AnsweredCall, Claim, Level, MetricType, Origin, Result

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
        claim = await self._claim(request_id)
        if not claim.is_known and self._second_looks < MAX_SECOND_LOOKS:
            claim = await self._look_again(request_id)
        if claim.call is None:
            raise _refusal(claim)
        origin = claim.call.origin
        self._scores.add(origin, MetricType.FEEDBACK, score)
        record = self._records.get(origin.program)
        if record is not None:
            record.write({**ids(request_id, claim.call.call_id, origin), "score": score, "comment": comment})
        return origin

    async def aclose(self) -> None:
        """Finish what is being written."""
        await asyncio.gather(*(record.aclose() for record in self._records.values()))

    async def _look_again(self, request_id: str) -> Claim:
        self._second_looks += 1
        try:
            await asyncio.sleep(SECOND_LOOK_S)
            return await self._claim(request_id)
        finally:
            self._second_looks -= 1

    async def _claim(self, request_id: str) -> Claim:
        claim: Claim | None = await self._link.ask("claim", request_id)
        if claim is None:
            raise ControlPlaneUnreachable("the control plane cannot be asked; give the verdict again", 1.0)
        return claim


def _refusal(claim: Claim) -> UnknownRequest | AlreadyScored:
    if claim.is_known:
        return AlreadyScored("this call has its verdict")
    return UnknownRequest("no call of that request id was answered lately")
