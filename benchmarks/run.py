"""Run every benchmark and write ``benchmarks/RESULTS.md``: ``make bench``, or ``python -m benchmarks.run``.

Each benchmark is a module with a command line that prints Markdown; it runs in a process of its own, one at a time.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import psutil

RESULTS = Path(__file__).with_name("RESULTS.md")
SECTIONS = {
    "CPU of one LM call, by engine": ["benchmarks.engine_cpu", "--calls", "300", "--rounds", "7"],
    "Hit ratio of the near cache": ["benchmarks.near_cache", "--objects", "10000", "--requests", "400000"],
    "Overload and scaling, compact graph": ["benchmarks.overload", "--graph", "compact", "--phase-s", "15"],
    "Overload and scaling, standard graph": ["benchmarks.overload", "--graph", "standard", "--phase-s", "15"],
    "A sick Redis": ["benchmarks.cache_faults", "--seconds", "2", "--rounds", "3"],
    "Throughput of hits": ["benchmarks.cache_hits", "--seconds", "4", "--rounds", "5"],
}
PACKAGES = ("ray", "dspy", "aiohttp", "uvloop", "litellm", "pydantic", "fastapi")


def machine() -> str:
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    memory = psutil.virtual_memory().total / 2**30
    load = os.getloadavg()[0]
    return (
        f"{os.cpu_count()} cores ({platform.machine()}), {memory:.0f} GiB, {platform.system()}, "
        f"Python {platform.python_version()}; {versions}. Load average when the run began: {load:.1f}."
    )


def section(title: str, command: list[str]) -> str:
    done = subprocess.run([sys.executable, "-m", *command], check=True, stdout=subprocess.PIPE, text=True)
    return f"## {title}\n\n`python -m {' '.join(command)}`\n\n{done.stdout.strip()}\n"


def main() -> None:
    parts = [
        "# Results\n",
        "Written by `make bench`. Machines are noisy: read ratios and medians, not milliseconds.\n",
        machine() + "\n",
    ]
    parts += [section(title, command) for title, command in SECTIONS.items()]
    RESULTS.write_text("\n".join(parts), encoding="utf-8")
    print(f"wrote {RESULTS}")


if __name__ == "__main__":
    main()
