"""Words for an answer's text fields, drawn from the source and guided by the field's name."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from uuid import UUID

if TYPE_CHECKING:
    from serve_app.simulator.source import Source

_FRAMES = {
    "reasoning": "The input says: {} That settles it.",
    "rationale": "The input says: {} That settles it.",
    "thought": "I have to answer this: {}",
    "explanation": "This follows from: {}",
    "reply": "Thank you for writing. About what you said: {}",
    "response": "Thank you for writing. About what you said: {}",
}
_TITLES = ("title", "subject", "headline", "label", "name", "topic")
_PLACES = ("city", "country", "location", "place", "person", "author", "company")
_PROSE = (
    "summary",
    "description",
    "text",
    "content",
    "body",
    "message",
    "comment",
    "note",
    "reason",
    "detail",
    "quote",
)
_EPOCH = datetime(2024, 1, 1, tzinfo=UTC)
_TITLE_WORDS = 6


def free_text(source: Source, path: str, depth: int) -> str:
    """Text for the field at ``path``: sentences on the first level, short phrases inside of structures."""
    name, offset = _leaf(path)
    if any(word in name for word in _PLACES) and source.proper_names:
        return source.pick(source.proper_names, name, offset)
    if any(word in name for word in ("expression", "formula")) and source.arithmetic:
        return source.arithmetic
    for word, frame in _FRAMES.items():
        if word in name:
            return frame.format(source.sentence(path, offset))
    if any(word in name for word in _TITLES):
        return " ".join(source.sentence(path, offset).split()[:_TITLE_WORDS])
    if depth == 0 or any(word in name for word in _PROSE):
        return source.sentence(path, offset)
    return source.phrase(path, offset)


def formatted_text(source: Source, kind: str, path: str) -> str | None:
    """A string in one of JSON Schema's formats; ``None`` for a format that asks for nothing."""
    moment = _EPOCH + timedelta(minutes=source.hash(path) % 500_000)
    word = re.sub(r"\W", "", source.pick(source.words, path).lower(), flags=re.ASCII) or "item"
    made = {
        "date": moment.date().isoformat(),
        "date-time": moment.isoformat(),
        "time": moment.time().isoformat(),
        "duration": f"PT{1 + source.hash(path) % 90}M",
        "uuid": str(UUID(int=source.hash(path), version=4)),
        "email": f"{word}@example.com",
        "uri": f"https://example.com/{word}",
        "ipv4": "192.0.2.1",
        "ipv6": "2001:db8::1",
    }
    return made.get(kind)


def untyped_text(source: Source, path: str) -> str:
    """Text for a leaf whose type the prompt does not tell: words where the name asks for them, else a digit.

    ``1`` is read as a string, an integer, a float and a boolean alike.
    """
    name, _ = _leaf(path)
    if "date" in name:
        return formatted_text(source, "date", path) or ""
    is_wordy = any(word in name for word in (*_FRAMES, *_TITLES, *_PLACES, *_PROSE, "street", "address"))
    return free_text(source, path, depth=1) if is_wordy else "1"


def _leaf(path: str) -> tuple[str, int]:
    """The nearest name in a path, and the list index that follows it."""
    parts = path.lower().split(".")
    index = int(parts[-1]) if parts[-1].isdigit() else 0
    return next((part for part in reversed(parts) if not part.isdigit()), ""), index
