"""Recorded answers of real models, found again by their prompt.

A prompt is found when it equals an input value, or a paragraph of one, leading and trailing white space aside:
DSPy strips both on the way.
"""

from __future__ import annotations

import csv
import sys
from typing import TYPE_CHECKING

from serve_app.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from serve_app.simulator.profile import Replay


class Recordings:
    """Answers by prompt.

    Args:
        answers: the recorded words by the stripped prompt.
        answer_field: output field that receives them; ``None`` is the last.
    """

    def __init__(self, answers: Mapping[str, str], answer_field: str | None = None) -> None:
        self.answer_field = answer_field
        self._answers = answers

    @classmethod
    def load(cls, replay: Replay) -> Recordings:
        """Read the CSV; of a prompt recorded twice the first answer counts.

        Raises:
            ConfigError: the file cannot be read, or a column is missing.
        """
        try:
            csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
            with replay.csv.open(encoding="utf-8-sig", newline="") as file:
                rows = csv.DictReader(file)
                _require(replay, rows.fieldnames or ())
                answers: dict[str, str] = {}
                for row in rows:
                    answers.setdefault((row[replay.prompt_column] or "").strip(), row[replay.answer_column] or "")
        except OSError as error:
            raise ConfigError([f"{replay.csv}: cannot be read: {error.strerror}"]) from None
        except (csv.Error, UnicodeDecodeError) as error:
            raise ConfigError([f"{replay.csv}: is not CSV in UTF-8: {error}"]) from None
        answers.pop("", None)
        return cls(answers, replay.answer_field)

    def find(self, inputs: Iterable[str]) -> str | None:
        """The recorded words for the first input that was recorded; ``None`` when none was."""
        for text in inputs:
            found = self._answers.get(text.strip())
            if found is not None:
                return found
            if "\n\n" in text:
                found = next((self._answers[part] for part in _paragraphs(text) if part in self._answers), None)
                if found is not None:
                    return found
        return None


def _paragraphs(text: str) -> Iterable[str]:
    return (part.strip() for part in text.split("\n\n"))


def _require(replay: Replay, columns: Iterable[str]) -> None:
    known = list(columns)
    missing = [column for column in (replay.prompt_column, replay.answer_column) if column not in known]
    if missing:
        raise ConfigError([f"{replay.csv}: no column {column!r}; it has {', '.join(known)}" for column in missing])
