"""From a record to examples that DSPy optimises with."""

import errno
import json
import os
import sys
from pathlib import Path

import dspy
import pytest

from serve_app import cli
from serve_app.config import RecordConfig
from serve_app.trainset import load_trainset, read_archive

CONFIG = """\
applications:
  - name: app
    import_path: graphs.standard:build
    args:
      programs:
        - name: triage
          program: "ticket, context -> category"
          record: {{path: {path}}}
          levels: {{full: {{models: [small]}}}}
        - {{name: other, program: "a -> b", levels: {{full: {{models: [small]}}}}}}
      models:
        - {{name: small, lm: openai/gpt-4o-mini}}
      default_model: small
"""


def line(number: int, **changes) -> dict:
    ids = {"at": number, "call_id": f"c{number}", "request_id": "r", "program": "triage", "version": "v1"}
    return ids | {"model": "small", "level": "full"} | changes


def recorded(number: int, **scores: float) -> dict:
    inputs = {"ticket": f"t{number}", "context": ""}
    return line(number, inputs=inputs, outputs={"category": "bug"}, scores=scores)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    directory = tmp_path / "record" / "triage"
    directory.mkdir(parents=True)
    calls = [recorded(1, reward=0.9), recorded(2, reward=1.0, confidence=0.1), recorded(3, confidence=0.6), recorded(4)]
    text = "".join(json.dumps(call) + "\n" for call in calls)
    (directory / "Model-small-1-000001.jsonl").write_text(text + '{"at": 5, "call_id": "c5", "inp')
    verdicts = [line(9, call_id="c2", score=0.2, comment="wrong team"), line(10, call_id="gone", score=1, comment="")]
    (directory / "Ingress-1-000001.jsonl").write_text("".join(json.dumps(verdict) + "\n" for verdict in verdicts))
    return tmp_path / "record"


def test_of_several_scores_the_one_nearest_to_a_person_counts(archive) -> None:
    found = read_archive(RecordConfig(path=str(archive)), "triage")
    rows = list(found.rows())
    assert [(row["inputs"]["ticket"], row["score"], row["metric_type"]) for row in rows] == [
        ("t1", 0.9, "reward"),
        ("t2", 0.2, "feedback"),
        ("t3", 0.6, "confidence"),
    ]
    assert rows[1]["comment"] == "wrong team"
    assert rows[1]["scores"] == {"reward": 1.0, "confidence": 0.1, "feedback": 0.2}
    assert (found.unmatched, found.unreadable) == (1, 1)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["switchyard", "export-trainset", *arguments])
    try:
        cli.main()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


@pytest.fixture
def config(archive: Path, tmp_path: Path) -> str:
    file = tmp_path / "c.yaml"
    file.write_text(CONFIG.format(path=archive))
    return str(file)


def test_the_command_writes_what_dspy_loads(config, tmp_path, monkeypatch, capsys) -> None:
    output = tmp_path / "trainset.jsonl"
    assert run(monkeypatch, config, "--program", "triage", "--output", str(output)) == 0
    assert capsys.readouterr().err == (
        "3 of 4 recorded calls written; 1 verdicts on unrecorded calls, 1 unreadable lines\n"
    )
    examples = load_trainset(output)
    assert [type(example) for example in examples] == [dspy.Example] * 3
    assert examples[0].inputs().toDict() == {"ticket": "t1", "context": ""}
    assert examples[0].labels().category == "bug"
    assert [example.score for example in examples] == [0.9, 0.2, 0.6]


def test_an_optimiser_takes_the_examples(config, tmp_path, monkeypatch) -> None:
    output = tmp_path / "trainset.jsonl"
    run(monkeypatch, config, "--program", "triage", "-o", str(output))
    student = dspy.Predict("ticket, context -> category")
    compiled = dspy.LabeledFewShot(k=3).compile(student, trainset=load_trainset(output))
    assert {demo.ticket for demo in compiled.demos} == {"t1", "t2", "t3"}


def test_low_scores_can_be_left_out_and_standard_output_is_the_default(config, monkeypatch, capsys) -> None:
    assert run(monkeypatch, config, "--program", "triage", "--min-score", "0.6") == 0
    rows = [json.loads(text) for text in capsys.readouterr().out.splitlines()]
    assert [row["score"] for row in rows] == [0.9, 0.6]


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("triag", "unknown program 'triag'; did you mean 'triage'?"),
        ("other", "program 'other' keeps no record"),
    ],
)
def test_what_has_no_record_is_said_in_one_line_and_nothing_is_written(
    config, tmp_path, monkeypatch, capsys, program, words
) -> None:
    output = tmp_path / "kept.jsonl"
    output.write_text("precious")
    assert run(monkeypatch, config, "--program", program, "-o", str(output)) == 2
    assert words in capsys.readouterr().err
    assert output.read_text() == "precious"


def test_a_record_that_may_not_be_read_is_not_taken_for_an_empty_one(
    config, archive, tmp_path, monkeypatch, capsys
) -> None:
    def forbidden(self: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "iterdir", forbidden)
    monkeypatch.setattr(os, "scandir", forbidden)
    assert run(monkeypatch, config, "--program", "triage", "-o", str(tmp_path / "kept.jsonl")) == 2
    assert capsys.readouterr().err == f"{archive / 'triage'} cannot be read: Permission denied\n"
    assert not (tmp_path / "kept.jsonl").exists()


def test_a_file_that_a_replica_deletes_meanwhile_is_left_out(archive) -> None:
    (archive / "triage" / "Model-small-0-000001.jsonl").symlink_to("deleted")
    assert len(read_archive(RecordConfig(path=str(archive)), "triage").calls) == 4


def test_a_record_that_nothing_was_written_to_yet_is_empty(tmp_path) -> None:
    assert read_archive(RecordConfig(path=str(tmp_path)), "triage").calls == {}


def test_an_output_called_like_ours_is_the_programs_own(tmp_path) -> None:
    row = {"inputs": {"comment": "theirs"}, "outputs": {"score": 7}, "score": 0.5, "comment": "ours"}
    (tmp_path / "t.jsonl").write_text(json.dumps(row))
    (example,) = load_trainset(tmp_path / "t.jsonl")
    assert (example.comment, example.score) == ("theirs", 7)
