"""What an operator is shown of a cluster with several replicas of each part: exact totals, whole traces, clean lines."""

import itertools
import json
import os
import re
import secrets
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from otlp_collector import Collector, Span
from prometheus_client.parser import text_string_to_metric_families
from running_cluster import Cluster

pytestmark = pytest.mark.usefixtures("healed")

CALLERS = 8
SECONDS = 5.0
GOOD = {"complexity": "low", "deadline_s": 20}


@pytest.fixture
def healed(provider):
    yield
    provider.heal()


def until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    give_up = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up, f"not within {seconds} s"
        time.sleep(0.1)


# ── metrics ──────────────────────────────────────────────────────────────────────────────────────────


def scrape(cluster: Cluster) -> dict[tuple, float]:
    """Every series that may only grow, and gauges under the replica's name."""
    with cluster.client() as client:
        page = client.get("/metrics").raise_for_status().text
    return {
        (family.type, sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


def answered(cluster: Cluster) -> Counter:
    """``dspy_requests_total`` by status."""
    counted: Counter = Counter()
    for (_, name, *labels), value in scrape(cluster).items():
        if name == "dspy_requests_total":
            counted[dict(labels)["status"]] += int(value)
    return counted


def replicas(cluster: Cluster, deployment: str) -> set[str]:
    """Those of a deployment that have gauges."""
    labels = [dict(labels) for kind, _, *labels in scrape(cluster) if kind == "gauge"]
    return {found["replica"] for found in labels if found.get("replica", "").startswith(f"{deployment}-")}


class Load:
    """Calls of several kinds from several callers, each counted by what it came to."""

    def __init__(self, cluster: Cluster, seen: Counter) -> None:
        self._cluster = cluster
        self._seen = seen
        self._lock = threading.Lock()
        self._until = time.monotonic() + SECONDS
        self._callers = [threading.Thread(target=self._call, args=(number,)) for number in range(CALLERS)]

    def __enter__(self) -> None:
        for caller in self._callers:
            caller.start()

    def __exit__(self, *_: object) -> None:
        for caller in self._callers:
            caller.join(60)
            assert not caller.is_alive(), "a caller hangs"

    def _call(self, caller: int) -> None:
        with self._cluster.client() as client:
            number = 0
            while time.monotonic() < self._until:
                number += 1
                question = f"Case {secrets.token_hex(4)}" if number % 3 else f"Known {caller % 2}"
                inputs = {"question": question} if number % 7 else {"question": question, "typo": 1}
                reply = client.post("/v1/programs/math", json={"inputs": inputs, "options": GOOD})
                code = "success" if reply.status_code == 200 else reply.json()["code"]
                with self._lock:
                    self._seen[code] += 1


def test_totals_are_exact_before_and_after_a_replica_is_killed(replicated_cluster) -> None:
    cluster = replicated_cluster
    parts = ("Ingress", "Router", "Model-small", "Model-large")
    until(lambda: [len(cluster.pids_of(part)) for part in parts] == [2, 2, 2, 1], 60)
    seen = answered(cluster)
    with Load(cluster, seen):
        pass
    until(lambda: answered(cluster) == seen)
    before = replicas(cluster, "Model-small")
    assert len(before) == 2

    readings = [scrape(cluster)]
    with Load(cluster, seen):
        until(
            lambda: (
                answered(cluster).total()
                > sum(readings[0][key] for key in readings[0] if key[1] == "dspy_requests_total") + 50
            )
        )
        os.kill(cluster.pids_of("Model-small")[0], signal.SIGKILL)
        give_up = time.monotonic() + 2
        while time.monotonic() < give_up:
            readings.append(scrape(cluster))
    until(lambda: answered(cluster) == seen)
    assert seen["success"] > 100
    assert seen["invalid_inputs"] > 10

    until(
        lambda: len(replicas(cluster, "Model-small") - before) == 1 and len(replicas(cluster, "Model-small")) == 2, 60
    )
    readings.append(scrape(cluster))
    assert answered(cluster) == seen
    for earlier, later in itertools.pairwise(readings):
        shrunk = [key for key, value in earlier.items() if key[0] != "gauge" and later.get(key, 0) < value]
        assert not shrunk
    counts = [value for key, value in readings[-1].items() if key[1] == "dspy_request_duration_seconds_count"]
    assert sum(counts) == seen.total()


# ── traces ───────────────────────────────────────────────────────────────────────────────────────────


def tree(spans: list[Span]) -> dict[tuple[str, str], str]:
    """Each span's parent by its own name and deployment."""
    names = {span.span_id: span.name for span in spans}
    assert len(names) == len(spans)
    return {(span.name, span.deployment): names.get(span.parent_id, span.parent_id) for span in spans}


def test_the_spans_of_a_call_that_falls_back_are_one_tree_over_all_processes(
    replicated_cluster, provider, collector: Collector
) -> None:
    trace_id, caller = secrets.token_hex(16), secrets.token_hex(8)
    headers = {"traceparent": f"00-{trace_id}-{caller}-01", "x-request-id": f"traced-{caller}"}
    question = f"A secret {secrets.token_hex(8)}"
    provider.fault("sim-small", {"kind": "status", "status": 500})
    with replicated_cluster.client() as client:
        body = {"inputs": {"question": question}, "options": GOOD}
        reply = client.post("/v1/programs/math", json=body, headers=headers).raise_for_status().json()
        assert [attempt["outcome"] for attempt in reply["meta"]["attempts"]] == ["server_error", "ok"]
        client.post("/v1/programs/math", json=body).raise_for_status()  # of no trace: nobody asked to see it
    until(lambda: len(collector.of(trace_id)) >= 7)
    spans = collector.of(trace_id)
    assert tree(spans) == {
        ("call math", "Ingress"): caller,
        ("cache", "Cache"): "call math",
        ("router", "Router"): "cache",
        ("attempt small", "Router"): "router",
        ("chat sim-small", "Model-small"): "attempt small",
        ("attempt large", "Router"): "router",
        ("chat sim-large", "Model-large"): "attempt large",
    }
    (lm,) = [span.attributes for span in spans if span.name == "chat sim-large"]
    assert lm["gen_ai.usage.output_tokens"] == reply["meta"]["usage"]["output_tokens"]
    assert (lm["gen_ai.operation.name"], lm["gen_ai.provider.name"]) == ("chat", "openai")
    assert not [span for span in spans if question.encode() in span.raw]
    assert {span.trace_id for span in collector.spans} == {trace_id}


# ── logs ─────────────────────────────────────────────────────────────────────────────────────────────


def log_files(cluster: Cluster) -> set[Path]:
    """The replicas' files, as each of them said when it started."""
    return {Path(found) for found in re.findall(r'"log": ?"([^"]+\.jsonl)"', cluster.log.read_text())}


def logged(cluster: Cluster) -> list[dict]:
    """Every line of every replica's file; each is one JSON object."""
    return [json.loads(line) for file in log_files(cluster) for line in file.read_text().splitlines()]


def test_each_call_is_one_json_line_of_the_ingress_that_answered_it(replicated_cluster) -> None:
    request_id, secret = f"logged-{secrets.token_hex(4)}", f"secret {secrets.token_hex(8)}"
    body = {"inputs": {"question": secret}, "options": GOOD}
    with replicated_cluster.client() as client:
        reply = client.post("/v1/programs/math", json=body, headers={"x-request-id": request_id}).json()
        client.post("/v1/programs/math", json={"inputs": {"typo": secret}}, headers={"x-request-id": f"{request_id}-2"})
    lines = [line for line in logged(replicated_cluster) if line.get("request_id", "").startswith(request_id)]
    first, second = sorted(lines, key=lambda line: line["request_id"])
    assert (first["event"], first["status"], first["cache"]) == ("call.finished", 200, "miss")
    assert first["cost_usd"] == reply["meta"]["cost_usd"]
    assert (second["event"], second["status"], second["code"]) == ("call.finished", 422, "invalid_inputs")
    text = "".join(file.read_text() for file in log_files(replicated_cluster))
    assert secret not in text
    assert request_id not in replicated_cluster.log.read_text()  # lines about calls are not sent through Ray


def test_as_many_calls_are_logged_as_were_counted(replicated_cluster) -> None:
    ends = [line for line in logged(replicated_cluster) if line["event"] == "call.finished"]
    until(lambda: answered(replicated_cluster) == Counter(line["code"] for line in ends))
