"""Shorten text without breaking a word, for levels of service that send less."""

from __future__ import annotations


def trim_to_words(text: str, max_chars: int) -> str:
    """The longest beginning of ``text`` that fits ``max_chars`` characters and ends where a word ends.

    A first word that is longer than ``max_chars`` by itself is cut, because an empty text would say less than a
    cut one. White space at the cut is dropped; text that fits is returned as it is.

    Args:
        text: what to shorten.
        max_chars: most characters (code points) to keep; at least 1.
    """
    if len(text) <= max_chars:
        return text
    kept = text[:max_chars]
    if text[max_chars].isspace():
        return kept.rstrip() or kept
    whole_words = kept[: _end_of_last_gap(kept)].rstrip()
    return whole_words or kept


def _end_of_last_gap(text: str) -> int:
    """Index just after the last white space in ``text``; 0 when there is none."""
    return next((index + 1 for index in range(len(text) - 1, -1, -1) if text[index].isspace()), 0)
