"""See that a run ends everything it started, by process id.

On Linux the launcher adopts orphans (``PR_SET_CHILD_SUBREAPER``, prctl(2)): a HAProxy whose parent was killed becomes
its child instead of init's, so the tree below the launcher is always complete.
"""

from __future__ import annotations

import ctypes
import logging
import os
import sys
from collections.abc import Iterable
from typing import Final

import psutil

logger = logging.getLogger("switchyard.launcher")

_PR_SET_CHILD_SUBREAPER: Final = 36


def adopt_orphans() -> bool:
    """Become the parent of every orphan below; false where the system cannot."""
    if not sys.platform.startswith("linux"):
        return False
    refused: int = ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    return not refused


def descendants() -> set[psutil.Process]:
    """Every process below this one that still runs."""
    return {process for process in psutil.Process().children(recursive=True) if _is_running(process)}


def reap_orphans(own: int) -> None:
    """Collect adopted orphans that have ended; ``own`` is the child whose exit status belongs to someone else."""
    while True:
        try:
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if ended is None or ended.si_pid == own:
            return
        os.waitpid(ended.si_pid, 0)


def end_all(known: Iterable[psutil.Process], terminate_s: float, kill_s: float) -> list[psutil.Process]:
    """End ``known`` and all descendants: SIGTERM, and SIGKILL after ``terminate_s`` seconds.

    Returns what still runs ``kill_s`` seconds after that.
    """
    left = _signal_and_wait({*known, *descendants()}, "terminate", terminate_s)
    return _signal_and_wait({*left, *descendants()}, "kill", kill_s)


def _signal_and_wait(processes: set[psutil.Process], action: str, timeout_s: float) -> list[psutil.Process]:
    running = [process for process in processes if _is_running(process)]
    for process in running:
        try:
            getattr(process, action)()
        except psutil.Error as error:  # it ended by itself in between, or is not ours to end
            logger.debug("process.%s", action, extra={"pid": process.pid, "why": type(error).__name__})
    _, alive = psutil.wait_procs(running, timeout=timeout_s)
    return [process for process in alive if _is_running(process)]


def _is_running(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
