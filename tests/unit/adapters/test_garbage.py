"""The collector's thresholds are those of a process that holds many calls."""

import gc
from collections.abc import Iterator

import pytest

from serve_app.adapters.garbage import YOUNG, collect_seldom


@pytest.fixture(autouse=True)
def thresholds() -> Iterator[None]:
    before = gc.get_threshold()
    yield
    gc.set_threshold(*before)


def test_thousands_of_objects_that_stay_start_no_full_collection() -> None:
    collect_seldom()
    before = [generation["collections"] for generation in gc.get_stats()]
    held = [[] for _ in range(5 * YOUNG)]
    young, _, full = (now["collections"] - then for now, then in zip(gc.get_stats(), before, strict=True))
    assert len(held) == 5 * YOUNG
    assert 1 <= young <= 6
    assert full == 0
