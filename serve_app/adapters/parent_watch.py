"""Runs a server that must not outlive the process that asked for it, however that process ends.

    python parent_watch.py PARENT_PID DIRECTORY COMMAND…

The parent holds the write end of this process' standard input and never writes. End of file means that the parent
closed it or is gone, SIGKILL included; a changed parent id says the same where a fork of the parent still holds the
pipe. Then the server is ended and DIRECTORY removed. A server that ends by itself is started again, unless it never
got going. Where Linux offers it, the server dies with this process as well (``PR_SET_PDEATHSIG``).

It runs as a plain script with nothing but the standard library, so that it starts in milliseconds.
"""

from __future__ import annotations

import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Final

POLL_S: Final = 0.5
"""Seconds between looks at the parent's id and at the server."""
STOP_S: Final = 2.0
"""Seconds the server gets to end by itself."""
MIN_RUN_S: Final = 1.0
"""A server that ends sooner than this is not started again."""
_PR_SET_PDEATHSIG: Final = 1


def main(arguments: list[str]) -> int:
    """Watch until the parent is gone or the server cannot run; returns the server's exit code."""
    parent, directory, *command = arguments
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    die_with_us = _die_with_us()
    try:
        while True:
            started = time.monotonic()
            code = _run(command, int(parent), die_with_us)
            if code is None:
                return 0
            if time.monotonic() - started < MIN_RUN_S:
                return code
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _run(command: list[str], parent: int, die_with_us: Callable[[], None] | None) -> int | None:
    """Run the server until it ends (its exit code) or the parent is gone (``None``)."""
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=die_with_us)  # noqa: S603, PLW1509 - the parent's own command; one thread only
    try:
        while server.poll() is None:
            if _is_gone(parent):
                return None
        return server.returncode
    finally:
        _end(server)


def _is_gone(parent: int) -> bool:
    readable, _, _ = select.select([0], [], [], POLL_S)
    return (bool(readable) and not os.read(0, 1)) or os.getppid() != parent


def _end(server: subprocess.Popen[bytes]) -> None:
    if server.poll() is not None:
        return
    server.terminate()
    try:
        server.wait(STOP_S)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def _die_with_us() -> Callable[[], None] | None:
    """What a child calls before exec to die with its parent thread, here the only one; ``None`` off Linux."""
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    return lambda: prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
