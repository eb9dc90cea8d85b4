"""How long and how hard a call looks, read off its inputs without asking a model.

``estimate_tokens`` counts four ASCII characters, or three bytes of any other script, as one token: within a quarter of
what tokenizers count for prose, rather above than below (a CJK character is three bytes, one token). An embedded file
(``data:...;base64,...``) counts as one image, whatever its size.

``estimate`` adds points and reads the sum as a complexity: 0 low, 1-2 medium, 3 and more high.

    ========================================================  ======
    400 tokens or more / 2,000 or more                        1 / 2
    three questions or more                                   1
    words that ask for reasoning: one / two or more distinct  1 / 2
    code (a fence, or a line that looks like a program)       1
    arithmetic (three numbers or more, or a formula)          1
    ========================================================  ======

The words are English; in other languages the length, the code, the numbers and the question marks still count.
Only the first ``MAX_SCANNED_CHARS`` characters are searched; all of them count towards the length.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from serve_app.messages import Complexity

MAX_SCANNED_CHARS: Final = 20_000
MAX_SCANNED_VALUES: Final = 100_000
IMAGE_TOKENS: Final = 1000
"""Tokens an embedded file counts for: a mid-sized image at the large providers."""

_LONG_TOKENS: Final = 400
_VERY_LONG_TOKENS: Final = 2000
_MANY_QUESTIONS: Final = 3
_MANY_NUMBERS: Final = 3
_MANY_REASONS: Final = 2
_MEDIUM_POINTS: Final = 1
_HIGH_POINTS: Final = 3

_BASE64: Final = ";base64,"
_EMBEDDED = re.compile(r"data:[\w.+-]+/[\w.+-]+;base64,[A-Za-z0-9+/=_-]*")
_QUESTION = re.compile("[?\uff1f\u061f]+")  # Latin, fullwidth, Arabic
_NUMBER = re.compile(r"(?<!\w)\d+(?:[.,]\d+)*")
_FORMULA = re.compile(r"\w\s*[=^*/\xd7\xf7]\s*\d|\\(?:frac|sum|int|sqrt)\b|[∑∫√≤≥]")
_CODE = re.compile(
    r"```|^[ \t]*(?:def|class|import|from|function|const|let|var|public|private|#include|SELECT|CREATE)\s+[\w<*{\"']"
    r"|[;{][ \t]*$|=>|\)\s*\{",
    re.MULTILINE,
)
_REASONING = re.compile(
    r"\b(step[- ]by[- ]step|prove|proof|derive|why|explain|compare|contrast|analy[sz]e|evaluate|justify|"
    r"trade-?offs?|implications?|optimi[sz]e|debug|diagnose|root cause|architect|design|strategy|critique|"
    r"synthesi[sz]e|hypothes[ei]s|pros and cons|what if)\b",
    re.IGNORECASE,
)


def estimate_tokens(inputs: Mapping[str, Any]) -> int:
    """Tokens the inputs take in a prompt, about; the program's own instructions are not among them."""
    return sum(_tokens(value) for value in _scalars(inputs))


def estimate(inputs: Mapping[str, Any], tokens: int | None = None) -> Complexity:
    """Low, medium or high, by the table above; never ``auto``. ``tokens`` are the inputs', where they are known."""
    length = estimate_tokens(inputs) if tokens is None else tokens
    points = _length_points(length) + _text_points(_sample(inputs))
    if points >= _HIGH_POINTS:
        return Complexity.HIGH
    return Complexity.MEDIUM if points >= _MEDIUM_POINTS else Complexity.LOW


def resolve(asked: Complexity, inputs: Mapping[str, Any], tokens: int | None = None) -> Complexity:
    """What the caller asked for, or the estimate when that was ``auto``."""
    return estimate(inputs, tokens) if asked is Complexity.AUTO else asked


def _length_points(tokens: int) -> int:
    return (tokens >= _LONG_TOKENS) + (tokens >= _VERY_LONG_TOKENS)


def _text_points(text: str) -> int:
    reasons = {match.lower() for match in _REASONING.findall(text)}
    asks_much = len(_QUESTION.findall(text)) >= _MANY_QUESTIONS
    arithmetic = len(_NUMBER.findall(text)) >= _MANY_NUMBERS or _FORMULA.search(text) is not None
    return min(len(reasons), _MANY_REASONS) + asks_much + (_CODE.search(text) is not None) + arithmetic


def _scalars(inputs: Mapping[str, Any]) -> Iterator[object]:
    """Every key and leaf in reading order, up to ``MAX_SCANNED_VALUES``; no recursion, so no depth is too deep."""
    waiting: list[object] = [inputs]
    for _ in range(MAX_SCANNED_VALUES):
        if not waiting:
            return
        value = waiting.pop()
        if isinstance(value, Mapping):
            for key in reversed(list(value)):
                waiting += (value[key], key)
        elif isinstance(value, list | tuple):
            waiting.extend(reversed(value))
        else:
            yield value


def _tokens(value: object) -> int:
    if isinstance(value, str):
        return _text_tokens(value)
    if isinstance(value, int):
        return value.bit_length() // 10 + 1  # three digits, ten bits, a token
    return 1 if value is None else 4


def _text_tokens(text: str) -> int:
    images = 0
    if _BASE64 in text:
        text, images = _EMBEDDED.subn("", text)
    if text.isascii():
        return images * IMAGE_TOKENS + -(-len(text) // 4)
    plain = len(text.encode("ascii", "ignore"))
    other_bytes = len(text.encode("utf-8", "surrogatepass")) - plain
    return images * IMAGE_TOKENS + -(-plain // 4) + -(-other_bytes // 3)


def _sample(inputs: Mapping[str, Any]) -> str:
    """The inputs' text, embedded files left out, cut at ``MAX_SCANNED_CHARS``."""
    parts: list[str] = []
    room = MAX_SCANNED_CHARS
    for value in _scalars(inputs):
        if room <= 0:
            break
        if isinstance(value, str):
            text = value[:room]
            parts.append(_EMBEDDED.sub("", text) if _BASE64 in text else text)
            room -= len(value)
    return "\n".join(parts)
