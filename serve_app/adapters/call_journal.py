"""The journal of the call in progress, as its LM calls and tools use it, from any thread."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import TypeVar

from serve_app.adapters.lm_step import load_response
from serve_app.core.journal import MAX_STEPS, Ask, Journal
from serve_app.messages import Step, StepKind

T = TypeVar("T")

_UNREADABLE = (KeyError, TypeError, ValueError, AttributeError)


class CallJournal:
    """What this attempt and those before it finished.

    A sync program works on threads of its own while its LM calls are made on a loop, so every use holds a lock.

    Args:
        inherited: steps of earlier attempts at the same call.
    """

    def __init__(self, inherited: Iterable[Step] = ()) -> None:
        self._journal = Journal(inherited)
        self._later: list[tuple[Ask, Callable[[], str | None]]] = []
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
            return self._journal.ask(kind, fingerprint)

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

    def record_later(self, ask: Ask, reply: Callable[[], str | None]) -> None:
        """Note an answer that is known only once the attempt is over: ``reply`` makes it for ``finished``."""
        with self._lock:
            if not self._is_closed and len(self._later) < MAX_STEPS:
                self._later.append((ask, reply))

    def blame(self, text: str | None) -> None:
        """Forget the latest response, and every one with this ``text``: the program could not use it."""
        with self._lock:
            self._journal.blame(lambda reply: text is not None and _text(reply) == text)

    def finished(self) -> tuple[Step, ...]:
        """The steps that the next attempt may take over."""
        with self._lock:
            later, self._later = self._later, []
            for ask, reply in later:
                self._journal.record(ask, reply())
            return self._journal.finished()

    def close(self) -> None:
        """The attempt is over: what a thread that was given up still finishes is not noted any more."""
        with self._lock:
            self._is_closed = True
            self._later = []


def _text(reply: str) -> str | None:
    try:
        text: str | None = load_response(reply).text
    except _UNREADABLE:
        return None
    return text
