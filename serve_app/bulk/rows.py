"""The input of a bulk run: a JSON Lines file, one call a line.

A line is an object of inputs, ``{"ticket": "…"}``. Where one of its keys is ``inputs`` or ``options`` it is the body of
an HTTP call, ``{"inputs": {…}, "options": {…}}``, and nothing else: a program with an input of such a name takes this
form. Blank lines are skipped, and counted. A row is known by the number of its line and by its hash. The file is read
twice, to check and to ask, so it must be one: no pipe, and nothing compressed. A byte order mark is skipped.
"""

from __future__ import annotations

import codecs
import hashlib
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from pydantic_core import from_json

from serve_app.core.canonical_json import canonical_json
from serve_app.errors import ConfigError, InvalidInputs

BODY_KEYS = frozenset({"inputs", "options"})
HASH_DIGITS = 16
GZIP = b"\x1f\x8b"


@dataclass(frozen=True)
class Row:
    """One call to make.

    Attributes:
        number: of its line, from 1.
        hash: of the program's name, the inputs and the options, as 16 hex digits.
        inputs: as they were written.
        options: as they were written.
    """

    number: int
    hash: str
    inputs: dict[str, Any]
    options: dict[str, Any] = field(default_factory=dict)


def read_rows(path: Path, program: str) -> Iterator[Row]:
    """The rows of a file, read as they are needed.

    Raises:
        ConfigError: the file cannot be read, or a line is not a row; it names the line.
    """
    try:
        _must_be_file(path)
        with path.open("rb") as lines:
            _skip_mark(path, lines)
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield _row(path, number, line, program)
    except OSError as error:
        raise ConfigError([f"{path}: {error.strerror or error}"]) from error


def _must_be_file(path: Path) -> None:
    if not stat.S_ISREG(path.stat().st_mode):
        raise ConfigError([f"{path}: must be a regular file, no pipe or device: it is read twice"])


def _skip_mark(path: Path, file: IO[bytes]) -> None:
    """Go past a byte order mark; what is compressed is refused."""
    start = file.read(len(codecs.BOM_UTF8))
    if start.startswith(GZIP):
        raise ConfigError([f"{path}: is compressed with gzip: unpack it first"])
    if start != codecs.BOM_UTF8:
        file.seek(0)


def _row(path: Path, number: int, line: bytes, program: str) -> Row:
    try:
        inputs, options = _parts(from_json(line, allow_inf_nan=False))
        content = {"program": program, "inputs": inputs, "options": options}
        digest = hashlib.sha256(canonical_json(content, "row")).hexdigest()
    except (ValueError, InvalidInputs) as error:
        raise ConfigError([f"{path}:{number}: {error}"]) from error
    return Row(number, digest[:HASH_DIGITS], inputs, options)


def _parts(value: Any) -> tuple[dict[str, Any], dict[str, Any]]:  # noqa: ANN401 - whatever JSON can hold
    if not isinstance(value, dict):
        raise ValueError("a row must be a JSON object")  # noqa: TRY004 - about the file, like every other here
    if not value.keys() & BODY_KEYS:
        return value, {}
    if unknown := value.keys() - BODY_KEYS:
        raise ValueError(
            f"{min(unknown)!r} beside {' and '.join(sorted(value.keys() & BODY_KEYS))}: "
            'write {"inputs": {…}, "options": {…}}'
        )
    inputs, options = value.get("inputs"), value.get("options", {})
    if not isinstance(inputs, dict) or not isinstance(options, dict):
        raise ValueError('"inputs" and "options" must be objects: {"inputs": {…}, "options": {…}}')  # noqa: TRY004
    return inputs, options
