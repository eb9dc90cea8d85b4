"""Ten thousand inputs: distinct ones never share a key, equal ones always do, in any process."""

from __future__ import annotations

import os
import pickle
import random
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from test_cache_key import VALUES, key, shape

INPUTS, AT_ONCE = 10_000, 10
SEED = 20_231_023


@pytest.fixture(scope="module")
def made() -> list[object]:
    """``INPUTS`` inputs that hypothesis makes."""
    values: list[object] = []

    @seed(SEED)
    @settings(
        max_examples=INPUTS // AT_ONCE,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(VALUES, min_size=AT_ONCE, max_size=AT_ONCE, unique_by=shape))
    def make(some: list[object]) -> None:
        values.extend(some)

    make()
    return values


def keys_of(values: list[object]) -> list[str]:
    return [key(inputs={"value": value}) for value in values]


def shuffled(value: object, draw: random.Random) -> object:
    """An equal value whose dictionaries and sets were filled in another order."""
    if isinstance(value, dict):
        items = [(name, shuffled(item, draw)) for name, item in value.items()]
        return dict(draw.sample(items, len(items)))
    if isinstance(value, set):
        return set(draw.sample(list(value), len(value)))
    return [shuffled(item, draw) for item in value] if isinstance(value, list) else value


def test_among_ten_thousand_inputs_keys_are_shared_exactly_by_equal_ones(made: list[object]) -> None:
    assert len(made) >= INPUTS
    shape_of: dict[str, object] = {}
    for value, digest in zip(made, keys_of(made), strict=True):
        assert shape_of.setdefault(digest, shape(value)) == shape(value)
    assert len(shape_of) == len({shape(value) for value in made})
    assert len(shape_of) > INPUTS / 2  # most of them are distinct, or this would show nothing


def test_the_order_in_which_an_input_was_filled_does_not_show(made: list[object]) -> None:
    draw = random.Random(SEED)
    assert keys_of([shuffled(value, draw) for value in made]) == keys_of(made)


@pytest.mark.parametrize("hash_seed", ["0", "4242"])
def test_another_process_with_another_hash_seed_finds_the_same_keys(made: list[object], hash_seed: str) -> None:
    environment = os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(Path(__file__).parent)}
    script = "import pickle, sys, test_cache_key_at_scale as t; print(*t.keys_of(pickle.load(sys.stdin.buffer)))"
    run = [sys.executable, "-c", script]
    done = subprocess.run(run, env=environment, input=pickle.dumps(made), capture_output=True, check=True, timeout=100)
    assert done.stdout.decode().split() == keys_of(made)
