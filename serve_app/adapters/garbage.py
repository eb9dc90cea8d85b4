"""How often a replica looks for reference cycles: seldom enough that a flood does not stop it for that.

Python looks through all young objects whenever 700 more were made than freed, and through all objects there are once a
hundred such looks have passed. An overrun ingress that held 2,000 calls was stopped for half a second each time, 31
times in two minutes, and answered no health check meanwhile. What a call leaves is nearly all freed without a look.
"""

from __future__ import annotations

import gc
from typing import Final

YOUNG: Final = 10_000
"""More objects made than freed before the young are looked through; a look takes a millisecond or two."""
YOUNG_PER_MIDDLE: Final = 10
MIDDLE_PER_FULL: Final = 100


def collect_seldom() -> None:
    """Set the thresholds of this process' collector."""
    gc.set_threshold(YOUNG, YOUNG_PER_MIDDLE, MIDDLE_PER_FULL)
