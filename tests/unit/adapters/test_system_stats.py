"""Readings of the machine are shares and mebibytes, in the ranges that thresholds have."""

import psutil
import pytest

from serve_app.adapters import system_stats


def test_memory_of_the_process_is_in_mebibytes() -> None:
    assert 1 < system_stats.process_memory_mb() < psutil.virtual_memory().total / 2**20


def test_memory_of_the_node_is_a_share() -> None:
    assert 0 < system_stats.node_memory() <= 1


@pytest.mark.parametrize("percent", [0.0, 37.5, 100.0])
def test_cpu_of_the_node_is_a_share_since_the_last_reading(monkeypatch, percent) -> None:
    asked = []
    monkeypatch.setattr(psutil, "cpu_percent", lambda interval: asked.append(interval) or percent)
    assert system_stats.node_cpu() == percent / 100
    assert asked == [None]  # any interval would block the loop
