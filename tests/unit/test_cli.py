"""The ``switchyard`` command: lines and exit codes, never a traceback."""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from serve_app import cli

VALID = """\
applications:
  - name: app
    import_path: cli_graph:build
    args:
      programs:
        - {name: triage, program: "ticket -> category", levels: {full: {models: [small]}}}
      models:
        - {name: small, lm: openai/gpt-4o-mini}
      default_model: small
"""


@pytest.fixture
def workdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cli_graph.py").write_text("def build(args):\n    return args\n")
    return tmp_path


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Run the command as the shell would; its exit code."""
    monkeypatch.setattr(sys, "argv", ["switchyard", *arguments])
    try:
        cli.main()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def test_version(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "--version") == 0
    assert capsys.readouterr().out == f"switchyard, version {version('dspy-switchyard')}\n"


@pytest.mark.parametrize("command", ["check", "schema", "run", "export-trainset", "batch", "simulate", "kuberay"])
def test_every_command_explains_itself(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    assert call(monkeypatch, command, "--help") == 0
    assert capsys.readouterr().out.startswith(f"Usage: switchyard {command}")


def test_check_says_ok_on_one_line(
    workdir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("c.yaml").write_text(VALID)
    assert call(monkeypatch, "check", "c.yaml") == 0
    assert capsys.readouterr() == ("ok c.yaml\n", "")


def test_check_reads_the_default_file(
    workdir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("serve_config.yaml").write_text(VALID)
    assert call(monkeypatch, "check") == 0
    assert capsys.readouterr().out == "ok serve_config.yaml\n"


def test_check_prints_each_mistake_and_exits_with_2(
    workdir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("c.yaml").write_text(
        VALID.replace("default_model: small", "default_model: smal").replace("name: app", "nme: app")
    )
    assert call(monkeypatch, "check", "c.yaml") == 2
    assert capsys.readouterr() == (
        "",
        (
            "c.yaml:2: applications[0].nme: unknown key; did you mean 'name'?\n"
            "c.yaml:9: applications[0].args.default_model: unknown model 'smal'; did you mean 'small'?\n"
        ),
    )


@pytest.mark.parametrize("command", ["check", "run"])
def test_a_missing_file_is_one_line(
    workdir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    assert call(monkeypatch, command, "nowhere/c.yaml") == 2
    assert capsys.readouterr() == ("", "nowhere/c.yaml: no such file\n")


def test_schema_is_json_that_knows_our_keys(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "schema") == 0
    schema = json.loads(capsys.readouterr().out)
    assert {"AppConfig", "Policy", "ServeApplicationSchema"} <= set(schema["$defs"])


def test_a_missing_profile_is_one_line(
    workdir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "simulate", "--profile", "none.yaml") == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert "none.yaml" in err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("chek",), "No such command 'chek'"),
        (("simulate", "--port", "0"), "--port"),
        (("run", "--no-such"), "No such option"),
        (("batch", "in.jsonl", "out.jsonl"), "--program"),
        (("batch", "in.jsonl", "out.jsonl", "--program", "p", "--concurrency", "0"), "--concurrency"),
    ],
)
def test_a_wrong_command_line_is_explained(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], says: str
) -> None:
    assert call(monkeypatch, *arguments) == 2
    err = capsys.readouterr().err
    assert says in err
    assert "Traceback" not in err


def test_ctrl_c_is_no_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "cli", interrupted)
    assert call(monkeypatch) == 130
    assert "Traceback" not in capsys.readouterr().err
