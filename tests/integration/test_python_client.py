"""The Python way in: from another process, from asyncio, and from a submitted Ray job."""

import json
import os
import re
import subprocess
import sys

import pytest
from running_cluster import ROOT, Cluster

from serve_app.launcher import THROUGHPUT_FLAGS

SCRIPT = """
import asyncio, json
import serve_app
from serve_app.errors import InvalidInputs, UnknownProgram

for application in ("switchyard", "compact"):
    client = serve_app.connect(application)
    answer = client.predict("triage", ticket="My invoice is wrong, once more: {unique}")
    assert answer.category in {{"billing", "bug", "account", "feature_request", "other"}}, answer
    assert answer.meta["cache"] == "miss", answer.meta
    pinned = client.with_options(model="large", deadline_s=20)
    assert pinned.predict("triage", ticket="Pinned {unique}").meta["model"] == "large"
    for raised, program, inputs in (
        (UnknownProgram, "triag", {{"ticket": "x"}}),
        (InvalidInputs, "triage", {{"tickt": "x"}}),
    ):
        try:
            client.predict(program, **inputs)
        except raised as error:
            assert "tri" in str(error) or "tickt" in str(error)
            assert type(error) is raised
        else:
            raise AssertionError(raised)

    async def many():
        return await asyncio.gather(*(client.apredict("math", question=f"{{n}}: {unique}") for n in range(64)))

    for _ in "again":
        answers = asyncio.run(many())
        assert len({{answer.meta["request_id"] for answer in answers}}) == 64
        rows = [{{"ticket": f"{{n}}: {unique}"}} for n in range(8)]
        found = [*client.predict_many("triage", rows)]
        assert {{row.index for row in found if row.prediction}} == {{*range(8)}}, found
    assert serve_app.connect(application).predict("triage", ticket="Connected again {unique}").category
    try:
        async def blocking():
            client.predict("math", question="x")
        asyncio.run(blocking())
    except RuntimeError as error:
        assert "apredict" in str(error)
    else:
        raise AssertionError("predict() inside a loop")
print("all is well")
"""


def run(*command: str, timeout: float = 120, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"RAY_AUTH_MODE": "token", "PYTHONWARNINGS": "ignore"}  # as `ray job submit` wants it
    environment |= variables
    return subprocess.run(
        command, check=False, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout
    )


def dashboard(cluster: Cluster) -> str:
    """Where the cluster takes jobs; Ray says it in its log."""
    found = re.search(r"View the dashboard at \S*?(http://[\d.:]+)", cluster.log.read_text())
    assert found, cluster.log.read_text()[:4000]
    return found[1]


@pytest.mark.parametrize("flags", [(), THROUGHPUT_FLAGS], ids=["plain", "as a job of the cluster"])
def test_another_process_calls_programs_by_handle(cluster, unique, flags) -> None:
    """A job has the environment of its cluster, and so Ray Serve's flags."""
    done = run(sys.executable, "-c", SCRIPT.format(unique=unique()), **dict.fromkeys(flags, "1"))
    assert done.returncode == 0, done.stderr[-4000:]
    assert "all is well" in done.stdout


@pytest.mark.timeout(300)
def test_a_submitted_job_calls_programs_by_handle(cluster) -> None:
    ray = str(ROOT / ".venv/bin/ray") if (ROOT / ".venv/bin/ray").exists() else "ray"
    command = [ray, "job", "submit", "--address", dashboard(cluster), "--working-dir", "."]
    done = run(*command, "--", sys.executable, "-m", "examples.job", timeout=240)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert "succeeded" in done.stdout + done.stderr


@pytest.mark.timeout(300)
def test_a_submitted_job_calls_programs_over_http(cluster, tmp_path, unique) -> None:
    rows, answers = tmp_path / "rows.jsonl", tmp_path / "answers.jsonl"
    rows.write_text("".join(json.dumps({"ticket": f"{unique()} {number}"}) + "\n" for number in range(8)))
    ray = str(ROOT / ".venv/bin/ray") if (ROOT / ".venv/bin/ray").exists() else "ray"
    job = [sys.executable, "-m", "serve_app.cli", "batch", "--program", "triage", "--url", cluster.url()]
    done = run(ray, "job", "submit", "--address", dashboard(cluster), "--", *job, str(rows), str(answers), timeout=240)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    answered = [json.loads(line) for line in answers.read_text().splitlines()]
    assert {line["row"] for line in answered if "outputs" in line} == {*range(1, 9)}, answered


def test_the_command_line_example_works(cluster) -> None:
    done = run(sys.executable, "examples/call.py", "My invoice is wrong.")
    assert done.returncode == 0, done.stderr[-4000:]
    assert "priority" in done.stdout
