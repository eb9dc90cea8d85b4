"""The output file: what is in it counts, what is torn is cut off, what is somebody else's is left alone."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.bulk.attempt import Answer, Failure
from serve_app.bulk.output import Output
from serve_app.bulk.rows import Row
from serve_app.errors import ConfigError

ANSWER = Answer({"category": "bug"}, {"cost_usd": 0.25})
FAILURE = Failure("bad_output", "no sense")


def row(number: int) -> Row:
    return Row(number, f"{number:016x}", {})


def write(path, *outcomes) -> None:
    with Output.open(path) as output:
        for number, outcome in enumerate(outcomes, 1):
            output.append(row(number), outcome)


def test_a_line_says_which_row_and_what_became_of_it(tmp_path) -> None:
    path = tmp_path / "out.jsonl"
    write(path, ANSWER, FAILURE)
    answer, failure = (json.loads(line) for line in path.read_text().splitlines())
    assert answer == {"row": 1, "hash": row(1).hash, "outputs": {"category": "bug"}, "meta": {"cost_usd": 0.25}}
    assert failure == {"row": 2, "hash": row(2).hash, "error": {"code": "bad_output", "detail": "no sense"}}


@settings(max_examples=30)
@given(torn_bytes=st.integers(1, 90), texts=st.lists(st.text(), min_size=1, max_size=4))
def test_after_any_tear_whole_lines_stay_and_appending_goes_on(tmp_path_factory, torn_bytes, texts) -> None:
    path = tmp_path_factory.mktemp("out") / "out.jsonl"
    write(path, *(Answer({"text": text}, {}) for text in texts))
    whole = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(whole)[:-torn_bytes])
    left = path.read_bytes().count(b"\n")
    with Output.open(path) as output:
        assert [done.row for done in output.done()] == list(range(1, left + 1))
        output.append(row(99), FAILURE)
    lines = path.read_bytes().splitlines(keepends=True)
    assert lines[:-1] == whole[:left]
    assert json.loads(lines[-1])["row"] == 99


def test_half_a_surrogate_pair_is_written(tmp_path) -> None:
    path = tmp_path / "out.jsonl"
    write(path, Answer({"text": "\ud800"}, {}))
    assert json.loads(path.read_text())["outputs"] == {"text": "\ud800"}


@pytest.mark.parametrize("content", ['{"ticket": "x"}\n', "no newline", "[1]\n", '{"row": 1, "hash": "a"}\n', "\n"])
def test_a_file_of_another_kind_is_refused_and_left_as_it_is(tmp_path, content) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text(content)
    with pytest.raises(ConfigError, match=r"out\.jsonl:1: not a line of a bulk run"), Output.open(path):
        pass
    assert path.read_text() == content


def test_a_foreign_line_further_down_is_named(tmp_path) -> None:
    path = tmp_path / "out.jsonl"
    write(path, ANSWER)
    path.write_text(path.read_text() + '{"row": 2}\n')
    with pytest.raises(ConfigError, match=r"out\.jsonl:2"), Output.open(path) as output:
        list(output.done())


def test_what_it_holds_can_be_forgotten(tmp_path) -> None:
    path = tmp_path / "out.jsonl"
    write(path, ANSWER, FAILURE)
    with Output.open(path) as output:
        output.clear()
        assert list(output.done()) == []
        output.append(row(3), ANSWER)
    assert [json.loads(line)["row"] for line in path.read_text().splitlines()] == [3]


def test_failed_rows_can_be_taken_away_for_another_try(tmp_path) -> None:
    path = tmp_path / "out.jsonl"
    write(path, ANSWER, FAILURE, ANSWER)
    with Output.open(path) as output:
        output.drop_failed()
        assert [done.row for done in output.done()] == [1, 3]
        output.append(row(2), ANSWER)
    assert [json.loads(line)["row"] for line in path.read_text().splitlines()] == [1, 3, 2]
    assert list(tmp_path.iterdir()) == [path]


def test_two_runs_do_not_write_one_file(tmp_path) -> None:
    path = tmp_path / "out.jsonl"
    write(path, ANSWER, FAILURE)
    with Output.open(path) as output:
        output.drop_failed()
        with pytest.raises(ConfigError, match="another run"), Output.open(path):
            pass
    with Output.open(path) as output:
        assert len(list(output.done())) == 1


def fail_after(path, *outcomes) -> None:
    with Output.open(path) as output:
        for number, outcome in enumerate(outcomes, 1):
            output.append(row(number), outcome)
        raise ZeroDivisionError


def test_what_fails_before_anything_is_written_leaves_no_new_file(tmp_path) -> None:
    path = tmp_path / "out.jsonl"
    with pytest.raises(ZeroDivisionError):
        fail_after(path)
    assert not path.exists()
    path.touch()
    with pytest.raises(ZeroDivisionError):
        fail_after(path)
    assert path.exists()


def test_what_fails_later_keeps_what_was_written(tmp_path) -> None:
    path = tmp_path / "out.jsonl"
    with pytest.raises(ZeroDivisionError):
        fail_after(path, ANSWER)
    assert len(path.read_text().splitlines()) == 1


def test_a_file_that_another_run_took_away_while_it_was_opened_is_refused(tmp_path, monkeypatch) -> None:
    path = tmp_path / "out.jsonl"
    lock = Output._lock

    def lock_too_late(output: Output) -> None:
        path.unlink()
        lock(output)

    monkeypatch.setattr(Output, "_lock", lock_too_late)
    with pytest.raises(ConfigError, match="another run"), Output.open(path):
        pass


def test_a_directory_that_is_not_there_is_named(tmp_path) -> None:
    with pytest.raises(ConfigError, match="No such file"), Output.open(tmp_path / "none" / "out.jsonl"):
        pass
