"""An answer worth keeping, and the bytes it is kept as.

``encode`` writes one version byte, one byte that says whether zlib follows, and JSON. ``decode`` believes none of it:
whatever is not exactly that, of the right types and a bounded size, is ``None``, which is a miss. Nothing is unpickled.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Annotated, Any, Final

import orjson
from pydantic import Field, TypeAdapter, ValidationError

from serve_app.messages import CacheStatus, Level, Result, Usage

COMPRESS_FROM_BYTES: Final = 4096
"""JSON at least this long is compressed; below, the saving is not worth 50 µs."""
MAX_JSON_BYTES: Final = 8 * 2**20
"""Longest JSON written or read; also what a decompression bomb may grow to."""

_VERSION: Final = b"\x01"
_PLAIN: Final = b"j"
_ZLIB: Final = b"z"
_HEADER_BYTES: Final = 2
_LEVEL: Final = 1  # zlib's fastest: a model's text shrinks to a third already
_STRICT: Final = orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_PASSTHROUGH_SUBCLASS

_Measure = Annotated[float, Field(ge=0, allow_inf_nan=False)]


@dataclass(frozen=True, slots=True)
class Entry:
    """One stored answer.

    Attributes:
        program: whose answer it is.
        outputs: in JSON form; shared, so never changed in place.
        model: who gave it.
        level: what the program was.
        usage: tokens it took; saved by each hit.
        cost_usd: what it cost; saved by each hit.
        latency_s: how long it took to make; saved by each hit.
        created_at: Unix time, since entries cross machines.
        ttl_s: seconds it is fresh.
        confidence: how sure the program was, 0..1.
    """

    program: str
    outputs: dict[str, Any]
    model: str
    level: Level
    usage: Usage
    cost_usd: _Measure
    latency_s: _Measure
    created_at: _Measure
    ttl_s: _Measure
    confidence: Annotated[float, Field(allow_inf_nan=False)] | None = None

    def age_s(self, unix_now: float) -> float:
        """Seconds since it was made; 0 for one that another machine's clock dates in the future."""
        return max(0.0, unix_now - self.created_at)

    def answer(
        self, call_id: str, *, status: CacheStatus, tier: str, unix_now: float, ttl_s: float | None = None
    ) -> Result:
        """The result a caller gets from it: no attempts, no tokens, no cost.

        Args:
            call_id: the call it answers.
            status: ``hit`` or ``stale``.
            tier: which level of the cache had it.
            unix_now: what its age is counted to.
            ttl_s: seconds it is fresh, when the configuration has made them fewer since.
        """
        age_s = self.age_s(unix_now)
        return Result(
            id=call_id,
            outputs=self.outputs,
            model=self.model,
            level=self.level,
            cache=status,
            tier=tier,
            age_s=age_s,
            fresh_for_s=(self.ttl_s if ttl_s is None else ttl_s) - age_s,
            confidence=self.confidence,
            saved_cost_usd=self.cost_usd,
            saved_s=self.latency_s,
        )


_ENTRY: Final = TypeAdapter(Entry)


def encode(entry: Entry) -> bytes | None:
    """The entry's bytes; ``None`` when its outputs are too long to keep or not JSON (a lone surrogate, a set)."""
    try:
        text = orjson.dumps(entry, option=_STRICT)
    except TypeError:
        return None
    if len(text) > MAX_JSON_BYTES:
        return None
    if len(text) < COMPRESS_FROM_BYTES:
        return _VERSION + _PLAIN + text
    return _VERSION + _ZLIB + zlib.compress(text, _LEVEL)


def decode(data: bytes) -> Entry | None:
    """The entry; ``None`` for bytes that this version did not write, whoever wrote them."""
    if data[:1] != _VERSION:
        return None
    text = _text(data[1:_HEADER_BYTES], memoryview(data)[_HEADER_BYTES:])
    if text is None:
        return None
    try:
        entry = _ENTRY.validate_json(text, strict=True)
    except ValidationError:
        return None
    return entry if min(entry.usage.input_tokens, entry.usage.output_tokens) >= 0 else None


def _text(form: bytes, body: memoryview) -> bytes | None:
    """The JSON, inflated if need be, never beyond ``MAX_JSON_BYTES``."""
    if form == _PLAIN:
        return bytes(body) if len(body) <= MAX_JSON_BYTES else None
    if form != _ZLIB:
        return None
    inflater = zlib.decompressobj()
    try:
        text = inflater.decompress(body, MAX_JSON_BYTES)
    except zlib.error:
        return None
    return text if inflater.eof and not inflater.unused_data else None
