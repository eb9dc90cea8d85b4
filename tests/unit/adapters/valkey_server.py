"""Valkey servers on ports of their own: plain, as a node of a cluster, as a sentinel; and TLS in front of one."""

import asyncio
import socket
import ssl
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from redis import Redis

from serve_app.adapters.embedded_redis import _binary


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return listening.getsockname()[1]


@contextmanager
def valkey(directory: Path, *settings: str, port: int = 0, config: Path | None = None) -> Iterator[int]:
    """The port of a server that answers; it ends with the block."""
    port = port or free_port()
    given = [str(config)] if config else []
    options = ["--port", str(port), "--bind", "127.0.0.1", "--dir", str(directory), *settings]
    server = subprocess.Popen([str(_binary()), *given, *options], stdout=subprocess.DEVNULL)
    try:
        give_up = time.monotonic() + 10
        while not _answers(port):
            assert server.poll() is None, "the server ended"
            assert time.monotonic() < give_up, "the server does not answer"
            time.sleep(0.01)
        yield port
    finally:
        server.terminate()
        server.wait(10)


def _answers(port: int) -> bool:
    """Whether anything that speaks the protocol is there, be it that it asks for a password."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(5) in (b"+PONG", b"-NOAU")
    except OSError:
        return False


@contextmanager
def cluster_node(directory: Path) -> Iterator[int]:
    """A cluster of one node that owns every slot."""
    port, bus = free_port(), free_port()
    with valkey(directory, "--cluster-enabled", "yes", "--cluster-port", str(bus), "--save", "", port=port):
        with Redis(port=port, protocol=2) as client:
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
            give_up = time.monotonic() + 10
            while b"cluster_state:ok" not in client.execute_command("CLUSTER", "INFO"):
                assert time.monotonic() < give_up
                time.sleep(0.01)
        yield port


@contextmanager
def sentinel_of(directory: Path, service: str, master_port: int) -> Iterator[int]:
    """A sentinel that calls the server at ``master_port`` the master of ``service``."""
    config = directory / "sentinel.conf"
    config.write_text(f"sentinel monitor {service} 127.0.0.1 {master_port} 1\n")
    with valkey(directory, "--sentinel", config=config) as port:
        yield port


def certificate(directory: Path, host: str = "localhost") -> tuple[Path, Path]:
    """A certificate that signs itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, host)])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    cert_file, key_file = directory / "cert.pem", directory / "key.pem"
    cert_file.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return cert_file, key_file


@asynccontextmanager
async def tls_in_front_of(port: int, cert_file: Path, key_file: Path) -> AsyncIterator[int]:
    """A port that speaks TLS and passes everything on to ``port``."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(cert_file, key_file)
    peers: set[asyncio.Task[None]] = set()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peers.add(asyncio.current_task())
        behind_reader, behind_writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            await asyncio.gather(pump(reader, behind_writer), pump(behind_reader, writer))
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            for end in (writer, behind_writer):
                end.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for peer in peers:
            peer.cancel()
        await asyncio.gather(*peers, return_exceptions=True)
