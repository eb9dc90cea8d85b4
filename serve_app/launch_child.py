"""The process in which ``serve run`` runs, started by the launcher and ended with it.

It checks the file, runs Ray's own command, and writes what becomes of the applications to a pipe, a JSON object on
each line: ``{"problems": [line, …]}`` or ``{"applications": {name: {"status", "messages"}}}``.
It ends when its standard input closes, so that a launcher killed by force leaves nothing behind.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any, Final

POLL_S: Final = 0.25
"""Seconds between looks at the applications until all of them run."""
SETTLED_POLL_S: Final = 15.0
"""Seconds between looks afterwards: each makes Ray's controller collect everything, which costs milliseconds."""
REFUSED: Final = 2
"""Exit code for a file that does not pass the check."""


class StatusPipe:
    """Writes a line when something changed."""

    def __init__(self, descriptor: int) -> None:
        os.set_inheritable(descriptor, False)
        self._file = os.fdopen(descriptor, "w", buffering=1)
        self._last = ""

    def write(self, value: dict[str, Any]) -> None:
        """Write ``value`` unless it is what was written last."""
        line = json.dumps(value)
        if line != self._last:
            self._last = line
            self._file.write(line + "\n")


def main() -> int:
    """Entry point: ``python -m serve_app.launch_child FILE DESCRIPTOR``."""
    file, pipe = Path(sys.argv[1]), StatusPipe(int(sys.argv[2]))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job inherits it ignored
    threading.Thread(target=_end_with_launcher, daemon=True).start()
    from serve_app.config_check import check_file  # noqa: PLC0415 - after the handlers, as imports take a second

    problems = check_file(file)
    if problems:
        pipe.write({"problems": [str(problem) for problem in problems]})
        return REFUSED
    return _serve(file, pipe)


def _serve(file: Path, pipe: StatusPipe) -> int:
    from ray.serve import scripts  # noqa: PLC0415 - slow

    stopping = threading.Event()
    watcher = threading.Thread(target=_watch, args=(pipe, stopping), daemon=True)
    watcher.start()
    try:
        scripts.cli(["run", str(file), "--address", "local", "--app-dir", os.getcwd()], standalone_mode=False)  # noqa: PTH109 - Ray wants text
    except KeyboardInterrupt:  # before the applications were up; Ray ends its processes at exit
        return 0
    finally:
        stopping.set()  # before Ray closes: asking it for a status afterwards would start it again
        watcher.join()
    return 0


def _watch(pipe: StatusPipe, stopping: threading.Event) -> None:
    import ray  # noqa: PLC0415 - slow
    from ray import serve  # noqa: PLC0415 - slow
    from ray.exceptions import RayError  # noqa: PLC0415 - slow
    from ray.serve.exceptions import RayServeException  # noqa: PLC0415 - slow

    poll_s = POLL_S
    while not stopping.wait(poll_s):
        if not ray.is_initialized():
            continue
        try:
            applications = serve.status().applications
        except (RayError, RayServeException, ConnectionError):  # Serve is starting or ending; ask again
            continue
        overviews = {name: _overview(found) for name, found in applications.items()}
        pipe.write({"applications": overviews})
        is_settled = {found["status"] for found in overviews.values()} == {"RUNNING"}
        poll_s = SETTLED_POLL_S if is_settled else POLL_S


def _overview(application: Any) -> dict[str, Any]:  # noqa: ANN401 - Ray's dataclass
    parts = {name: found.message for name, found in application.deployments.items() if found.message}
    return {"status": str(application.status.value), "messages": parts or {"": application.message}}


def _end_with_launcher() -> None:
    """Wait for the launcher's end of standard input to close, then interrupt this process as Ctrl-C would."""
    while os.read(0, 1024):
        pass
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)  # the launcher read these; writing to them now would raise in the middle of the shutdown
    os.dup2(quiet, 2)
    os.kill(os.getpid(), signal.SIGINT)


if __name__ == "__main__":
    sys.exit(main())
