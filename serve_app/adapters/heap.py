"""The part of a process' heap that lives as long as the process."""

from __future__ import annotations

import gc


def keep_heap() -> None:
    """Take everything that is there now out of garbage collection's sight; called once a replica is built.

    A full collection walks every object, and Ray, DSPy and what they import are some two hundred thousand: a tenth of a
    second in which a replica does nothing else, every few thousand calls. Hardly any of them is ever garbage. What is
    made later is collected as ever.

    Source: ``gc.freeze`` in the Python library reference.
    """
    gc.collect()
    gc.freeze()
