"""Every process that a benchmark has started, by what it is: CPU time, memory and descriptors of each."""

from __future__ import annotations

import re
import signal
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass

import psutil

REPLICA = re.compile(r"ray::ServeReplica:([\w-]+):([\w-]+)")
ROLES = {
    "ServeController": "Ray Serve controller",
    "ProxyActor": "Ray Serve proxy",
    "HAProxyManager": "Ray Serve proxy",
    "haproxy": "HAProxy",
    "raylet": "Ray's daemons",
    "gcs_server": "Ray's daemons",
    "dashboard": "Ray's daemons",
    "log_monitor": "Ray's daemons",
    "runtime_env": "Ray's daemons",
    "ray::": "Ray's daemons",
    "valkey": "embedded Valkey",
    "autoscaler": "Ray's daemons",
    "cli simulate": "simulated provider",
    "launch_child": "driver (`switchyard run`)",
    "cli run": "driver (`switchyard run`)",
    "multiprocessing": "load generator",
}
MIB = 2**20


@dataclass(frozen=True)
class Reading:
    """One process at one moment."""

    role: str
    cpu_s: float
    rss_mib: float
    descriptors: int


def role(command: str) -> str:
    """What a process is for, by its command line: ``application:Deployment`` for a replica."""
    if found := REPLICA.search(command):
        return f"{found[1]}:{found[2]}"
    return next((name for mark, name in ROLES.items() if mark in command), "other")


def readings() -> Mapping[int, Reading]:
    """All processes below this one, by process id."""
    found = {}
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error), process.oneshot():
            cpu = process.cpu_times()
            memory, descriptors = process.memory_info().rss / MIB, process.num_fds()
            command = " ".join(process.cmdline()) or process.name()
            found[process.pid] = Reading(role(command), cpu.user + cpu.system, memory, descriptors)
    return found


def cpu_between(before: Mapping[int, Reading], after: Mapping[int, Reading]) -> Counter[str]:
    """CPU seconds that were spent meanwhile, by role."""
    spent: Counter[str] = Counter()
    for pid, reading in after.items():
        spent[reading.role] += reading.cpu_s - (before[pid].cpu_s if pid in before else 0.0)  # type: ignore[assignment]
    return spent


def direct_children() -> frozenset[int]:
    """Process ids of what this process itself has started."""
    return frozenset(child.pid for child in psutil.Process().children())


def signal_trees(roots: Iterable[int], number: signal.Signals) -> None:
    """Send a signal to these processes and to all below them."""
    for root in roots:
        with suppress(psutil.Error):
            process = psutil.Process(root)
            for each in (process, *process.children(recursive=True)):
                with suppress(psutil.Error):
                    each.send_signal(number)
