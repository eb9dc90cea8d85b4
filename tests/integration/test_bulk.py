"""Many rows through a real cluster: on the command line with an end in the middle, and from Python."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from running_cluster import ROOT, Cluster

ROWS = 300
BOUND_S = 60


def write_rows(path: Path, unique: str, rows: int = ROWS) -> None:
    lines = [json.dumps({"ticket": f"My invoice is wrong. {unique} {number}"}) for number in range(rows - 1)]
    path.write_text("\n".join([*lines, '{"ticket": 5}']) + "\n")


def batch(url: str, directory: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "serve_app.cli", "batch", "--program", "triage", "--url", url, *options]
    return subprocess.Popen(
        [*command, str(directory / "in.jsonl"), str(directory / "out.jsonl")],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )


def written(directory: Path) -> list[dict]:
    path = directory / "out.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.mark.parametrize("graph", Cluster.GRAPHS)
def test_a_run_ended_by_ctrl_c_goes_on_and_asks_each_row_once(cluster, graph, unique, tmp_path) -> None:
    write_rows(tmp_path / "in.jsonl", unique())
    first = batch(cluster.url(graph), tmp_path, "--concurrency", "2")
    give_up = time.monotonic() + BOUND_S
    while len(written(tmp_path)) < 20:
        assert time.monotonic() < give_up
        assert first.poll() is None
        time.sleep(0.01)
    first.send_signal(signal.SIGINT)
    _, said = first.communicate(timeout=BOUND_S)
    assert first.returncode == 130, said
    assert "Traceback" not in said
    before = written(tmp_path)
    assert 20 <= len(before) < ROWS
    second = batch(cluster.url(graph), tmp_path)
    _, said = second.communicate(timeout=BOUND_S)
    assert second.returncode == 1, said  # one row is no ticket
    assert f"{ROWS} rows: {ROWS - 1} answered, 1 failed, 0 left" in said
    after = written(tmp_path)
    assert after[: len(before)] == before
    assert sorted(line["row"] for line in after) == list(range(1, ROWS + 1))
    (failed,) = (line for line in after if "error" in line)
    assert (failed["row"], failed["error"]["code"]) == (ROWS, "invalid_inputs")
    assert "inputs.ticket" in failed["error"]["detail"]


def test_a_job_asks_many_rows_by_handle(cluster, unique, tmp_path) -> None:
    write_rows(tmp_path / "in.jsonl", unique(), 100)
    done = subprocess.run(
        [sys.executable, "-m", "examples.bulk", str(tmp_path / "in.jsonl")],
        check=False,
        cwd=ROOT,
        env=os.environ | {"RAY_AUTH_MODE": "token", "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        timeout=BOUND_S,
    )
    assert done.returncode == 1, done.stderr[-4000:]
    assert done.stdout.startswith("100 tickets, $"), done.stdout
    assert "'failed': 1" in done.stdout
    assert "ticket 99: inputs.ticket" in done.stderr
