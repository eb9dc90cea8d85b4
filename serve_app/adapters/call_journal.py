"""The journal of the call in progress, as its LM calls and tools use it, from any thread."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from functools import cache, partial
from typing import TypeVar

from serve_app.adapters.lm_step import load_response
from serve_app.core.journal import MAX_STEPS, Ask, Journal
from serve_app.messages import Step, StepKind

T = TypeVar("T")

_UNREADABLE = (KeyError, TypeError, ValueError, AttributeError)


def _no_answer() -> None:
    """What a failure leaves, as a rule."""


class CallJournal:
    """What this attempt and those before it finished.

    A sync program works on threads of its own while its LM calls are made on a loop, so every use holds a lock.

    Args:
        inherited: steps of earlier attempts at the same call.
    """

    def __init__(self, inherited: Iterable[Step] = ()) -> None:
        self._journal = Journal(inherited)
        self._failed: dict[Ask, Callable[[], str | None]] = {}
        self._lock = threading.Lock()
        self._is_closed = False

    @property
    def resumed(self) -> int:
        """LM steps taken over from earlier attempts."""
        return self._journal.resumed

    def ask(self, kind: StepKind, fingerprint: str | None) -> Ask | None:
        """A question's place in the journal; ``None`` for one without a fingerprint."""
        if fingerprint is None:
            return None
        with self._lock:
            return self._again(self._journal.ask(kind, fingerprint))

    def replay(self, ask: Ask | None, load: Callable[[str], T]) -> T | None:
        """The recorded answer as ``load`` reads it; ``None`` when there is none, or none that it can read."""
        if ask is None:
            return None
        with self._lock:
            reply = self._journal.reply_to(ask)
        if reply is None:
            return None
        try:
            answer = load(reply)
        except _UNREADABLE:  # written by another version during a rolling update: asked anew, and written over
            return None
        with self._lock:
            self._journal.resume(ask)
        return answer

    def record(self, ask: Ask | None, reply: str | None) -> None:
        """Note an answer; without a place or a written form there is nothing to note."""
        if ask is None:
            return
        with self._lock:
            if not self._is_closed:
                self._journal.record(ask, reply)

    def failed(self, ask: Ask | None, reply: Callable[[], str | None] = _no_answer) -> None:
        """Note that a question failed. ``reply`` is asked once the failure was dealt with whether it is an answer."""
        with self._lock:
            if ask is not None and not self._is_closed and len(self._failed) < MAX_STEPS:
                self._failed[ask] = reply

    def blame(self, text: str | None, values: Iterable[str] = ()) -> None:
        """Forget the latest response, each with this ``text``, and of each value the newest that has it."""
        said = cache(_text)  # each reply is read once, however many values there are

        def has(value: str, reply: str) -> bool:
            return value in (said(reply) or "")

        with self._lock:
            self._journal.blame(
                lambda reply: text is not None and said(reply) == text, [partial(has, value) for value in values]
            )

    def finished(self) -> tuple[Step, ...]:
        """The steps that the next attempt may take over."""
        with self._lock:
            failed, self._failed = self._failed, {}
            for ask, reply in failed.items():
                self._journal.record(ask, reply())
            return self._journal.finished()

    def close(self) -> None:
        """The attempt is over: what a thread that was given up still finishes is not noted any more."""
        with self._lock:
            self._is_closed = True
            self._failed = {}

    def _again(self, ask: Ask) -> Ask:
        """``ask``, or the one before it, where that failed and left no answer: the program tries again."""
        before = ask._replace(occurrence=ask.occurrence - 1)
        if before not in self._failed:
            return ask
        reply = self._failed.pop(before)()
        if reply is None:
            self._journal.take_back(ask)
            return before
        self._journal.record(before, reply)
        return ask


def _text(reply: str) -> str | None:
    try:
        text: str | None = load_response(reply).text
    except _UNREADABLE:
        return None
    return text
