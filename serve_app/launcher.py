"""``switchyard run``: start Ray Serve with a file, say when it is ready, and leave nothing behind.

    launcher ──starts──▶ launch_child (``serve run``) ──starts──▶ Ray, replicas, HAProxy, the embedded cache server
       ▲  status, log ◀──────┘

Ctrl-C or SIGTERM: SIGINT to the child, which takes Serve down; then every process below the launcher that is still
there gets SIGTERM, and SIGKILL after that. A second Ctrl-C skips the waiting.
"""

from __future__ import annotations

import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final

import psutil

from serve_app.config_lines import read_document
from serve_app.errors import ConfigError
from serve_app.launch_log import LogFile
from serve_app.launch_ports import Port, endpoint_of, needed_ports, reserved
from serve_app.launch_processes import adopt_orphans, descendants, end_all, reap_orphans
from serve_app.launch_ready import announcement, is_ready, urls_of

LOG_FILE: Final = Path(".switchyard/serve.log")
GRACE_S: Final = 20.0
"""Seconds Serve gets to finish what it is doing after the first Ctrl-C."""
TERMINATE_S: Final = 5.0
KILL_S: Final = 5.0
TICK_S: Final = 0.2
STILL_STARTING_S: Final = 30.0
"""How often a start that takes long says what it waits for."""

THROUGHPUT_FLAGS: Final = ("RAY_SERVE_ENABLE_HA_PROXY", "RAY_SERVE_THROUGHPUT_OPTIMIZED")
"""Ray Serve's fast mode; only ever set together."""

_ANSI: Final = re.compile(r"\x1b\[[0-9;]*m")

_DEFAULTS: Final = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_USAGE_STATS_PROMPT_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "2",
    "RAY_SERVE_AUTOSCALING_METRIC_RECORD_INTERVAL_FACTOR": "0.1",
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.25",
    "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "1000",
    "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
    "RAY_SERVE_HAPROXY_OBSERVE_MARK_DOWN_ENABLED": "0",
    "RAY_SERVE_HAPROXY_HEALTH_CHECK_FALL": "12",
    "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": "2147483647",
    "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure\n    no option splice-request",
    "LITELLM_LOCAL_MODEL_COST_MAP": "true",
    "MALLOC_ARENA_MAX": "2",
}
"""Nothing is asked, reported or downloaded at start unless the person set it otherwise.

The draining period is the time in which a load balancer learns that an ingress goes away: 30 s in Ray, for any that
there are. HAProxy on this machine needs a fraction of a second, and a run should not take half a minute to end.
The controller looks ten times a second by default, for which it takes a tenth of a small machine's core, and each
replica and handle tells Ray's metrics as often what changed. Ray's metrics
of HAProxy are a log line a request that a process reads in Python; ``/metrics`` counts the same calls.
Three failed connections in a row make an ingress dead to HAProxy by default, and its calls go through Ray's own proxy,
to the same ingress: one that is only busy gets twice the work. So do two health checks in a row without an answer
within five seconds each, and the ingress, busy with the detour, does not come back: it takes a dozen here, a minute.
One that is dead refuses connections, for which HAProxy tries another and needs three seconds to give it up; one that
hangs is replaced by the controller, which has health checks of its own.
In the fast mode replicas take messages of 4 MiB by default, which a batch of five calls with a picture each is beyond,
so that all of them would fail; Ray's own bound for what comes from outside is this one.
Ray has HAProxy splice requests. It then does not see a client leave whose body came in a packet after its headers, as
httpx and requests send them, and the call goes on for nobody. No variable is for that, but this one is copied into the
same section of HAProxy's file, after Ray's own default.
glibc gives each of a process' many threads, nearly all of them Ray's, one of 8 arenas a core to allocate from, and each
keeps the most it ever needed: an ingress under load grew by 2.3 MiB a minute without anything being kept.
"""


def environment(inherited: Mapping[str, str], *, plain: bool) -> dict[str, str]:
    """The environment Ray starts in: fast mode unless ``plain`` or the person chose, its own cluster, this Python."""
    made = {**_DEFAULTS, **inherited, "PATH": _path_to_this_python(inherited.get("PATH") or os.defpath)}
    made.pop("RAY_ADDRESS", None)
    chosen = next((inherited[flag] for flag in THROUGHPUT_FLAGS if flag in inherited), "1")
    return {**made, **dict.fromkeys(THROUGHPUT_FLAGS, "0" if plain else chosen)}


def _path_to_this_python(path: str) -> str:
    """``path`` with this Python's directory first: the ``python`` of a job's command needs what is installed here."""
    ours = str(Path(sys.executable).parent)
    return path if path.split(os.pathsep, maxsplit=1)[0] == ours else os.pathsep.join((ours, path))


def run(file: Path, *, plain: bool = False, verbose: bool = False, log_file: Path = LOG_FILE) -> int:
    """Serve ``file`` until it is interrupted; the exit code.

    0 after Ctrl-C or SIGTERM, 1 when Serve failed (the reason is on stderr).

    Raises:
        ConfigError: it cannot be started: the file, a port, the log; one line each.
    """
    document = read_document(file)
    if document.problems:
        raise ConfigError([str(problem) for problem in document.problems])
    endpoint = endpoint_of(document.value)
    variables = environment(os.environ, plain=plain)
    with _reserved(needed_ports(endpoint, variables), file), LogFile.open(log_file, echo=verbose) as log:
        return Run(file, document.value, endpoint.url, log).serve(variables)


@contextmanager
def _reserved(ports: Sequence[Port], file: Path) -> Iterator[None]:
    """Hold the ports; where they are taken, the mistakes of ``file`` are told first, else the child looks for them."""
    with ExitStack() as stack:
        try:
            stack.enter_context(reserved(ports))
        except ConfigError as taken:
            from serve_app.config_check import check_file  # noqa: PLC0415 - slow, and seldom needed here

            raise ConfigError([*map(str, check_file(file)), *taken.problems]) from None
        yield


@dataclass
class Run:
    """One run, from the start of the child until nothing of it is left."""

    file: Path
    document: Mapping[str, Any]
    url: str
    log: LogFile
    _events: queue.SimpleQueue[dict[str, Any]] = field(default_factory=queue.SimpleQueue)
    _applications: dict[str, dict[str, Any]] = field(default_factory=dict)
    _interrupts: int = 0
    _is_up: bool = False

    def serve(self, variables: Mapping[str, str]) -> int:
        """Start the child, watch it, and end everything, whatever happens in between."""
        adopt_orphans()
        say(f"Starting {self.file} (log: {self.log.path}) …")
        ending = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup has it
            ending.append(signal.SIGHUP)
        previous = {number: signal.signal(number, self._interrupt) for number in ending}
        child = self._start(variables)
        try:
            return self._watch(child)
        finally:
            self._end(child)
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _interrupt(self, _number: int, _frame: object) -> None:
        self._interrupts += 1

    def _start(self, variables: Mapping[str, str]) -> subprocess.Popen[bytes]:
        reading, writing = os.pipe()
        command = [sys.executable, "-u", "-m", "serve_app.launch_child", str(self.file), str(writing)]
        child = subprocess.Popen(  # noqa: S603 - our own module and the person's own file
            command,
            env=dict(variables),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=[writing],
            process_group=0,  # Ctrl-C reaches the launcher alone, which passes it on
        )
        os.close(writing)
        _in_thread(self._read_events, os.fdopen(reading))
        _in_thread(self.log.copy, child.stdout)
        return child

    def _read_events(self, pipe: IO[str]) -> None:
        with pipe:
            for line in pipe:
                self._events.put(json.loads(line))

    def _watch(self, child: subprocess.Popen[bytes]) -> int:
        next_word = time.monotonic() + STILL_STARTING_S
        while not self._interrupts:
            ended = child.poll() is not None
            reason = self._take_events()
            if reason is not None:
                return reason
            if ended:
                return self._died(child.returncode)
            if not self._is_up and self._is_ready():
                self._is_up = True
                for line in announcement(urls_of(self.document, self.url)):
                    say(line)
            if not self._is_up and time.monotonic() >= next_word:
                next_word += STILL_STARTING_S
                self._say_waiting()
            reap_orphans(child.pid)
        say("Stopping …")
        return 0

    def _take_events(self) -> int | None:
        """Wait a tick for news; an exit code when they end the run."""
        with suppress(queue.Empty):
            event = self._events.get(timeout=TICK_S)
            if "problems" in event:
                raise ConfigError(event["problems"])
            return self._update(event["applications"])
        return None

    def _update(self, applications: dict[str, dict[str, Any]]) -> int | None:
        before, self._applications = self._applications, applications
        for name, found in applications.items():
            if found["status"] == before.get(name, {}).get("status"):
                continue
            if found["status"] in {"DEPLOY_FAILED", "UNHEALTHY"}:
                complain(f"{name}: {found['status'].lower().replace('_', ' ')}")
                for line in reasons_of(found["messages"]):
                    complain(f"  {line}")
                if not self._is_up and found["status"] == "DEPLOY_FAILED":
                    complain(f"More in {self.log.path}.")
                    return 1
        return None

    def _is_ready(self) -> bool:
        statuses = {found["status"] for found in self._applications.values()}
        return statuses == {"RUNNING"} and all(map(is_ready, urls_of(self.document, self.url).values()))

    def _say_waiting(self) -> None:
        states = [f"{name} {found['status']}" for name, found in self._applications.items()] or ["Ray is starting"]
        say(f"Not ready yet: {', '.join(states)}")
        for found in self._applications.values():
            for line in reasons_of(found["messages"]):
                say(f"  {line}")

    def _died(self, code: int) -> int:
        complain(f"Ray Serve ended unexpectedly (exit code {code}). The log's last lines ({self.log.path}):")
        for line in self.log.tail():
            complain(f"  {_ANSI.sub('', line)}")
        return 1

    def _end(self, child: subprocess.Popen[bytes]) -> None:
        """Take Serve down, then see that no process below this one is left."""
        known = descendants()
        asked = self._interrupts
        with suppress(ProcessLookupError):
            child.send_signal(signal.SIGINT)
        deadline = time.monotonic() + GRACE_S
        while child.poll() is None and time.monotonic() < deadline and self._interrupts <= asked:
            known |= descendants()
            self._events_until_now()
            time.sleep(TICK_S)
        left = end_all(known, TERMINATE_S, KILL_S)
        child.poll()
        reap_orphans(0)
        for process in left:
            complain(f"Could not end {_name_of(process)} (pid {process.pid}); end it with: kill -9 {process.pid}")

    def _events_until_now(self) -> None:
        """Drop what the child still says of its end."""
        with suppress(queue.Empty):
            while True:
                self._events.get_nowait()


def reasons_of(messages: Mapping[str, str]) -> list[str]:
    """The lines that a person needs of Ray's messages by deployment: our own words, or the end of a traceback."""
    reasons: list[str] = []
    for part, message in messages.items():
        lines = [line.rstrip() for line in _ANSI.sub("", message).splitlines() if line.strip()]
        lines = [line for line in lines if not line.startswith("Deploying app ")]
        if any(line.lstrip().startswith(("Traceback ", 'File "')) for line in lines):
            lines = [lines[-1].lstrip()]
        reasons += [f"{part}: {line}" if part else line for line in lines]
    return reasons


def say(text: str) -> None:
    """A line for the person."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def complain(text: str) -> None:
    """A line about what went wrong."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def _in_thread(function: Callable[..., None], *arguments: object) -> None:
    threading.Thread(target=function, args=arguments, daemon=True).start()


def _name_of(process: psutil.Process) -> str:
    try:
        return process.name()
    except psutil.Error:
        return "a process"
