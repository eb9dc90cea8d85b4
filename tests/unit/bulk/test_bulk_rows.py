"""The input file: both forms of a line, and what is refused with the number of its line."""

import gzip
import json
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.bulk.rows import read_rows
from serve_app.errors import ConfigError

WORDS = st.dictionaries(st.text().filter(lambda key: key not in ("inputs", "options")), st.text() | st.integers())


def rows(tmp_path, text: str):
    path = tmp_path / "in.jsonl"
    path.write_text(text, encoding="utf-8")
    return list(read_rows(path, "triage"))


def test_a_line_is_inputs_or_a_body(tmp_path) -> None:
    short, long, bare = rows(
        tmp_path, '{"ticket": "x"}\n{"inputs": {"ticket": "y"}, "options": {"model": "m"}}\n{"inputs": {}}'
    )
    assert (short.number, short.inputs, short.options) == (1, {"ticket": "x"}, {})
    assert (long.number, long.inputs, long.options) == (2, {"ticket": "y"}, {"model": "m"})
    assert (bare.number, bare.inputs) == (3, {})


def test_blank_lines_are_skipped_and_counted(tmp_path) -> None:
    assert [row.number for row in rows(tmp_path, '\n{"a": 1}\n  \n{"a": 2}\n')] == [2, 4]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("[1]", "must be a JSON object"),
        ('{"a": 1', "in.jsonl:2"),
        ('{"a": NaN}', "in.jsonl:2"),
        ('{"inputs": "text"}', "must be objects"),
        ('{"options": {}}', "must be objects"),
        ('{"inputs": {}, "options": null}', "must be objects"),
        ('{"inputs": {}, "ticket": "x"}', "'ticket' beside inputs"),
        ('{"options": {}, "ticket": "x"}', "'ticket' beside options"),
    ],
)
def test_what_could_mean_two_things_or_nothing_is_refused(tmp_path, line, says) -> None:
    with pytest.raises(ConfigError) as refused:
        rows(tmp_path, '{"ticket": "x"}\n' + line + "\n")
    assert "in.jsonl:2: " in str(refused.value)
    assert says in str(refused.value)


def test_a_file_that_is_not_there_is_named(tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"none\.jsonl: No such file"):
        list(read_rows(tmp_path / "none.jsonl", "triage"))


@pytest.mark.timeout(10)  # who opens a pipe without a writer waits for ever
def test_a_pipe_is_refused_because_it_can_be_read_only_once(tmp_path) -> None:
    path = tmp_path / "in.jsonl"
    os.mkfifo(path)
    with pytest.raises(ConfigError, match=r"in\.jsonl: must be a regular file"):
        list(read_rows(path, "triage"))


def test_a_compressed_file_is_refused_as_such(tmp_path) -> None:
    path = tmp_path / "in.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"ticket": "x"}\n'))
    with pytest.raises(ConfigError, match=r"in\.jsonl\.gz: is compressed with gzip"):
        list(read_rows(path, "triage"))


def test_a_byte_order_mark_changes_nothing(tmp_path) -> None:
    text = '{"ticket": "x"}\n{"ticket": "y"}\n'
    assert rows(tmp_path, "\ufeff" + text) == rows(tmp_path, text)
    assert rows(tmp_path, "\ufeff") == rows(tmp_path, "") == []


@settings(max_examples=30)
@given(first=WORDS, second=WORDS)
def test_rows_share_a_hash_when_and_only_when_they_are_the_same_call(tmp_path_factory, first, second) -> None:
    path = tmp_path_factory.mktemp("rows") / "in.jsonl"
    again = dict(reversed(first.items()))
    path.write_text("\n".join(json.dumps(line) for line in (first, {"inputs": again}, second)))
    one, same, other = read_rows(path, "triage")
    assert one.hash == same.hash
    assert (one.hash == other.hash) == (first == second)
    assert next(read_rows(path, "other")).hash != one.hash
