"""What a PromQL expression names: metrics and labels. Enough of the grammar for alerts and dashboards, and no more."""

import re
from typing import NamedTuple

WORDS = {
    *("sum", "min", "max", "count", "rate", "increase", "histogram_quantile", "scalar", "absent", "label_values"),
    *("by", "without", "offset", "and", "or", "unless", "on", "ignoring", "group_left", "group_right", "bool"),
}
"""Functions and keywords; any other word is taken for a metric, so that a misspelt one is noticed."""

_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_RANGE = re.compile(r"\[[^\]]*\]|offset\s+\w+")
_GROUPING = re.compile(r"\b(?:by|without|on|ignoring)\s*\(([^)]*)\)")
_SELECTOR = re.compile(r"\{([^}]*)\}")
_WORD = re.compile(r"(?<![\w.$])[a-zA-Z_:][\w:]*")


class Names(NamedTuple):
    """What an expression names."""

    metrics: set[str]
    labels: set[str]


def names_in(expression: str) -> Names:
    """The metrics and labels of ``expression``; ``label_values(metric, label)`` of Grafana is understood, too."""
    text = _RANGE.sub(" ", _STRING.sub('""', expression))
    labels = {word for inner in (*_GROUPING.findall(text), *_SELECTOR.findall(text)) for word in _WORD.findall(inner)}
    text = _SELECTOR.sub(" ", _GROUPING.sub(" ", text))
    if asked := re.search(r",\s*(\w+)\s*\)$", text) if text.startswith("label_values(") else None:
        labels.add(asked[1])
        text = text[: asked.start()]
    return Names(set(_WORD.findall(text)) - WORDS, labels)
