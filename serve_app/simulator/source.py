"""The material an answer is made of: the words, sentences and numbers of a request's inputs.

Every choice is a hash of the text and of the place in the answer, so the same request gets the same answer in
every process and from every model that answers rightly.
"""

from __future__ import annotations

import re
import zlib
from functools import cached_property

_MAX_CHARS = 4000
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")
_MARKUP = re.compile(r"\[\[ ## \w+ ## \]\]|</?\w+(?: key=\"[^\"]*\")?\s*/?>|[\x00-\x08\x0b\x0c\x0e-\x1f]")
_NUMBER = re.compile(r"(?<![\w.])-?\d+(?:,\d{3})*(?:\.\d+)?(?!\w)")
_WORD = re.compile(r"[^\W\d_][\w'-]{3,}")
_PROPER_NAME = re.compile(r"(?<=[a-z,;:] )[A-Z][\w-]+(?: [A-Z][\w-]+)*")
_ARITHMETIC = re.compile(r"[\d(][\d\s+*/().^%-]*[+*/^%-][\d\s+*/().^%-]*[\d)]")
_NOTHING = "Nothing was given."


class Source:
    """Text to draw from; long inputs are used up to their first 4,000 characters.

    Args:
        text: the inputs, joined.
        salt: tells apart several answers to the same text (``n`` choices).
        is_wrong: turn every decision into another valid one.
    """

    def __init__(self, text: str, *, salt: str = "", is_wrong: bool = False) -> None:
        self.text = _MARKUP.sub(" ", text[:_MAX_CHARS])
        self.is_wrong = is_wrong
        self._salt = salt
        self._seed = zlib.crc32(f"{salt}\0{text}".encode(errors="replace"))

    def of(self, text: str) -> Source:
        """Another text to draw from in the same way."""
        return Source(text, salt=self._salt, is_wrong=self.is_wrong)

    def hash(self, path: str) -> int:
        """A number that depends on the text and on the place in the answer alone."""
        return zlib.adler32(path.encode(), zlib.crc32(path.encode(), self._seed)) >> 1

    def share(self, path: str) -> float:
        """The hash as a number in 0..1."""
        return zlib.crc32(path.encode(), self._seed) / 0xFFFFFFFF

    def pick(self, options: list[str], path: str, offset: int = 0) -> str:
        """One of the options, or ``""`` when there is none; a growing offset walks through them all."""
        return options[(self.hash(path) + offset + self.is_wrong) % len(options)] if options else ""

    @cached_property
    def lowered(self) -> str:
        """The text in lower case."""
        return self.text.lower()

    @cached_property
    def sentences(self) -> list[str]:
        """Sentences and lines, white space collapsed; never empty."""
        found = (" ".join(part.split()) for part in _SENTENCE_END.split(self.text))
        return [part for part in found if any(map(str.isalnum, part))] or [_NOTHING]

    @cached_property
    def words(self) -> list[str]:
        """Distinct words of four letters or more, in order; never empty."""
        return list(dict.fromkeys(_WORD.findall(self.text))) or ["item"]

    @cached_property
    def numbers(self) -> list[float]:
        """Every number in the text, in order."""
        return [float(number.replace(",", "")) for number in _NUMBER.findall(self.text)]

    @cached_property
    def proper_names(self) -> list[str]:
        """Capitalised words within a sentence, in order."""
        return _PROPER_NAME.findall(self.text)

    @cached_property
    def arithmetic(self) -> str:
        """The first arithmetic expression in the text, or ``""``."""
        match = _ARITHMETIC.search(self.text)
        return match[0].strip() if match else ""

    def sentence(self, path: str, offset: int = 0) -> str:
        """A sentence of the text."""
        return self.pick(self.sentences, path, offset)

    def phrase(self, path: str, offset: int = 0) -> str:
        """One to three neighbouring words of the text."""
        start = (self.hash(path) + offset + self.is_wrong) % len(self.words)
        return " ".join(self.words[start : start + 1 + self.hash(path) % 3])
