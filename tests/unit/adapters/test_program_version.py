import os
import subprocess
import sys
from pathlib import Path

import program_samples
import pytest
from program_fakes import config

from serve_app.adapters.dspy_program import load_program

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
SCRIPT = """
from program_fakes import config
from serve_app.adapters.dspy_program import load_program
for source in ("program_samples:OneShot", "program_samples:Everything", "program_samples:Agent", "a -> b: set[str]"):
    print(load_program(config(source)).version)
"""


def version(source="program_samples:OneShot", **settings):
    return load_program(config(source, **settings)).version


def test_the_version_is_sixteen_hex_digits():
    assert len(version()) == 16
    int(version(), 16)


def test_the_version_is_the_same_in_every_process_and_for_every_hash_seed():
    found = set()
    for seed in ("0", "1", "4242"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": f"{HERE}{os.pathsep}{ROOT}"}
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, timeout=60, check=True
        )
        found.add(done.stdout)
    assert len(found) == 1
    assert len(set(found.pop().split())) == 4


def test_loading_twice_gives_the_same_version():
    assert version() == version()


@pytest.mark.parametrize(
    "settings",
    [
        {"source": "program_samples:Classify"},
        {"source": "text -> topic"},
        {"adapter": "json"},
        {"levels": {"minimal": {"models": ["small"], "drop_inputs": ["hint"]}}},
        {"levels": {"minimal": {"models": ["small"], "program": "text -> topic"}}},
        {"levels": {"minimal": {"models": ["small"], "max_tokens": 5}}},
    ],
)
def test_whatever_changes_answers_changes_the_version(settings):
    assert version(**settings) != version()


def test_a_simpler_programs_signature_counts():
    first, second = (
        version(levels={"minimal": {"models": ["small"], "program": source}})
        for source in ("text -> topic", "text, hint -> topic")
    )
    assert first != second


@pytest.mark.parametrize("settings", [{"description": "d"}, {"levels": {"minimal": {"models": ["small"]}}}])
def test_what_does_not_change_answers_keeps_the_version(settings):
    plain = version(levels={"minimal": {"models": ["large"]}})
    assert version(**{"levels": {"minimal": {"models": ["large"]}}, **settings}) == plain


def test_a_state_changes_the_version(tmp_path):
    module = program_samples.OneShot()
    module.predict.demos = [{"text": "t", "topic": "a", "score": 1}]
    module.save(tmp_path / "one.json")
    module.predict.demos = [{"text": "t", "topic": "b", "score": 1}]
    module.save(tmp_path / "two.json")
    versions = {version(), *(version(state=str(tmp_path / f"{name}.json")) for name in ("one", "two"))}
    assert len(versions) == 3


def test_an_edit_of_the_file_changes_the_version(tmp_path, monkeypatch):
    source = "import dspy\nclass P(dspy.Module):\n    signature = dspy.Signature('a -> b')\n    async def aforward(self, a):\n        return {{'b': {}}}\n"
    monkeypatch.syspath_prepend(tmp_path)
    versions = set()
    for index, body in enumerate(("a", "a + a")):
        (tmp_path / f"edited_{index}.py").write_text(source.format(body))
        loaded = load_program(config(f"edited_{index}:P"))
        versions.add(loaded.version)
    assert len(versions) == 2
