"""What the environment of a run has Ray's HAProxy do; the real one, with the section of its file that Ray writes."""

import asyncio
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from jinja2 import Template
from ray.serve._private.haproxy import HAProxyConfig, get_haproxy_binary  # noqa: TID251 - there is no public way to it
from ray.serve._private.haproxy_templates import HAPROXY_CONFIG_TEMPLATE  # noqa: TID251 - nor to this

from serve_app.launcher import environment

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Ray brings HAProxy for Linux only")


def configuration(listener: socket.socket, replica_port: int) -> str:
    """A proxy before one replica, with Ray's own defaults."""
    start, end = HAPROXY_CONFIG_TEMPLATE.index("defaults\n"), HAPROXY_CONFIG_TEMPLATE.index("frontend prometheus")
    retry_on = environment({}, plain=False)["RAY_SERVE_HAPROXY_RETRY_ON"]
    settings = HAProxyConfig(retry_on=retry_on, enable_hap_optimization=False)  # which would want a state file
    return "\n".join(
        [
            Template(HAPROXY_CONFIG_TEMPLATE[start:end]).render(config=settings),
            f"frontend f\n    bind fd@{listener.fileno()}\n    default_backend b",
            f"backend b\n    http-reuse always\n    server s 127.0.0.1:{replica_port}\n",
        ]
    )


async def test_a_client_is_seen_to_leave_whose_body_came_after_its_headers(tmp_path: Path) -> None:
    has_headers, has_body, has_left = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def replica(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        has_headers.set()
        await reader.readuntil(b"body")
        has_body.set()
        with suppress(ConnectionResetError):
            await reader.read()
        has_left.set()
        writer.close()

    file = tmp_path / "haproxy.cfg"
    server = await asyncio.start_server(replica, "127.0.0.1", 0)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        file.write_text(configuration(listener, server.sockets[0].getsockname()[1]), encoding="utf-8")
        proxy = await asyncio.create_subprocess_exec(
            get_haproxy_binary(), "-db", "-f", str(file), pass_fds=[listener.fileno()], stderr=subprocess.DEVNULL
        )
        try:
            async with asyncio.timeout(10):
                _, client = await asyncio.open_connection(*listener.getsockname())
                client.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\n")
                await has_headers.wait()
                client.write(b"body")
                await has_body.wait()
                client.close()
                await has_left.wait()
        finally:
            proxy.terminate()
            await proxy.wait()
            server.close()
