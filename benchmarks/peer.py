"""A peer: how it is installed, started and called."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.load import Body
from benchmarks.peer_environments import NotInstalled, environment, version_in
from benchmarks.serving import ending, free_port, ports_of_its_own, wait_for


@dataclass(frozen=True)
class Place:
    """Where a peer is started: its interpreter, an empty directory, its port and its provider's base URL."""

    python: Path
    directory: Path
    port: int
    api_base: str

    def tool(self, name: str) -> str:
        return str(self.python.with_name(name))


@dataclass(frozen=True)
class Peer:
    """One way to serve the program.

    Attributes:
        title: in the table.
        package: whose version is shown.
        requirements: of its environment, whose name is ``environment``.
        command: that serves it.
        path: that is called.
        body: of a call.
        variables: of its process' environment.
        health: path that answers once it is up.
    """

    title: str
    package: str
    environment: str
    requirements: tuple[str, ...]
    command: Callable[[Place], Sequence[str]]
    path: str
    body: Body
    variables: dict[str, str] = field(default_factory=dict)
    health: str = "/health"

    @contextmanager
    def running(self, api_base: str) -> Iterator[str]:
        """Its root URL, while it runs.

        Raises:
            NotInstalled: it cannot be had here.
        """
        python = environment(self.environment, self.requirements)
        with tempfile.TemporaryDirectory() as directory:
            place = Place(python, Path(directory), free_port(), api_base)
            variables = {
                **os.environ,
                "PATH": f"{python.parent}:{os.environ['PATH']}",
                "OPENAI_API_KEY": "x",
                "LITELLM_LOCAL_MODEL_COST_MAP": "true",
                "PEER_MODEL": "small",
                "PEER_API_BASE": api_base,
                **ports_of_its_own(),
                **self.variables,
            }
            log = Path(directory, "peer.log")
            with log.open("wb") as output:
                started = subprocess.Popen(
                    self.command(place),
                    cwd=directory,
                    env=variables,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                )
            with ending(started):
                try:
                    wait_for(f"http://127.0.0.1:{place.port}{self.health}", started)
                except TimeoutError as error:
                    last = (log.read_text(errors="replace").strip().splitlines() or ["it says nothing"])[-1]
                    raise NotInstalled(f"does not start: {last}") from error
                yield f"http://127.0.0.1:{place.port}"

    def version(self) -> str:
        """Name and version of its package."""
        python = environment(self.environment, self.requirements)
        return f"{self.package} {version_in(python, self.package)}"
