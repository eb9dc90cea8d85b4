"""Makes a value for any JSON Schema out of a source text.

Draws on the text where it can: a choice that the text mentions, a number that it holds, a sentence of it.
Covers the JSON Schema that pydantic writes (draft 2020-12 without conditionals).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from serve_app.simulator.texts import formatted_text, free_text, untyped_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from serve_app.simulator.field_types import Schema
    from serve_app.simulator.source import Source

_MAX_DEPTH = 4
_LIKELIHOODS = ("confidence", "score", "probab", "certain", "likelihood", "relevance")


class Values:
    """Values for the schemas of one answer.

    Args:
        source: what to draw from.
        items: what each item of a list is drawn from, which is then as long; ``None`` leaves its length open.
            Of lists inside of the value nothing is said.
    """

    def __init__(self, source: Source, items: Sequence[Source] | None = None) -> None:
        self._source = source
        self._items = items

    def make(self, schema: Schema, path: str) -> object:
        """A value that ``schema`` accepts; ``path`` names its place in the answer."""
        return self._make(schema, path, schema, 0)

    def _make(self, schema: Schema, path: str, root: Schema, depth: int) -> object:
        schema = _resolved(schema, root)
        if "const" in schema:
            return schema["const"]
        if "enum" in schema:
            return self._choice(schema["enum"], path)
        if "x-untyped" in schema:
            return untyped_text(self._source, path)
        variants = schema.get("anyOf") or schema.get("oneOf")
        if variants:
            return self._make(_variant(variants, root, depth), path, root, depth)
        return self._of_type(schema, path, root, depth)

    def _of_type(self, schema: Schema, path: str, root: Schema, depth: int) -> object:
        kind = schema.get("type")
        kind = next((name for name in kind if name != "null"), "null") if isinstance(kind, list) else kind
        if kind == "object" or (kind is None and "properties" in schema):
            return self._object(schema, path, root, depth)
        if kind == "array":
            return self._array(schema, path, root, depth)
        if kind == "boolean":
            return (self._source.share(path) < 0.5) is not self._source.is_wrong  # noqa: PLR2004 - a fair coin
        if kind == "integer":
            return self._integer(schema, path)
        if kind == "number":
            return self._number(schema, path)
        return None if kind == "null" else self._text(schema, path, depth)

    def _choice(self, options: list[Any], path: str) -> object:
        """The option that the text mentions first; of several unmentioned ones, any."""
        mentions = {index: self._source.lowered.find(_spoken(option)) for index, option in enumerate(options)}
        found = [index for index, position in mentions.items() if position >= 0]
        best = min(found, key=mentions.__getitem__, default=self._source.hash(path) % len(options))
        return options[(best + self._source.is_wrong) % len(options)]

    def _integer(self, schema: Schema, path: str) -> int:
        source, step = self._source, int(schema.get("multipleOf", 1)) or 1
        low, high = _limits(schema, open_step=1)
        drawn = [int(number) for number in source.numbers if number % step == 0 and low <= number <= high]
        if drawn:
            value = drawn[source.hash(path) % len(drawn)]
            wrong = value + step if value + step <= high else value - step
            return wrong if source.is_wrong and wrong >= low else value
        low, high = _finite(low, high, width=10)
        first, last = math.ceil(low / step), math.floor(high / step)
        return (first + (source.hash(path) + source.is_wrong) % max(1, last - first + 1)) * step

    def _number(self, schema: Schema, path: str) -> float:
        low, high = _finite(*_limits(schema, open_step=0.01), width=1)
        share = self._share(path)
        if step := schema.get("multipleOf"):
            return float(math.floor((low + (high - low) * share) / step) * step)
        return min(high, max(low, round(low + (high - low) * share, 2)))

    def _share(self, path: str) -> float:
        """A place between the bounds, 0..1; a likelihood is high when the answer is right."""
        share, is_wrong = self._source.share(path), self._source.is_wrong
        if any(word in path.rpartition(".")[2].lower() for word in _LIKELIHOODS):
            return 0.3 + 0.35 * share if is_wrong else 0.75 + 0.24 * share
        return 1 - share if is_wrong else share

    def _text(self, schema: Schema, path: str, depth: int) -> str:
        source = self._source
        text = formatted_text(source, schema["format"], path) if "format" in schema else None
        text = free_text(source, path, depth) if text is None else text
        if len(text) < schema.get("minLength", 0):
            text += " " + " ".join(source.words * schema["minLength"])
            return text[: schema["minLength"]]
        return text[: schema.get("maxLength", len(text))]

    def _array(self, schema: Schema, path: str, root: Schema, depth: int) -> list[object]:
        if depth == 0 and self._items is not None and _takes(schema, len(self._items)):
            return [Values(item)._make(schema["items"], path, root, 1) for item in self._items]
        fixed = schema.get("prefixItems", [])
        slots = [self._make(item, f"{path}.{index}", root, depth + 1) for index, item in enumerate(fixed)]
        least, most = schema.get("minItems", 0), schema.get("maxItems", 3)
        wanted = 0 if depth >= _MAX_DEPTH else 1 + self._source.hash(path) % 3
        count = max(least, min(most, wanted))
        items = schema.get("items")
        if not isinstance(items, dict) or len(slots) >= count:
            return slots
        made = (self._make(items, f"{path}.{index}", root, depth + 1) for index in range(len(slots), 4 * count))
        return slots + _distinct(made, count - len(slots), least=max(least - len(slots), 1 if wanted else 0))

    def _object(self, schema: Schema, path: str, root: Schema, depth: int) -> dict[str, Any]:
        required = schema.get("required", ())
        made = {
            name: self._make(part, f"{path}.{name}", root, depth + 1)
            for name, part in schema.get("properties", {}).items()
            if depth < _MAX_DEPTH or name in required
        }
        extra = schema.get("additionalProperties")
        if made or extra in (None, False) or "properties" in schema:
            return made
        count = max(1, min(2, len(self._source.words)), schema.get("minProperties", 0))
        keys = [self._source.pick(self._source.words, path, index).lower() for index in range(count)]
        part = extra if isinstance(extra, dict) else {"type": "string"}
        return {key: self._make(part, f"{path}.{key}", root, depth + 1) for key in keys}


def _resolved(schema: Schema, root: Schema) -> Schema:
    """The schema with its reference followed and its ``allOf`` merged."""
    for _ in range(16):
        reference = schema.get("$ref")
        if isinstance(reference, str):
            schema = {**_target(reference, root), **{key: part for key, part in schema.items() if key != "$ref"}}
        elif schema.get("allOf"):
            parts = schema["allOf"]
            schema = {key: part for key, part in schema.items() if key != "allOf"}
            for part in parts:
                schema = {**part, **schema}
        else:
            break
    return schema


def _target(reference: str, root: Schema) -> Schema:
    node: Any = root
    for key in reference.removeprefix("#/").split("/"):
        node = node.get(key, {}) if isinstance(node, dict) else {}
    return node if isinstance(node, dict) else {}


def _variant(variants: list[Schema], root: Schema, depth: int) -> Schema:
    """The first variant that is not null; deep down, one that ends the recursion if there is any."""
    kinds = [(_resolved(variant, root), variant) for variant in variants]
    if depth >= _MAX_DEPTH:
        simple = [variant for kind, variant in kinds if kind.get("type") not in {"object", "array"}]
        return min(simple or variants, key=lambda variant: variant.get("type") != "null")
    return next((variant for kind, variant in kinds if kind.get("type") != "null"), variants[0])


def _limits(schema: Schema, *, open_step: float) -> tuple[float, float]:
    """Lowest and highest value allowed, infinite where nothing is said."""
    low = max(schema.get("minimum", -math.inf), schema.get("exclusiveMinimum", -math.inf) + open_step)
    high = min(schema.get("maximum", math.inf), schema.get("exclusiveMaximum", math.inf) - open_step)
    return low, high


def _finite(low: float, high: float, *, width: float) -> tuple[float, float]:
    """The same bounds; an open end is put ``width`` from the other, or at zero."""
    if low == -math.inf:
        low = min(0.0, high - width) if high < math.inf else 0.0
    return low, (low + width if high == math.inf else high)


def _takes(schema: Schema, count: int) -> bool:
    """Whether a list may hold ``count`` values, whatever they are."""
    is_plain = isinstance(schema.get("items"), dict) and not schema.get("prefixItems")
    is_long_enough = schema.get("minItems", 0) <= count <= schema.get("maxItems", math.inf)
    return is_plain and is_long_enough and not schema.get("uniqueItems")


def _distinct(made: Iterable[object], count: int, least: int) -> list[object]:
    """Up to ``count`` different values; repeats only to reach ``least``."""
    kept: list[object] = []
    spare: list[object] = []
    for value in made:
        if len(kept) == count:
            break
        (spare if value in kept else kept).append(value)
    return kept + spare[: max(0, least - len(kept))]


def _spoken(option: object) -> str:
    return str(option).lower().replace("_", " ")
