"""An event loop on a thread of its own, for code that must block while asynchronous work is done."""

from __future__ import annotations

import asyncio
import sys
import threading
from concurrent.futures import CancelledError, Future
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Coroutine

if sys.platform == "win32":
    from asyncio import new_event_loop
else:
    from uvloop import new_event_loop

T = TypeVar("T")


class LoopThread:
    """Runs coroutines for threads that wait; the thread starts with the first of them and ends with ``close``.

    It is a daemon: a process may end without ``close``. ``close`` is for good.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self.is_closed = False

    @property
    def is_running(self) -> bool:
        """Whether anything was ever run, and not closed since."""
        return self._loop is not None

    def run(self, work: Coroutine[Any, Any, T], timeout_s: float | None = None) -> T:
        """Run ``work`` in the caller's context variables and wait for its result.

        Raises:
            TimeoutError: ``timeout_s`` passed; the work was cancelled.
            concurrent.futures.CancelledError: closed, before or while the work ran.
            Exception: whatever the work raised.
        """
        with self._lock:
            if self.is_closed:
                work.close()
                raise CancelledError(f"{self._name} is closed")
            future: Future[T] = asyncio.run_coroutine_threadsafe(work, self._started())
        try:
            return future.result(timeout_s)
        except BaseException:
            future.cancel()  # nobody waits any more: a timeout, or Ctrl-C on the caller's thread
            raise

    def close(self) -> None:
        """Stop the loop and wait for its thread; what still runs there is cancelled."""
        with self._lock:
            loop, thread = self._loop, self._thread
            self._loop = self._thread = None
            self.is_closed = True
        if loop is None or thread is None:
            return
        loop.call_soon_threadsafe(loop.stop)
        thread.join()

    def _started(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._loop = new_event_loop()
            self._thread = threading.Thread(target=_serve, args=(self._loop,), name=self._name, daemon=True)
            self._thread.start()
        return self._loop


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
    finally:
        _cancel_all(loop)
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()


def _cancel_all(loop: asyncio.AbstractEventLoop) -> None:
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
