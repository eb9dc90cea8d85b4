"""What a call's attempts have finished so far, so that the next attempt goes on instead of starting over.

A program that ran again would ask the same questions in the same order as long as it gets the same answers. So the
finished steps of a failed attempt go along to the next one, and whoever asks there is first looked up here:

    same question, same occurrence     the recorded answer; nothing is sent, no tool runs
    anything else                      asked anew, and recorded in its turn

A question is known by its fingerprint, and repeated questions by their occurrence: the second time that a program
asks the same thing it gets the second answer, whatever else went on in between. One that failed and is then asked once
more is still the same, so that a program which tries again finds its answer; of the same question asked several times
at once this holds for the latest. There is no order among different questions, so programs that ask several at once are
resumed like any other, and a program that takes another turn simply finds nothing.

Bounds: a journal crosses two processes at each fallback, so it holds at most ``max_steps`` steps and ``max_bytes``
bytes. What was finished first is kept, because later questions depend on earlier answers and hardly occur again
without them; a step that does not fit any more is left out, and is then asked or run again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from serve_app.messages import Step, StepKind

MAX_STEPS: Final = 64
"""Most steps of one call's journal."""
MAX_BYTES: Final = 2**20
"""Most bytes of one call's journal, fingerprints and replies together."""

_FINGERPRINT_CHARS: Final = 32


def fingerprint(question: bytes) -> str:
    """32 hex digits (of SHA-256) that stand for ``question`` among the questions of one call."""
    return hashlib.sha256(question).hexdigest()[:_FINGERPRINT_CHARS]


class Ask(NamedTuple):
    """One question of a program, known again when another attempt comes to it."""

    kind: StepKind
    fingerprint: str
    occurrence: int


class Journal:
    """The finished steps of one call.

    Args:
        inherited: steps of earlier attempts.
        max_steps: most steps kept.
        max_bytes: most bytes kept.

    Attributes:
        resumed: LM steps of this attempt that were answered from earlier ones.
    """

    def __init__(
        self, inherited: Iterable[Step] = (), *, max_steps: int = MAX_STEPS, max_bytes: int = MAX_BYTES
    ) -> None:
        self._max_steps = max_steps
        self._max_bytes = max_bytes
        self._steps: dict[Ask, Step] = {}
        self._bytes = 0
        self._asked: dict[tuple[StepKind, str], int] = {}
        self._last_lm: Ask | None = None
        self.resumed = 0
        for step in inherited:
            self._keep(step)

    def ask(self, kind: StepKind, fingerprint: str) -> Ask:
        """Count a question; its occurrence says how often it was asked before in this attempt, ``take_back`` aside."""
        question = (kind, fingerprint)
        occurrence = self._asked.get(question, 0)
        self._asked[question] = occurrence + 1
        return Ask(kind, fingerprint, occurrence)

    def take_back(self, ask: Ask) -> None:
        """Uncount the latest of a question's occurrences."""
        self._asked[ask.kind, ask.fingerprint] = ask.occurrence

    def reply_to(self, ask: Ask) -> str | None:
        """The recorded answer; ``None`` when there is none."""
        step = self._steps.get(ask)
        return None if step is None else step.reply

    def resume(self, ask: Ask) -> None:
        """Note that the recorded answer was taken."""
        if ask.kind is StepKind.LM:
            self.resumed += 1
            self._last_lm = ask

    def record(self, ask: Ask, reply: str | None) -> None:
        """Note a new answer in place of any recorded one; ``None`` is an answer that cannot be written down."""
        if ask.kind is StepKind.LM:
            self._last_lm = ask
        self._forget(ask)
        if reply is not None:
            self._keep(Step(*ask, reply))

    def blame(self, is_blamed: Callable[[str], bool], sources: Iterable[Callable[[str], bool]] = ()) -> None:
        """Forget the LM's latest answer and every other that ``is_blamed``: the next model gives its own.

        With several questions asked at once, the one that the program failed on need not be the latest. Of the answers
        that may be one of ``sources`` only the newest is forgotten: what is asked anew may lead to a tool's being
        called again in other words.
        """
        answers = [ask for ask in self._steps if ask.kind is StepKind.LM]
        blamed = {ask for ask in answers if is_blamed(self._steps[ask].reply)}
        for is_source in sources:
            found = [ask for ask in answers if is_source(self._steps[ask].reply)]
            blamed.update(found[-1:])
        for ask in blamed:
            self._forget(ask)
        if self._last_lm is not None:
            self._forget(self._last_lm)

    def finished(self) -> tuple[Step, ...]:
        """Every step that the next attempt may take over, those of earlier attempts included, oldest first."""
        return tuple(self._steps.values())

    def _keep(self, step: Step) -> None:
        size = _size(step)
        if len(self._steps) < self._max_steps and self._bytes + size <= self._max_bytes:
            self._steps[Ask(step.kind, step.fingerprint, step.occurrence)] = step
            self._bytes += size

    def _forget(self, ask: Ask) -> None:
        step = self._steps.pop(ask, None)
        if step is not None:
            self._bytes -= _size(step)


def _size(step: Step) -> int:
    reply = step.reply
    return len(step.fingerprint) + (len(reply) if reply.isascii() else len(reply.encode()))
