"""What the machine and this process are using, by psutil."""

from __future__ import annotations

import psutil

_PROCESS = psutil.Process()


def process_memory_mb() -> float:
    """Resident memory of this process, MiB."""
    resident: int = _PROCESS.memory_info().rss
    return resident / 2**20


def node_memory() -> float:
    """Share of this node's memory in use, 0..1."""
    percent: float = psutil.virtual_memory().percent
    return percent / 100


def node_cpu() -> float:
    """Share of this node's CPU in use since the last call, 0..1; 0 at the first."""
    percent: float = psutil.cpu_percent(interval=None)
    return percent / 100
