"""Read a YAML file and know on which line every key stands.

Duplicate keys, which YAML forbids and PyYAML lets pass, are problems like any other.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml
from yaml.constructor import ConstructorError
from yaml.reader import ReaderError

from serve_app.config_problem import Key, Problem

MAX_VALUES: Final = 100_000
"""Most values a file may hold once its aliases are expanded; a few short lines of YAML can ask for billions."""

_MERGE_TAG: Final = "tag:yaml.org,2002:merge"


@dataclass(frozen=True, slots=True)
class Document:
    """A file that was read.

    Attributes:
        file: its path as the person wrote it.
        value: its content; ``None`` when it could not be read.
        lines: 1-based line of every key and list item.
        problems: why it could not be read, or which keys stand there twice.
    """

    file: str
    value: Any = None
    lines: dict[Key, int] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()

    def locate(self, problem: Problem) -> Problem:
        """The problem with the file and the line of its key, or of the nearest part around it that stands there."""
        parts = tuple(part if isinstance(part, int) else str(part) for part in problem.key)
        held = (self.lines[parts[:n]] for n in range(len(parts), -1, -1) if parts[:n] in self.lines)
        return Problem(problem.key, problem.text, self.file, problem.line or next(held, 1))


class _TooMuchError(Exception):
    """The aliases of the file expand without bound."""


def read_document(path: Path) -> Document:
    """The file's content and positions; never raises for what a person may have written."""
    file = str(path)
    try:
        return _parse(file, path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        return _unreadable(file, _explain_file(error), 0)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        return _unreadable(file, f"not valid YAML: {error.problem or error.context}", mark.line + 1 if mark else 1)
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        return _unreadable(file, f"not UTF-8 text (byte {error.start})", line)
    except (yaml.YAMLError, ValueError, RecursionError, _TooMuchError) as error:
        return _unreadable(file, _explain_content(error), 1)


def _explain_file(error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, IsADirectoryError):
        return "is a directory, not a file"
    return f"cannot be read: {error.strerror or error}"


def _explain_content(error: Exception) -> str:
    if isinstance(error, _TooMuchError):
        return f"holds more than {MAX_VALUES} values once its aliases are expanded"
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return f"not valid YAML: {error}"


def _unreadable(file: str, text: str, line: int) -> Document:
    return Document(file, problems=(Problem((), text, file, line),))


class _Loader(yaml.SafeLoader):
    """Says on which line a value stands that is not what it looks like, such as a date in a thirteenth month."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:  # noqa: ANN401, FBT001, FBT002 - PyYAML's
        try:
            return super().construct_object(node, deep)
        except ValueError as error:
            raise ConstructorError(None, None, str(error), node.start_mark) from None
        except (KeyError, AttributeError):  # PyYAML's own, as for `!!bool x` and `!!timestamp x`
            raise ConstructorError(None, None, f"not what its tag {node.tag} says", node.start_mark) from None


def _parse(file: str, text: str) -> Document:
    try:
        loader = _Loader(text)
    except ReaderError as error:
        return _unreadable(file, f"not valid YAML: {error.reason}", text.count("\n", 0, error.position) + 1)
    try:
        node = loader.get_single_node()
        if node is None:
            return _unreadable(file, "the file is empty", 1)
        if not isinstance(node, yaml.MappingNode):
            return _unreadable(file, "must be a mapping with the key 'applications'", node.start_mark.line + 1)
        walk = _Walk(file, loader)
        walk.visit(node, ())
        value = loader.construct_document(node)
        return Document(file, value, walk.lines, tuple(walk.problems))
    finally:
        loader.dispose()


class _Walk:
    """Notes the line of every key, and every key that stands twice in one mapping."""

    def __init__(self, file: str, loader: _Loader) -> None:
        self.file = file
        self._loader = loader
        self.lines: dict[Key, int] = {}
        self.problems: list[Problem] = []
        self._visited = 0

    def visit(self, node: yaml.Node, key: Key) -> None:
        self._visited += 1
        if self._visited > MAX_VALUES:
            raise _TooMuchError
        self.lines.setdefault(key, node.start_mark.line + 1)
        if isinstance(node, yaml.SequenceNode):
            for position, item in enumerate(node.value):
                self.visit(item, (*key, position))
        elif isinstance(node, yaml.MappingNode):
            self._visit_mapping(node, key)

    def _visit_mapping(self, node: yaml.MappingNode, key: Key) -> None:
        seen: dict[str, int] = {}
        for name, value in _own_keys(node):
            here, line = (*key, str(name.value)), name.start_mark.line + 1
            if str(name.value) in seen:
                first = seen[str(name.value)]
                self.problems.append(Problem(here, f"key stands here twice, first on line {first}", self.file, line))
            seen.setdefault(str(name.value), line)
            self.lines.setdefault(here, line)
            if isinstance(name, yaml.ScalarNode):
                self.lines.setdefault((*key, str(self._loader.construct_object(name))), line)  # `on` becomes True
            self.visit(value, here)
        for merged in _merged(node):
            self.visit(merged, key)


def _own_keys(node: yaml.MappingNode) -> Iterator[tuple[yaml.Node, yaml.Node]]:
    return ((name, value) for name, value in node.value if name.tag != _MERGE_TAG)


def _merged(node: yaml.MappingNode) -> Iterator[yaml.Node]:
    """What ``<<`` brings in; visited last, and ``setdefault`` keeps the mapping's own lines."""
    for name, value in node.value:
        if name.tag == _MERGE_TAG:
            yield from value.value if isinstance(value, yaml.SequenceNode) else (value,)
