"""What a replica's garbage collection no longer looks at."""

import gc
import weakref

from serve_app.adapters.heap import keep_heap


class Node:
    """Something that only garbage collection can free: it holds itself."""

    def __init__(self) -> None:
        self.itself = self


def test_what_is_there_is_no_longer_walked_and_what_comes_later_is_still_collected() -> None:
    garbage = weakref.ref(Node())
    try:
        keep_heap()
        assert garbage() is None, "what was garbage already is freed first"
        assert gc.get_freeze_count() > 1000
        assert len(gc.get_objects()) < 1000
        later = weakref.ref(Node())
        gc.collect()
        assert later() is None
    finally:
        gc.unfreeze()
