"""How far a bulk run is: a progress bar on a terminal, and one line at the end anywhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final, TextIO

from tqdm import tqdm

from serve_app.bulk.attempt import Answer, Failure
from serve_app.bulk.output import Done
from serve_app.bulk.rows import Row

MAX_SHOWN_FAILURES: Final = 5


class Tally:
    """Counts rows, and shows them on ``stream`` (standard error).

    Attributes:
        rows: that the input has.
        answered: rows with an answer, those of earlier runs included, like ``failed``.
        failed: rows with an error.
        cost_usd: of all answers.
    """

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._clock = stream, clock
        self.rows = self.answered = self.failed = 0
        self.cost_usd = 0.0
        self._asked = self._failed_now = 0
        self._began = self._clock()
        self._bar: tqdm[None] | None = None

    def begin(self, rows: int, done: Sequence[Done]) -> None:
        """Show the bar; its rate and its ETA leave out what earlier runs have done."""
        self.rows, self._began = rows, self._clock()
        self.answered = sum(line.is_answer for line in done)
        self.failed = len(done) - self.answered
        self.cost_usd = sum(line.cost_usd for line in done)
        self._bar = tqdm(total=rows, initial=len(done), unit="row", disable=None, file=self._stream, smoothing=0.05)
        self._show()

    def add(self, row: Row, outcome: Answer | Failure) -> None:
        """Count what became of a row; the first failures are shown."""
        self._asked += 1
        if isinstance(outcome, Answer):
            self.answered += 1
            self.cost_usd += float(outcome.meta.get("cost_usd") or 0.0)
        else:
            self.failed += 1
            self._failed_now += 1
            if self._failed_now <= MAX_SHOWN_FAILURES:
                tqdm.write(f"row {row.number}: {outcome.code}: {outcome.detail}", file=self._stream)
        self._show()
        if self._bar is not None:
            self._bar.update()

    def end(self) -> None:
        """Take the bar away and say in a line how it went."""
        if self._bar is None:
            return
        self._bar.close()
        seconds = max(1e-9, self._clock() - self._began)
        left = self.rows - self.answered - self.failed
        self._stream.write(
            f"{self.rows} rows: {self.answered} answered, {self.failed} failed, {left} left; ${self.cost_usd:.6g}; "
            f"{self._asked} asked in {seconds:.1f} s, {self._asked / seconds:.1f} a second\n"
        )

    def _show(self) -> None:
        if self._bar is not None:
            self._bar.set_postfix_str(f"${self.cost_usd:.4g}, {self.failed} failed", refresh=False)
