"""Scored calls for re-optimising a program: read from its record, written as JSON lines, loaded as ``dspy.Example``.

    {"inputs": {…}, "outputs": {…}, "score": 0.9, "metric_type": "reward", "comment": "", "model": …, …}

Of a call with several scores the one nearest to a person counts: a caller's verdict, then the reward, then the
program's own confidence. The others stand in ``scores``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from serve_app.config import ProgramConfig, RecordConfig
from serve_app.config_check import Invalid, parse_section
from serve_app.config_lines import read_document
from serve_app.config_problem import unknown
from serve_app.errors import ConfigError
from serve_app.reports import MetricType

if TYPE_CHECKING:
    import dspy

NEAREST_FIRST: Final = (MetricType.FEEDBACK, MetricType.REWARD, MetricType.CONFIDENCE)

Row = dict[str, Any]


@dataclass(slots=True)
class Archive:
    """What a program's record holds.

    Attributes:
        calls: by call id, in the order of time.
        unmatched: verdicts on calls that were not recorded, or answered from a cache.
        unreadable: lines that are no JSON object, such as one cut short by a full disk.
    """

    calls: dict[str, Row] = field(default_factory=dict)
    unmatched: int = 0
    unreadable: int = 0

    def rows(self, min_score: float = 0.0) -> Iterator[Row]:
        """The calls that have a score of at least ``min_score``."""
        for call in self.calls.values():
            metric_type = next((kind for kind in NEAREST_FIRST if kind in call["scores"]), None)
            if metric_type is not None and call["scores"][metric_type] >= min_score:
                yield {
                    "inputs": call["inputs"],
                    "outputs": call["outputs"],
                    "score": call["scores"][metric_type],
                    "metric_type": metric_type.value,
                    "comment": call.get("comment", ""),
                    "scores": call["scores"],
                    **{name: call[name] for name in ("request_id", "program", "version", "model", "level", "at")},
                }


def read_archive(config: RecordConfig, program: str) -> Archive:
    """Everything that the replicas of this machine wrote down about a program.

    Raises:
        ConfigError: it may not be read, or cannot.
    """
    archive = Archive()
    lines: list[Row] = []
    try:
        for text in _texts(Path(config.path) / program):
            line = _line(text)
            if line is None:
                archive.unreadable += 1
            else:
                lines.append(line)
    except OSError as error:
        raise ConfigError([f"{error.filename} cannot be read: {error.strerror}"]) from None
    lines.sort(key=lambda line: line["at"])
    archive.calls = {line["call_id"]: line for line in lines if "inputs" in line}
    for verdict in (line for line in lines if "inputs" not in line):
        call = archive.calls.get(verdict["call_id"])
        if call is None:
            archive.unmatched += 1
            continue
        call["scores"][MetricType.FEEDBACK] = verdict["score"]
        call["comment"] = verdict.get("comment", "")
    return archive


def _texts(directory: Path) -> Iterator[bytes]:
    """The lines of a record; replicas may delete its oldest files meanwhile."""
    with suppress(FileNotFoundError):
        for path in sorted(directory.iterdir()):  # ``glob`` would find nothing in a directory that may not be read
            with suppress(FileNotFoundError):
                yield from path.read_bytes().splitlines() if path.suffix == ".jsonl" else ()


def write_rows(rows: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """One line of JSON for each."""
    return (json.dumps(row) + "\n" for row in rows)


def load_trainset(path: str | Path) -> list[dspy.Example]:
    """What ``switchyard export-trainset`` wrote, for an optimiser.

    Each example has the program's inputs, marked as such, its outputs, and ``score`` and ``comment`` unless the program
    has fields of these names.
    """
    import dspy  # noqa: PLC0415 - slow to import, and the export needs none of it

    rows = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
    return [
        dspy.Example({"score": row["score"], "comment": row["comment"]} | row["inputs"] | row["outputs"]).with_inputs(
            *row["inputs"]
        )
        for row in rows
    ]


def record_of(file: Path, program: str) -> RecordConfig:
    """The ``record`` of the program of that name in a ``serve_config.yaml``.

    Raises:
        ConfigError: the file cannot be read, has no such program, or the program keeps no record.
    """
    document = read_document(file)
    if document.problems:
        raise ConfigError([str(problem) for problem in document.problems])
    found = dict(_programs(document.value))
    if program not in found:
        raise ConfigError([f"{file}: {unknown('program', program, found)}"])
    try:
        config = parse_section(ProgramConfig, found[program])
    except Invalid as error:
        raise ConfigError([f"{file}: {program}: {problem}" for problem in error.problems]) from None
    if config.record is None:
        raise ConfigError([f"{file}: program '{program}' keeps no record; set its record: {{path: …}}"])
    return config.record


def _programs(document: object) -> Iterator[tuple[str, Mapping[str, Any]]]:
    applications = document.get("applications") if isinstance(document, Mapping) else None
    for application in applications if isinstance(applications, list) else ():
        args = application.get("args") if isinstance(application, Mapping) else None
        programs = args.get("programs") if isinstance(args, Mapping) else None
        for program in programs if isinstance(programs, list) else ():
            if isinstance(program, Mapping) and isinstance(program.get("name"), str):
                yield program["name"], program


_KEYS: Final = {"at", "call_id", "request_id", "program", "version", "model", "level"}


def _line(text: bytes) -> Row | None:
    """A line of a record; ``None`` for what no replica wrote in full."""
    try:
        line = json.loads(text)
    except ValueError:
        return None
    is_ours = isinstance(line, dict) and line.keys() >= _KEYS
    is_whole = is_ours and (line.keys() >= {"inputs", "outputs", "scores"} or "score" in line)
    return line if is_whole else None
