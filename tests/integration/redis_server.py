"""A Valkey of the tests' own, on a port that it keeps when it is started again."""

import socket
import subprocess
import time
from pathlib import Path

from running_cluster import free_ports

from serve_app.adapters.embedded_redis import _binary


class RedisServer:
    """A server with a password, that forgets everything when it stops."""

    def __init__(self, directory: Path) -> None:
        (self.port,) = free_ports(1)
        self.url = f"redis://:open@127.0.0.1:{self.port}"
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        if self._process is not None:
            return
        settings = ["--bind", "127.0.0.1", "--save", "", "--dir", str(self._directory), "--requirepass", "open"]
        command = [str(_binary()), "--port", str(self.port), *settings]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        give_up = time.monotonic() + 10
        while not self._listens():
            assert time.monotonic() < give_up, "the server does not answer"
            time.sleep(0.02)

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            process.wait(10)

    def _listens(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return True
        except OSError:
            return False
