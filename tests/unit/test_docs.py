"""What ``docs/`` says is what the code has."""

import re
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel

from serve_app import errors
from serve_app.config_reference import reference
from serve_app.deployments.openapi import MetaBody, Problem
from serve_app.deployments.requests import OptionsBody
from serve_app.simulator.faults import PlainFault, SilenceFault, SlowFault, StatusFault
from serve_app.simulator.profile import ModelProfile, Replay

FAULTS = (StatusFault, SilenceFault, SlowFault, PlainFault)
ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
DESIGN = [ROOT / "ARCHITECTURE.md", *(DOCS / "design").glob("*.md")]
PAGES = sorted([*DOCS.glob("*.md"), *DESIGN, ROOT / "README.md", ROOT / "cluster/README.md", ROOT / "CONTRIBUTING.md"])


def text_of(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def section(name: str, title: str) -> str:
    """The part of a page under a heading, up to the next of the same kind or a higher one."""
    level = title.split(" ", maxsplit=1)[0]
    found = text_of(name).partition(f"\n{title}\n")[2]
    assert found, f"docs/{name} has no section {title!r}"
    return re.split(rf"\n#{{1,{len(level)}}} ", found, maxsplit=1)[0]


def rows(markdown: str) -> list[list[str]]:
    """The cells of every table row but the heads."""
    lines = [line for line in markdown.splitlines() if line.startswith("| `") or re.match(r"\| \d", line)]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def names(markdown: str) -> set[str]:
    return {row[0].strip("`") for row in rows(markdown)}


def error_kinds() -> list[type[errors.SwitchyardError]]:
    kinds = [found for found in vars(errors).values() if isinstance(found, type)]
    return [kind for kind in kinds if issubclass(kind, errors.SwitchyardError) and kind is not errors.ConfigError]


def test_the_configuration_reference_is_what_the_models_say() -> None:
    assert text_of("configuration.md") == reference(), "run `make docs`"


def test_the_reference_describes_every_key_of_every_section() -> None:
    described = rows(text_of("configuration.md"))
    assert len(described) > 80
    assert [row[0] for row in described if len(row) != 4 or not row[3]] == []


def test_the_table_of_errors_is_the_tree() -> None:
    documented = {(int(row[0]), row[1].strip("`"), row[2] == "yes") for row in rows(section("http.md", "## Errors"))}
    assert documented == {(kind.status, kind.code, kind.retryable) for kind in error_kinds()}


@pytest.mark.parametrize(("title", "model"), [("### Options", OptionsBody), ("### Answer", MetaBody)])
def test_a_table_of_members_names_all_of_them(title: str, model: type[BaseModel]) -> None:
    assert names(section("http.md", title)) == model.model_fields.keys()


def test_the_members_of_a_problem_are_named() -> None:
    said = section("http.md", "## Errors").partition("The members are")[2].partition(". ")[0]
    assert set(re.findall(r"`(\w+)`", said)) == Problem.model_fields.keys()


def test_the_page_about_the_simulator_names_every_key_and_every_kind_of_fault() -> None:
    kinds = {kind for fault in FAULTS for kind in get_args(fault.model_fields["kind"].annotation)}
    assert names(section("simulator.md", "## Faults")) == kinds
    assert names(section("simulator.md", "## Profiles")) == ModelProfile.model_fields.keys()
    keys = {key for fault in FAULTS for key in fault.model_fields}
    assert keys <= set(re.findall(r"\w+", section("simulator.md", "## Faults")))
    assert Replay.model_fields.keys() <= set(re.findall(r"\w+", section("simulator.md", "## Replay")))


def test_every_alert_and_panel_that_operating_names_exists() -> None:
    operating = text_of("operating.md")
    dashboard = (ROOT / "cluster/monitoring/grafana/switchyard.json").read_text(encoding="utf-8")
    panels = set(re.findall(r'"title": "([^"]+)"', dashboard))
    alerts = (ROOT / "cluster/monitoring/prometheus/alerts.yml").read_text(encoding="utf-8")
    assert set(re.findall(r"(?<!\*)\*([A-Z][^*]+)\*(?!\*)", operating)) <= panels
    assert set(re.findall(r"\bSwitchyard[A-Z]\w+", operating)) <= set(re.findall(r"alert: (\w+)", alerts))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", page.read_text(encoding="utf-8")):
        path, _, anchor = target.partition("#")
        found = page.parent / path if path else page
        assert found.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.*)$", found.read_text(encoding="utf-8"), re.MULTILINE)
            anchors = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
            assert anchor in anchors, target


@pytest.mark.parametrize("page", DESIGN, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_file_that_a_page_about_the_design_names_exists(page: Path) -> None:
    named = set(re.findall(r"`([\w/]+\.py)`", page.read_text(encoding="utf-8")))
    places = [ROOT, ROOT / "serve_app", ROOT / "serve_app/deployments"]
    assert named
    assert [file for file in named if not any((place / file).is_file() for place in places)] == []
