"""Alerts and dashboard as code: every expression reads metrics and labels that a real page has."""

import asyncio
import inspect
import json
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from promql_names import names_in

from serve_app import errors
from serve_app.adapters.local_store import StoreStats
from serve_app.adapters.redis_store import RedisStats
from serve_app.adapters.telemetry import Telemetry
from serve_app.config import AppConfig
from serve_app.deployments.control_plane import ControlPlane
from serve_app.messages import Attempt, Level, Outcome, Usage
from serve_app.reports import MetricType, Origin, Report, ScoreSum

ROOT = Path(__file__).parents[2]
MONITORING = ROOT / "cluster" / "monitoring"
OF_PROMETHEUS = {"up": {"job", "instance"}, "ALERTS": {"alertname", "alertstate"}}
ADDED_BY_SCRAPING = {"job", "instance"}
ALERT_TESTS = ("alerts_test.yml", "alerts_day_test.yml")
EXAMPLES = {
    "str": "x",
    "float": 0.5,
    "int": 1,
    "bool": True,
    "Attempt": Attempt("m", Outcome.OK, 0.1, Usage(1, 1), 0.1),
    "StoreStats": StoreStats(entries=1, bytes=1, evictions=1),
    "RedisStats": RedisStats(is_up=True, hits=1, misses=1, writes=1, failures={"timeout": 1}),
}

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed (Debian: the package prometheus)"
)


def load(name: str) -> Any:
    return yaml.safe_load((MONITORING / name).read_text(encoding="utf-8"))


def alerts() -> dict[str, str]:
    groups = load("prometheus/alerts.yml")["groups"]
    return {rule["alert"]: rule["expr"] for group in groups for rule in group["rules"]}


def dashboard() -> dict[str, Any]:
    return json.loads((MONITORING / "grafana/switchyard.json").read_text(encoding="utf-8"))


def panels() -> list[dict[str, Any]]:
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def plotted() -> dict[str, str]:
    """Expressions of the dashboard by where they stand: panels, variables, annotations."""
    found = {f"{panel['title']} {each['refId']}": each["expr"] for panel in panels() for each in panel["targets"]}
    found |= {each["name"]: each["query"] for each in dashboard()["templating"]["list"] if each["type"] == "query"}
    return found | {each["name"]: each["expr"] for each in dashboard()["annotations"]["list"]}


EXPRESSIONS = {**{f"alert {name}": text for name, text in alerts().items()}, **plotted()}


def count_everything(counting: object) -> None:
    """Call each method that counts, whatever there is, so that a new metric needs no word here."""
    for name, method in inspect.getmembers(counting, inspect.ismethod):
        wanted = {each.name: each.annotation for each in inspect.signature(method).parameters.values()}
        if not name.startswith("_") and wanted and all(kind in EXAMPLES for kind in wanted.values()):
            method(**{each: EXAMPLES[kind] for each, kind in wanted.items()})


@cache
def page() -> str:
    """What ``GET /metrics`` answers when everything has happened once."""

    async def make() -> bytes:
        telemetry = Telemetry()
        count_everything(telemetry)
        count_everything(telemetry.cache)
        args = yaml.safe_load((ROOT / "serve_config.yaml").read_text(encoding="utf-8"))["applications"][0]["args"]
        plane = ControlPlane(AppConfig.model_validate(args))
        gauges = {"queue_depth": 1.0, "node_cpu": 0.5, "node_memory": 0.5}
        plane.reconfigure({"degradation": {"pin": "degraded"}})  # what holds a level is a metric only while one is held
        scores = (ScoreSum(Origin("triage", "v1", "small", Level.FULL), MetricType.REWARD, 100.0, 50.0),)
        told: dict[str, Any] = {"versions": {"triage": "v1"}, "scores": scores}
        await plane.exchange(Report("r", "Model-small", gauges=gauges, metrics=telemetry.samples(), **told))
        return await plane.metrics()

    return asyncio.run(make()).decode()


@cache
def served() -> dict[str, set[str]]:
    """The labels of every sample name on the page."""
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(page()):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def test_the_metrics_that_the_reference_names_are_on_the_page_with_their_labels() -> None:
    contract = (ROOT / "docs/http.md").read_text(encoding="utf-8").partition("## Metrics")[2].partition("\n## ")[0]
    named = re.findall(r"^\| `(\w+)(?:{([\w,]+)})?` \| (\w+) \|", contract, re.MULTILINE)
    assert len(named) >= 15
    for name, labels, kind in named:
        sample = f"{name}_count" if kind == "histogram" else name
        assert sample in served()
        assert set(filter(None, labels.split(","))) <= served()[sample]


@pytest.mark.parametrize("where", EXPRESSIONS)
def test_an_expression_reads_metrics_and_labels_that_exist(where) -> None:
    metrics, labels = names_in(EXPRESSIONS[where])
    known = served() | OF_PROMETHEUS
    assert metrics
    assert metrics <= known.keys()
    assert labels <= ADDED_BY_SCRAPING.union(*(known[name] for name in metrics))


@pytest.mark.parametrize(
    ("expression", "metrics", "labels"),
    [
        ("sum by (a, b) (rate(x_total{c='', d!~\"e|f\"}[5m] offset 1h)) > 0.5", {"x_total"}, {"a", "b", "c", "d"}),
        ("histogram_quantile(0.95, sum by (le) (rate(y_bucket[$__rate_interval]))) * 1e3", {"y_bucket"}, {"le"}),
        ('label_values(z{job="$job"}, model)', {"z"}, {"job", "model"}),
        ("summ(x) == on(a) min(up)", {"summ", "x", "up"}, {"a"}),
    ],
)
def test_the_one_who_reads_expressions_finds_every_name(expression, metrics, labels) -> None:
    assert names_in(expression) == (metrics, labels)


def test_statuses_that_expressions_count_as_failures_are_codes_of_errors() -> None:
    kinds = [found for found in vars(errors).values() if isinstance(found, type)]
    codes = {kind.code for kind in kinds if issubclass(kind, errors.SwitchyardError)}
    counted = re.findall(r'status=~?"([\w|]+)"', "".join(EXPRESSIONS.values()))
    assert {code for group in counted for code in group.split("|")} - {"success"} <= codes
    assert len({group for group in counted if "|" in group}) == 1, "alert and dashboard mean the same by a failure"


# ── alerts ───────────────────────────────────────────────────────────────────────────────────────────


def test_prometheus_reads_the_rules_and_scrapes_one_address() -> None:
    config = load("prometheus/prometheus.yml")
    assert [name for name in config["rule_files"] if not (MONITORING / "prometheus" / name).exists()] == []
    ((job,),) = [config["scrape_configs"]]
    assert job["job_name"] == "switchyard"
    assert job["static_configs"] == [{"targets": ["switchyard:8000"]}]


def test_every_alert_is_seen_to_fire_and_to_keep_silent() -> None:
    tests = [test for name in ALERT_TESTS for test in load(f"prometheus/{name}")["tests"]]
    cases = [case for test in tests for case in test["alert_rule_test"]]
    assert {case["alertname"] for case in cases if "exp_alerts" in case} == alerts().keys()
    assert {case["alertname"] for case in cases if "exp_alerts" not in case} == alerts().keys()


def test_every_alert_says_what_it_means_and_what_to_do() -> None:
    text = (ROOT / "docs/operating.md").read_text(encoding="utf-8")
    sections = {
        title.strip("`"): body
        for title, body in re.findall(r"^### (\S+)\n(.*?)(?=^##|\Z)", text, re.MULTILINE | re.DOTALL)
    }
    assert sections.keys() == alerts().keys()
    for name, body in sections.items():
        assert re.findall(r"^- \*\*(\w[\w ]*)\*\*", body, re.MULTILINE) == ["Means", "First look", "Remedy"], name


def promtool(*arguments: str | Path) -> None:
    command = ["promtool", *map(str, arguments)]
    found = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert found.returncode == 0, found.stdout + found.stderr


@needs_promtool
def test_promtool_accepts_configuration_and_rules() -> None:
    promtool("check", "config", MONITORING / "prometheus/prometheus.yml")
    promtool("check", "rules", MONITORING / "prometheus/alerts.yml")


@needs_promtool
def test_promtool_sees_each_alert_fire_when_it_should() -> None:
    promtool("test", "rules", *(MONITORING / "prometheus" / name for name in ALERT_TESTS))


@needs_promtool
def test_promtool_objects_to_nothing_on_the_page_but_a_name_of_the_contract() -> None:
    command = ["promtool", "check", "metrics"]
    found = subprocess.run(command, input=page(), capture_output=True, text=True, timeout=60, check=False)
    assert found.stderr.splitlines() == ["dspy_memory_usage_mb metric names should not contain abbreviated units"]


@needs_promtool
def test_promtool_accepts_every_expression_of_the_dashboard(tmp_path) -> None:
    expressions = [text.replace("$__rate_interval", "1m") for text in plotted().values() if "label_values" not in text]
    rules = [{"record": f"panel:{number}", "expr": text} for number, text in enumerate(expressions)]
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    promtool("check", "rules", tmp_path / "rules.yml")


# ── dashboard ────────────────────────────────────────────────────────────────────────────────────────


def test_panels_have_numbers_of_their_own_and_do_not_overlap() -> None:
    everything = dashboard()["panels"]
    assert len({panel["id"] for panel in everything}) == len(everything)
    cells: dict[tuple[int, int], str] = {}
    for panel in everything:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        for cell in [(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])]:
            assert cells.setdefault(cell, panel["title"]) == panel["title"]


@pytest.mark.parametrize("panel", panels(), ids=lambda panel: panel["title"])
def test_a_panels_legend_names_labels_that_its_expression_keeps(panel) -> None:
    for target in panel["targets"]:
        kept = {name for inner in re.findall(r"by \(([^)]*)\)", target["expr"]) for name in re.findall(r"\w+", inner)}
        assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= kept


def test_grafana_finds_the_data_source_that_the_dashboard_asks_for() -> None:
    (source,) = load("grafana/datasources.yaml")["datasources"]
    variable = next(each for each in dashboard()["templating"]["list"] if each["type"] == "datasource")
    assert variable["current"]["value"] == source["uid"]
    compose = yaml.safe_load((ROOT / "cluster/compose.yaml").read_text(encoding="utf-8"))
    assert source["url"] == "http://prometheus:9090"
    assert "prometheus" in compose["services"]
    (provider,) = load("grafana/dashboards.yaml")["providers"]
    assert any(
        volume.split(":")[1].startswith(provider["options"]["path"])
        for volume in compose["services"]["grafana"]["volumes"]
    )
