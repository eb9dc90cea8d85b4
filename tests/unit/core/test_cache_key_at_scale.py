"""Ten thousand inputs: distinct ones never share a key, equal ones always do, in any process."""

from __future__ import annotations

import os
import random
import subprocess
import sys

from hypothesis import HealthCheck, Phase, given, seed, settings
from test_cache_key import VALUES, key, shape

INPUTS = 10_000
SEED = 20_231_023

Made = list[tuple[object, str]]


def keys_of_many_inputs() -> Made:
    """``INPUTS`` inputs that hypothesis makes, the same in every process, each with its key."""
    made: Made = []

    @seed(SEED)
    @settings(
        max_examples=INPUTS,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(VALUES)
    def make(value: object) -> None:
        made.append((value, key(inputs={"value": value})))

    make()
    return made


def shuffled(value: object, draw: random.Random) -> object:
    """An equal value whose dictionaries and sets were filled in another order."""
    if isinstance(value, dict):
        items = [(name, shuffled(item, draw)) for name, item in value.items()]
        return dict(draw.sample(items, len(items)))
    if isinstance(value, set):
        return set(draw.sample(list(value), len(value)))
    return [shuffled(item, draw) for item in value] if isinstance(value, list) else value


def test_among_ten_thousand_inputs_keys_are_shared_exactly_by_equal_ones() -> None:
    made = keys_of_many_inputs()
    assert len(made) >= INPUTS
    shapes_by_key: dict[str, set[object]] = {}
    for value, digest in made:
        shapes_by_key.setdefault(digest, set()).add(shape(value))
    assert all(len(shapes) == 1 for shapes in shapes_by_key.values())
    assert len(shapes_by_key) == len({shape(value) for value, _ in made})
    draw = random.Random(SEED)
    assert all(key(inputs={"value": shuffled(value, draw)}) == digest for value, digest in made)


def test_ten_thousand_inputs_have_the_same_keys_in_every_process_whatever_the_hash_seed() -> None:
    listings = [_keys_in_another_process(hash_seed) for hash_seed in ("0", "4242")]
    assert len(listings[0]) >= INPUTS
    assert listings[0] == listings[1]


def _keys_in_another_process(hash_seed: str) -> list[str]:
    environment = os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = [sys.executable, __file__]
    done = subprocess.run(run, env=environment, capture_output=True, text=True, check=True, timeout=110)
    return done.stdout.split()


if __name__ == "__main__":
    print("\n".join(digest for _, digest in keys_of_many_inputs()))
