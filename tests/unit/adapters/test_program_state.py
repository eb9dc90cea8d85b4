import json

import dspy
import program_samples
import pytest

from serve_app.adapters.program_state import apply_state, clear_lms
from serve_app.errors import ConfigError


@pytest.fixture
def saved(tmp_path):
    """A program with an instruction and a demonstration of its own, saved; and its path."""
    module = program_samples.OneShot()
    module.predict.signature = module.predict.signature.with_instructions("Be brief.")
    module.predict.demos = [{"text": "t", "topic": "a", "score": 1}]
    path = tmp_path / "state.json"
    module.save(path)
    return path


def change(path, edit):
    state = json.loads(path.read_text())
    edit(state)
    path.write_text(json.dumps(state))


def problems(path, module=None):
    module = module or program_samples.OneShot()
    before = module.dump_state()
    with pytest.raises(ConfigError) as caught:
        apply_state(module, path)
    assert module.dump_state() == before
    assert all("\n" not in line for line in caught.value.problems)
    return list(caught.value.problems)


def test_a_saved_state_is_put_back(saved):
    module = program_samples.OneShot()
    content = apply_state(module, saved)
    assert module.predict.signature.instructions == "Be brief."
    assert module.predict.demos == [{"text": "t", "topic": "a", "score": 1}]
    assert content == saved.read_bytes()


def test_an_lm_inside_the_state_is_not_loaded(tmp_path):
    module = program_samples.OneShot()
    module.set_lm(dspy.LM("openai/other", cache=False))
    path = tmp_path / "with_lm.json"
    module.save(path)
    assert "openai/other" in path.read_text()
    loaded = program_samples.OneShot()
    apply_state(loaded, path)
    assert loaded.predict.lm is None


def test_lms_set_in_code_are_cleared():
    module = program_samples.WithOwnLm()
    clear_lms(module)
    assert module.predict.lm is None


def test_lms_of_frozen_parts_are_cleared_too():
    module = program_samples.Guessing()
    module.answer._compiled = True
    module.answer.predict.lm = dspy.LM("openai/other", cache=False)
    clear_lms(module)
    assert module.answer.predict.lm is None


def test_a_missing_file_is_said(tmp_path):
    assert problems(tmp_path / "no.json") == [f"there is no file {tmp_path / 'no.json'}"]


@pytest.mark.parametrize("name", ["state.pkl", "state.pickle"])
def test_a_pickle_is_refused_with_the_reason_and_never_opened(tmp_path, name):
    [told] = problems(tmp_path / name)
    assert "is a pickle, and loading it runs code" in told


def test_a_saved_directory_is_refused_with_the_reason(tmp_path):
    [told] = problems(tmp_path)
    assert "is a directory" in told
    assert "runs code" in told


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"[" * 100_000])
def test_what_is_not_json_is_said(tmp_path, content):
    path = tmp_path / "state.json"
    path.write_bytes(content)
    [told] = problems(path)
    assert "is not JSON" in told


def test_json_that_is_no_state_is_said(tmp_path):
    path = tmp_path / "state.json"
    path.write_text("[1]")
    assert problems(path) == [f"{path} is JSON, but not a state saved by program.save"]


def test_a_missing_and_an_extra_predictor_are_both_named_with_the_nearest(saved):
    change(saved, lambda state: state.update(predicts=state.pop("predict")))
    missing, extra = problems(saved)
    assert missing.endswith("has no predictor 'predict' of the program; did you mean 'predicts'?")
    assert extra.endswith("has predictor 'predicts', which the program has not; did you mean 'predict'?")


def test_another_number_of_fields_is_said(saved):
    change(saved, lambda state: state["predict"]["signature"]["fields"].pop())
    [told] = problems(saved)
    assert "was saved with 3 fields, the program's signature has 4 (text, hint, topic, score)" in told


def test_fields_in_another_order_are_refused(saved):
    change(saved, lambda state: state["predict"]["signature"]["fields"].reverse())
    [told] = problems(saved)
    assert "fields were saved in another order: Score:, Topic:, Hint:, Text:" in told


def test_a_prefix_that_an_optimizer_changed_is_accepted(saved):
    change(saved, lambda state: state["predict"]["signature"]["fields"][3].update(prefix="Final score:"))
    apply_state(program_samples.OneShot(), saved)


@pytest.mark.parametrize("version", ["99.0.1", "3.99.0", "4.0.0rc1"])
def test_a_state_of_a_newer_dspy_is_refused(saved, version):
    change(saved, lambda state: state["metadata"]["dependency_versions"].update(dspy=version))
    [told] = problems(saved)
    assert f"saved with DSPy {version}, newer than the installed {dspy.__version__}" in told


@pytest.mark.parametrize("version", ["2.6.0", "3.0.4", "3.4.99"])
def test_a_state_of_an_older_dspy_or_another_patch_is_accepted(saved, version):
    change(saved, lambda state: state["metadata"]["dependency_versions"].update(dspy=version))
    apply_state(program_samples.OneShot(), saved)


def test_a_state_without_its_dspy_version_is_refused(saved):
    change(saved, lambda state: state.pop("metadata"))
    [told] = problems(saved)
    assert "metadata.dependency_versions.dspy is missing" in told


def test_a_state_that_would_set_any_attribute_is_refused(saved):
    change(saved, lambda state: state["predict"].update(forwards=1))
    [told] = problems(saved)
    assert "unknown key 'forwards'" in told


@pytest.mark.parametrize(
    "part", [3, {}, {"signature": {"instructions": "x", "fields": [1]}, "demos": []}, {"signature": {}, "demos": []}]
)
def test_a_part_of_another_shape_is_said(saved, part):
    change(saved, lambda state: state.update(predict=part))
    [told] = problems(saved)
    assert "is not a predictor's state" in told
