"""What this process and the machine it may use are taking: the container's bounds where it has any, else the node's.

psutil reads the node. In a container that says nothing of the container's own bound, at which the kernel kills, so
memory and CPU are read from its control group where that has a limit (cgroup v2,
https://docs.kernel.org/admin-guide/cgroup-v2.html; under v1 it is the node's figures).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import psutil

_PROCESS = psutil.Process()
_CGROUP: Final = Path("/sys/fs/cgroup")
UNLIMITED: Final = "max"


def process_memory_mb() -> float:
    """Resident memory of this process, MiB."""
    resident: int = _PROCESS.memory_info().rss
    return resident / 2**20


def process_cpu() -> float:
    """Cores that this process used since the last call, 0 at the first; an event loop can take one."""
    percent: float = _PROCESS.cpu_percent(interval=None)
    return percent / 100


class Machine:
    """The memory and CPU that everything beside this process shares.

    Args:
        cgroup: directory of the control group, as a container sees its own.
        clock: monotonic seconds.
    """

    def __init__(self, cgroup: Path = _CGROUP, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._cgroup = cgroup
        self._clock = clock
        self._before: tuple[float, float] | None = None

    def memory(self) -> float:
        """Share of memory in use, 0..1; what the kernel would give back (inactive file pages) counts as free."""
        limit = _number(self._read("memory.max"))
        current = _number(self._read("memory.current"))
        if limit is None or current is None:
            percent: float = psutil.virtual_memory().percent
            return percent / 100
        return min(1.0, max(0.0, current - (self._stat("memory.stat", "inactive_file") or 0)) / limit)

    def cpu(self) -> float:
        """Share of CPU in use since the last call, 0..1; 0 at the first."""
        quota, _, period = self._read("cpu.max").partition(" ")
        used_us, cores = self._stat("cpu.stat", "usage_usec"), _number(quota)
        if cores is None or used_us is None or not (per := _number(period)):
            percent: float = psutil.cpu_percent(interval=None)
            return percent / 100
        now, before = self._clock(), self._before
        self._before = now, used_us
        if before is None or now <= before[0]:
            return 0.0
        used_s = (used_us - before[1]) / 1e6
        return min(1.0, max(0.0, used_s / (now - before[0]) / (cores / per)))

    def _stat(self, file: str, name: str) -> float | None:
        lines = (line.split() for line in self._read(file).splitlines())
        return next((_number(pair[1]) for pair in lines if len(pair) == 2 and pair[0] == name), None)  # noqa: PLR2004

    def _read(self, name: str) -> str:
        """A file's text; empty where there is none, as on a machine that is no container."""
        try:
            return (self._cgroup / name).read_text(encoding="ascii").strip()
        except OSError:
            return ""


def _number(text: str) -> float | None:
    return float(text) if text.isdecimal() and float(text) > 0 else None


_MACHINE = Machine()


def node_memory() -> float:
    """``Machine.memory`` of this one."""
    return _MACHINE.memory()


def node_cpu() -> float:
    """``Machine.cpu`` of this one."""
    return _MACHINE.cpu()
