"""Results of benchmarks: one section is measured again, the others stay; processes are told apart; the plot is one."""

from xml.etree import ElementTree as ET

import pytest

from benchmarks.plot import line_plot
from benchmarks.processes import role
from benchmarks.run import RESULTS, SECTIONS, merged, sections_of


def test_a_section_is_replaced_and_the_others_stay_as_they_are() -> None:
    first, second, *_ = (section.title for section in SECTIONS.values())
    old = merged("# Results\n", {second: "two", "Somebody else's": "as it was\n\n### with a part"})
    new = merged(old, {first: "one", second: "two again"})
    assert sections_of(new) == {first: "one", second: "two again", "Somebody else's": "as it was\n\n### with a part"}
    assert list(sections_of(new)) == [first, second, "Somebody else's"]


def test_the_results_of_the_repository_are_kept_to_the_letter() -> None:
    results = RESULTS.read_text(encoding="utf-8")
    assert merged(results, {}) == results
    assert all("Load average" in text or "`python -m" in text for text in sections_of(results).values())


@pytest.mark.parametrize(
    ("command", "known_as"),
    [
        ("ray::ServeReplica:switchyard:Model-large", "switchyard:Model-large"),
        ("ray::ServeReplica:compact:Ingress.handle_request", "compact:Ingress"),
        ("ray::ServeController.listen_for_change", "Ray Serve controller"),
        ("/x/bin/python -m serve_app.cli simulate --port 1", "simulated provider"),
        ("/x/core/src/ray/raylet/raylet --node", "Ray's daemons"),
        ("python -c from multiprocessing.spawn import spawn_main", "load generator"),
        ("sleep 1", "other"),
    ],
)
def test_processes_are_known_by_their_command_line(command, known_as) -> None:
    assert role(command) == known_as


def test_the_plot_is_xml_with_every_point(tmp_path) -> None:
    path = tmp_path / "plot.svg"
    line_plot(path, "a < b", "x", "y", {"one": [(1, 10), (512, 900)], "two": [(1, 20), (512, 1100)]})
    tree = ET.parse(path)
    circles = [e for e in tree.iter() if e.tag.endswith("circle")]
    assert len(circles) == 4
    assert all(0 <= float(e.get("cx")) <= 720 and 0 <= float(e.get("cy")) <= 400 for e in circles)
