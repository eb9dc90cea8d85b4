"""A bulk run: the rows of a file that are not done yet, through a running application, into another file."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeGuard

from serve_app.bulk.attempt import UNREACHABLE, Answer, Failure, Retries
from serve_app.bulk.http_caller import HttpCaller
from serve_app.bulk.output import Done, Output
from serve_app.bulk.pool import as_finished
from serve_app.bulk.rows import Row, read_rows
from serve_app.bulk.tally import Tally
from serve_app.errors import ConfigError, NoRoute

Outcome = tuple[Row, Answer | Failure]

NO_ANSWER: Final = "no_answer"
"""Code of a row that got no answer of an application that is there."""


@dataclass(frozen=True)
class BulkRun:
    """What to do.

    Attributes:
        program: to call.
        source: file of rows.
        target: file of what became of them; see ``serve_app.bulk.output``.
        url: of the running application.
        concurrency: calls in work at once.
        retries: what happens to refused calls.
        restart: forget what ``target`` holds, once the application answers.
        retry_failed: ask the rows again that failed in an earlier run.
    """

    program: str
    source: Path
    target: Path
    url: str
    concurrency: int = 32
    retries: Retries = field(default_factory=Retries)
    restart: bool = False
    retry_failed: bool = False

    async def run(self, tally: Tally) -> None:
        """Ask every row that is not done, and write what becomes of it.

        Raises:
            ConfigError: nothing was asked: a file, the URL or the program is not what it should be.
            NoRoute: the application stopped to answer; the rows that are left are not done.
        """
        if self.source.resolve() == self.target.resolve():
            raise ConfigError([f"{self.target}: the output would overwrite the input"])
        hashes = {row.number: row.hash for row in read_rows(self.source, self.program)}
        with Output.open(self.target) as output:
            done = [] if self.restart else self._done(output, hashes)
            tally.begin(len(hashes), done)
            if self.restart or len(done) < len(hashes):
                await self._ask(output, {line.row for line in done}, tally)

    def _done(self, output: Output, hashes: dict[int, str]) -> list[Done]:
        """What earlier runs did, and this one need not do."""
        done = {line.row: line for line in output.done()}
        for line in done.values():
            if hashes.get(line.row) != line.hash:
                raise ConfigError([f"{self.target}: {_foreign(line.row, self.source, self.program)}"])
        return [line for line in done.values() if line.is_answer or not self.retry_failed]

    async def _ask(self, output: Output, done: set[int], tally: Tally) -> None:
        rows = (row for row in read_rows(self.source, self.program) if row.number not in done)
        async with HttpCaller.open(self.url, self.program) as call:
            self._forget(output)

            async def ask(row: Row) -> Outcome:
                outcome = await self.retries.run(lambda: call(row))
                if _is_unanswered(outcome) and await call.is_served():
                    outcome = await call(row)
                    if outcome.is_retryable and not _is_unanswered(outcome):  # all who waited are asked again at once
                        outcome = await self.retries.run(lambda: call(row))
                    outcome = _its_own(outcome)
                return row, outcome

            outcomes = as_finished(rows, ask, self.concurrency)
            try:
                async for row, outcome in outcomes:
                    if _is_unanswered(outcome):
                        raise NoRoute(f"{self.url} does not answer any more: {outcome.detail}")
                    output.append(row, outcome)
                    tally.add(row, outcome)
            finally:
                await outcomes.aclose()

    def _forget(self, output: Output) -> None:
        """Take away what is to be asked again; only now that somebody answers."""
        if self.restart:
            output.clear()
        elif self.retry_failed:
            output.drop_failed()


def _is_unanswered(outcome: Answer | Failure) -> TypeGuard[Failure]:
    return isinstance(outcome, Failure) and outcome.code == UNREACHABLE


def _its_own(outcome: Answer | Failure) -> Answer | Failure:
    """What a row comes to that nobody answers though the application is there: it may be what kills its replica."""
    if _is_unanswered(outcome):
        return Failure(NO_ANSWER, f"the application is there, but {outcome.detail}")
    return outcome


def _foreign(row: int, source: Path, program: str) -> str:
    return (
        f"its row {row} is not that row of {source} for {program}: it belongs to another input or program; "
        "choose another file, or --restart"
    )
