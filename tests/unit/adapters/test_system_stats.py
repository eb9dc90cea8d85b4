"""Readings of the machine are shares and mebibytes, in the ranges that thresholds have."""

import time

import psutil
import pytest

from serve_app.adapters import system_stats
from serve_app.adapters.system_stats import Machine
from serve_app.core.clock import ManualClock

MIB = 2**20


@pytest.fixture
def cgroup(tmp_path):
    """A container with 4 GiB, of which 3 are taken and 1 of these is reclaimable, and 2 cores."""
    (tmp_path / "memory.max").write_text(f"{4096 * MIB}\n")
    (tmp_path / "memory.current").write_text(f"{3072 * MIB}\n")
    (tmp_path / "memory.stat").write_text(f"anon {2048 * MIB}\ninactive_file {1024 * MIB}\nactive_file 0\n")
    (tmp_path / "cpu.max").write_text("200000 100000\n")
    (tmp_path / "cpu.stat").write_text("usage_usec 1000000\nuser_usec 900000\n")
    return tmp_path


@pytest.fixture
def node(monkeypatch):
    """psutil's readings: 37.5 % of everything."""
    monkeypatch.setattr(psutil, "cpu_percent", lambda interval: 37.5 if interval is None else pytest.fail("blocks"))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"percent": 37.5}))


def test_memory_of_the_process_is_in_mebibytes() -> None:
    assert 1 < system_stats.process_memory_mb() < psutil.virtual_memory().total / MIB


def test_the_readings_of_this_machine_are_shares() -> None:
    assert 0 < system_stats.node_memory() <= 1
    assert 0 <= system_stats.node_cpu() <= 1


def test_a_process_that_works_takes_cores() -> None:
    system_stats.process_cpu()
    give_up = time.process_time() + 0.2  # many ticks of the kernel's clock
    while time.process_time() < give_up:
        pass
    assert system_stats.process_cpu() > 0


def test_without_a_container_they_are_the_nodes(tmp_path, node) -> None:
    machine = Machine(tmp_path)
    assert (machine.memory(), machine.cpu()) == (0.375, 0.375)


@pytest.mark.parametrize("name", ["memory.max", "cpu.max"])
def test_a_container_without_that_bound_has_the_nodes(cgroup, node, name) -> None:
    (cgroup / name).write_text("max 100000\n" if name == "cpu.max" else "max\n")
    machine = Machine(cgroup)
    reading = machine.memory if name == "memory.max" else machine.cpu
    assert reading() == 0.375


def test_memory_is_of_the_containers_bound_without_what_the_kernel_would_give_back(cgroup) -> None:
    assert Machine(cgroup).memory() == pytest.approx(0.5)
    (cgroup / "memory.stat").unlink()
    assert Machine(cgroup).memory() == pytest.approx(0.75)


def test_cpu_is_of_the_containers_quota_since_the_last_reading(cgroup) -> None:
    clock = ManualClock()
    machine = Machine(cgroup, clock=clock)
    assert machine.cpu() == 0
    clock.advance(10)
    (cgroup / "cpu.stat").write_text("usage_usec 11000000\n")
    assert machine.cpu() == pytest.approx(0.5)  # 10 s of the 20 that two cores have
    clock.advance(1)
    (cgroup / "cpu.stat").write_text("usage_usec 99000000\n")
    assert machine.cpu() == 1


@pytest.mark.parametrize("text", ["", "nonsense", "0 0", "-1 100000"])
def test_what_cannot_be_read_leaves_the_nodes_figures(cgroup, node, text) -> None:
    for name in ("memory.max", "cpu.max"):
        (cgroup / name).write_text(text)
    machine = Machine(cgroup)
    assert (machine.memory(), machine.cpu()) == (0.375, 0.375)
