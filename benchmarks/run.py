"""Run benchmarks and write ``benchmarks/RESULTS.md``: ``make bench``, or ``python -m benchmarks.run``.

Each benchmark is a module with a command line that prints Markdown; it runs in a process of its own, one at a time. A
section says when it was measured, and on what; those that are not chosen stay as they are.

    python -m benchmarks.run --only peers latency
"""

from __future__ import annotations

import argparse
import datetime as dt
import os
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import psutil

RESULTS = Path(__file__).with_name("RESULTS.md")
HEAD = """# Results

Written by `make bench`. Machines are noisy: read ratios and medians, not milliseconds. Each section was measured by
itself and says when; `python -m benchmarks.run --only NAME` measures one again and leaves the others as they are.
"""


@dataclass(frozen=True)
class Section:
    """One section of the results: its title, and the modules, with their arguments, that print it."""

    title: str
    commands: tuple[tuple[str, ...], ...]


def overload(graph: str) -> tuple[tuple[str, ...], ...]:
    """A minute at each rate; what scaling does is over sooner."""
    graph_and_phase = "--graph", graph, "--phase-s"
    return ("overload", *graph_and_phase, "60", "--only", "flood"), (
        "overload",
        *graph_and_phase,
        "15",
        "--only",
        "step",
    )


SECTIONS = {
    "engine": Section("CPU of one LM call, by engine", (("engine_cpu", "--calls", "300", "--rounds", "7"),)),
    "metrics": Section("CPU of counting, logging and tracing", (("metrics_cpu",),)),
    "peers": Section("Beside what a person would use instead", (("peers",),)),
    "latency": Section("What serving adds to one call", (("latency",),)),
    "hop": Section("A message between two replicas", (("hop",),)),
    "growth": Section("How cost grows", (("growth",),)),
    "soak-standard": Section("Ten minutes at 70 % of capacity, standard graph", (("soak", "--graph", "standard"),)),
    "soak-compact": Section("Ten minutes at 70 % of capacity, compact graph", (("soak", "--graph", "compact"),)),
    "near-cache": Section(
        "Hit ratio of the near cache", (("near_cache", "--objects", "10000", "--requests", "400000"),)
    ),
    "overload-compact": Section("Overload and scaling, compact graph", overload("compact")),
    "overload-standard": Section("Overload and scaling, standard graph", overload("standard")),
    "overrun": Section("Overrun for a while", (("overrun", "--graph", "standard"),)),
    "sick-redis": Section("A sick Redis", (("cache_faults", "--seconds", "1", "--rounds", "3"),)),
    "cache-hits": Section("Throughput of hits", (("cache_hits", "--seconds", "3", "--rounds", "5"),)),
    "resilience": Section("Faults", (("resilience",),)),
    "spike": Section("A spike", (("spike", "--graph", "standard"),)),
}
PACKAGES = ("ray", "dspy", "aiohttp", "uvloop", "litellm", "pydantic", "fastapi")
HEADING = re.compile(r"^## (.*)$", re.MULTILINE)


def machine() -> str:
    """When and on what; the load average is of the minute before."""
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    memory = psutil.virtual_memory().total / 2**30
    return (
        f"{dt.datetime.now(tz=dt.UTC):%Y-%m-%d %H:%M} UTC; {os.cpu_count()} cores ({platform.machine()}), "
        f"{memory:.0f} GiB, {platform.system()}, Python {platform.python_version()}; {versions}. "
        f"Load average when it began: {os.getloadavg()[0]:.1f}."
    )


def measured(section: Section) -> str:
    """The section's text, measured now."""
    parts = [machine()]
    for module, *arguments in section.commands:
        command = ["-m", f"benchmarks.{module}", *arguments]
        done = subprocess.run([sys.executable, *command], check=True, stdout=subprocess.PIPE, text=True)
        parts += [f"`python {' '.join(command)}`", done.stdout.strip()]
    return "\n\n".join(parts)


def sections_of(results: str) -> dict[str, str]:
    """The text of each section by its title."""
    _, *found = HEADING.split(results)
    return {title: text.strip() for title, text in zip(found[::2], found[1::2], strict=True)}


def merged(results: str, new: dict[str, str]) -> str:
    """The results with these sections put in: ours in their order, then whatever else was there."""
    texts = sections_of(results) | new
    ours = [section.title for section in SECTIONS.values() if section.title in texts]
    titles = ours + [title for title in texts if title not in ours]
    return "\n".join([HEAD, *(f"## {title}\n\n{texts[title]}\n" for title in titles)])


def run(names: Sequence[str]) -> None:
    """Measure these sections; each is written as soon as it is there, so that an end loses only one."""
    for name in names:
        section = SECTIONS[name]
        print(f"{name}: {section.title} ...", file=sys.stderr, flush=True)
        text = measured(section)
        RESULTS.write_text(merged(RESULTS.read_text(encoding="utf-8"), {section.title: text}), encoding="utf-8")
        print(f"wrote {RESULTS}", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=[*SECTIONS], default=[*SECTIONS], help="sections to measure")
    run(parser.parse_args().only)


if __name__ == "__main__":
    main()
