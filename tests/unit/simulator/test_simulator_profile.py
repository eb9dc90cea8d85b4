from pathlib import Path

import pytest

from serve_app.errors import ConfigError
from serve_app.simulator.profile import load_profile


def write(directory: Path, text: str) -> Path:
    path = directory / "profile.yaml"
    path.write_text(text)
    return path


def test_the_default_profile_has_three_models_that_differ_in_quality_and_speed():
    models = load_profile(None).models
    assert set(models) == {"sim-large", "sim-medium", "sim-small"}
    assert models["sim-large"].quality > models["sim-medium"].quality > models["sim-small"].quality
    assert models["sim-large"].ttft_s > models["sim-medium"].ttft_s > models["sim-small"].ttft_s


def test_every_key_of_a_profile_is_read(tmp_path):
    path = write(
        tmp_path,
        "models: {m: {ttft_s: 0.5, tokens_per_s: 10, jitter: 0, quality: 0.5, max_concurrency: 2, requests_per_minute: 30,"
        " context_window: 100, replay: {csv: answers.csv, prompt_column: q, answer_column: a, answer_field: x}}}\nseed: 3",
    )
    profile = load_profile(path)
    model = profile.models["m"]
    assert (model.ttft_s, model.max_concurrency, model.requests_per_minute, profile.seed) == (0.5, 2, 30, 3)
    assert model.replay is not None
    assert model.replay.csv == tmp_path / "answers.csv"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("models: {m: {ttft: 1}}", "models.m.ttft: unknown key; did you mean ttft_s?"),
        ("models: {m: {quality: 2}}", "models.m.quality: Input should be less than or equal to 1"),
        ("models: {}", "models: Dictionary should have at least 1 item"),
        ("- 1", "profile: Input should be a valid dictionary"),
        ("models: [", "is not YAML"),
    ],
)
def test_each_mistake_is_one_line_that_names_the_file_and_the_key(tmp_path, text, line):
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_profile(path)
    assert len(caught.value.problems) == 1
    assert caught.value.problems[0].startswith(f"{path}: ")
    assert line in caught.value.problems[0]
    assert "\n" not in caught.value.problems[0]


def test_two_mistakes_are_two_lines(tmp_path):
    with pytest.raises(ConfigError) as caught:
        load_profile(write(tmp_path, "models: {m: {quality: -1, jitter: 3}}"))
    assert len(caught.value.problems) == 2


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: cannot be read: No such file"):
        load_profile(tmp_path / "nowhere.yaml")
