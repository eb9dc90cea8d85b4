import re

import dspy
import program_samples
import pytest

from serve_app.adapters.program_source import load_module, nearest, parse_signature, untyped_fields
from serve_app.errors import ConfigError


def problem(source):
    with pytest.raises(ConfigError) as caught:
        load_module(source)
    assert len(caught.value.problems) == 1
    assert "\n" not in caught.value.problems[0]
    return caught.value.problems[0]


def test_a_module_class_is_made():
    assert isinstance(load_module("program_samples:OneShot"), program_samples.OneShot)


def test_a_signature_string_becomes_a_predictor():
    module = load_module("ticket -> category")
    assert isinstance(module, dspy.Predict)
    assert list(module.signature.fields) == ["ticket", "category"]


def test_a_typed_signature_string_keeps_its_types():
    signature = parse_signature("ticket: str, n: int -> category: Literal['a','b'], urgent: bool, who: dspy.Image")
    assert signature.output_fields["urgent"].annotation is bool
    assert signature.output_fields["who"].annotation is dspy.Image
    assert signature.input_fields["n"].annotation is int


def test_a_signature_class_becomes_a_predictor():
    module = load_module("program_samples:Classify")
    assert isinstance(module, dspy.Predict)
    assert module.signature is program_samples.Classify


def test_a_module_level_instance_is_copied_each_time():
    first, second = load_module("program_samples:program"), load_module("program_samples:program")
    assert first is not program_samples.program
    assert first is not second
    assert first.signature.equals(program_samples.Classify)


def test_names_in_a_signature_are_never_taken_from_the_caller():
    class Path:
        pass

    assert "Unknown name: Path" in problem("a -> b: Path")


@pytest.mark.parametrize("source", ["a -> b -> c", "a -> b: Foo", "a: -> b", "a -> a", "a -> b: list[", "class -> b"])
def test_a_signature_that_does_not_parse_is_said(source):
    assert problem(source).startswith(f"signature {source!r} does not parse")


def test_an_empty_side_is_said():
    assert problem("-> b").endswith("has no inputs")
    assert problem("a ->").endswith("has no outputs")


def test_neither_form_is_said():
    assert "neither 'module:Class' nor a signature" in problem("examples.triage.Triage")


def test_a_missing_module_is_named_with_where_it_was_looked_for():
    assert re.match(
        r"no module 'nowhere_at_all' on the Python path, which (includes|lacks) /", problem("nowhere_at_all:X")
    )


def test_a_missing_submodule_is_named():
    assert "no module 'json.nothing'" in problem("json.nothing:X")


def test_a_missing_import_inside_the_module_is_told_apart(tmp_path, monkeypatch):
    (tmp_path / "imports_absent.py").write_text("import absent_package_xyz\n")
    monkeypatch.syspath_prepend(tmp_path)
    told = problem("imports_absent:X")
    assert "'imports_absent' imports 'absent_package_xyz', which is not installed" in told
    assert "imports_absent.py:1" in told


@pytest.mark.parametrize("body", ["raise ValueError('no key')", "import sys; sys.exit(3)", "def f(:"])
def test_a_module_that_raises_at_import_is_said_with_its_line(tmp_path, monkeypatch, body):
    name = f"raises_{abs(hash(body))}"
    (tmp_path / f"{name}.py").write_text(body)
    monkeypatch.syspath_prepend(tmp_path)
    assert problem(f"{name}:X").startswith(f"importing {name!r} raised ")


def test_a_missing_attribute_comes_with_the_nearest_name():
    assert problem("program_samples:OneShoot") == "'program_samples' has no 'OneShoot'; did you mean 'OneShot'?"


def test_a_missing_attribute_with_nothing_near_lists_what_could_be_served():
    told = problem("program_samples:Zzzzzz")
    assert "there is" in told
    assert "NotAModule" not in told


@pytest.mark.parametrize(
    ("name", "kind"),
    [("a_number", "a int"), ("a_function", "a function"), ("NotAModule", "a class, but not a dspy.Module")],
)
def test_what_is_not_a_program_is_said(name, kind):
    assert kind in problem(f"program_samples:{name}")


def test_a_class_that_needs_arguments_is_said():
    assert "cannot be made with no arguments: TypeError" in problem("program_samples:NeedsArguments")


def test_a_constructor_that_raises_is_said_with_its_line():
    told = problem("program_samples:RaisesInInit")
    assert "ValueError: no database" in told
    assert "program_samples.py:" in told


def test_untyped_fields_of_a_signature_string_are_found():
    assert untyped_fields("ticket, n: int -> category, urgent: bool") == {"ticket", "category"}


def test_nearest_ignores_case():
    assert nearest("TICKET", ["ticket", "other"]) == "; did you mean 'ticket'?"


def test_nearest_of_nothing_is_empty():
    assert nearest("x", []) == ""
