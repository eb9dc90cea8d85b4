"""What the simulated provider is like: its models, how fast, how good and how patient each one is.

A profile is YAML. Durations end in ``_s`` (seconds), ratios are 0..1, unknown keys are errors.
"""

from __future__ import annotations

from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import yaml
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, ValidationError

from serve_app.config import Ratio, Section
from serve_app.errors import ConfigError

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

ModelId = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/-]*$", max_length=200)]


class Replay(Section):
    """Answers recorded from a real model, served word for word."""

    csv: Path
    """CSV file with a header row, UTF-8; a relative path starts at the profile's directory."""
    prompt_column: str = "prompt"
    """Column with the text that an input of the request must equal."""
    answer_column: str
    """Column with the model's words."""
    answer_field: str | None = None
    """Output field that receives the words; null is the last output field."""


class ModelProfile(Section):
    """One simulated model."""

    ttft_s: NonNegativeFloat = 0.03
    """Seconds until the first token."""
    tokens_per_s: PositiveFloat = 1000.0
    """Output tokens a second after the first."""
    jitter: Ratio = 0.1
    """Each wait is stretched or shortened by up to this share."""
    quality: Ratio = 1.0
    """Share of prompts that are answered rightly; the others get a valid but wrong answer, always the same ones."""
    context_window: PositiveInt | None = None
    """Most prompt tokens; longer prompts get ``context_length_exceeded``. Null takes any."""
    max_concurrency: PositiveInt | None = None
    """Most requests at once; further ones get 429. Null sets no bound."""
    requests_per_minute: PositiveInt | None = None
    """Most requests admitted in any 60 seconds; further ones get 429. Null sets no bound."""
    replay: Replay | None = None
    """Recorded answers to serve when the prompt is among them."""


class Profile(Section):
    """The whole provider."""

    models: dict[ModelId, ModelProfile] = Field(min_length=1)
    """The models by the id that requests name."""
    seed: int = 0
    """Seed of the jitter and of the faults' dice; the answers depend on the prompt alone."""


def load_profile(path: Path | None) -> Profile:
    """The profile in ``path``, or the default one when it is ``None``.

    Raises:
        ConfigError: the file cannot be read, is no YAML, or does not fit; one line for each problem.
    """
    if path is None:
        text = files("serve_app.simulator").joinpath("default_profile.yaml").read_text(encoding="utf-8")
        return Profile.model_validate(yaml.safe_load(text))
    return _anchored(parse_profile(_read(path), where=str(path)), path.parent)


def parse_profile(data: object, where: str) -> Profile:
    """The profile that ``data`` describes; ``where`` opens each line of a ``ConfigError``."""
    try:
        return Profile.model_validate(data)
    except ValidationError as error:
        raise ConfigError([f"{where}: {_line(problem)}" for problem in error.errors()]) from None


def _read(path: Path) -> object:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read: {error.strerror}"]) from None
    except UnicodeDecodeError:
        raise ConfigError([f"{path}: is not UTF-8 text"]) from None
    except yaml.YAMLError as error:
        raise ConfigError([f"{path}: is not YAML: {' '.join(str(error).split())}"]) from None


def _anchored(profile: Profile, directory: Path) -> Profile:
    """The same profile with relative CSV paths resolved against its own directory."""
    models = {
        name: model.model_copy(
            update={"replay": model.replay.model_copy(update={"csv": directory / model.replay.csv})}
            if model.replay
            else None,
        )
        for name, model in profile.models.items()
    }
    return profile.model_copy(update={"models": models})


def _line(problem: ErrorDetails) -> str:
    key = ".".join(str(part) for part in problem["loc"] if part != "[key]") or "profile"
    if problem["type"] != "extra_forbidden":
        return f"{key}: {problem['msg']}"
    known = {*Profile.model_fields, *ModelProfile.model_fields, *Replay.model_fields}
    nearest = get_close_matches(str(problem["loc"][-1]), known, n=1)
    return f"{key}: unknown key" + (f"; did you mean {nearest[0]}?" if nearest else "")
