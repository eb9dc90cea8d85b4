from __future__ import annotations

import asyncio
import base64
import shutil
import socket
import ssl
import subprocess
from dataclasses import dataclass, field

import pytest
from dspy import lm15
from lm_fault_server import COMPLETION, FaultServer, raw, reply, silence

from serve_app.adapters import lm_transport
from serve_app.adapters.call_scope import call_scope
from serve_app.adapters.lm_transport import AiohttpTransport, Patience
from serve_app.adapters.loop_thread import LoopThread
from serve_app.errors import ConfigError


@dataclass
class Sent:
    url: str
    method: str = "POST"
    headers: list[tuple[str, str]] = field(default_factory=lambda: [("Content-Type", "application/json")])
    body: bytes = b"{}"


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch):
    for name in (
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "ALL_PROXY",
        "NO_PROXY",
        "SSL_CERT_FILE",
        "SSL_CERT_DIR",
        "REQUESTS_CA_BUNDLE",
    ):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture
async def server():
    async with FaultServer() as server:
        yield server


@pytest.fixture
async def transport():
    transport = AiohttpTransport()
    yield transport
    await transport.aclose()


async def fetch(transport, url):
    async with transport.stream(Sent(url)) as exchange:
        return exchange.status, await exchange.read()


async def test_a_reply_has_its_status_reason_headers_version_and_body(server, transport):
    server.answer = reply(200, b"hello", x_request_id="r1")
    async with transport.stream(Sent(server.url)) as exchange:
        assert (exchange.status, exchange.reason, exchange.http_version) == (200, "Status", "HTTP/1.1")
        assert ("X-Request-ID", "r1") in exchange.headers
        assert await exchange.read() == b"hello"


async def test_requests_one_after_another_share_one_connection(server, transport):
    for _ in range(20):
        await fetch(transport, server.url)
    assert (len(server.requests), server.connections) == (20, 1)


async def test_a_hundred_requests_at_once_are_answered_over_a_bounded_pool(server):
    transport = AiohttpTransport(max_connections=8)
    for _ in range(3):
        replies = await asyncio.gather(*(fetch(transport, server.url) for _ in range(100)))
        assert {status for status, _ in replies} == {200}
    await transport.aclose()
    assert len(server.requests) == 300
    assert server.most_open == server.connections == 8


async def test_a_wait_for_a_free_connection_ends_with_the_deadline(server):
    transport = AiohttpTransport(max_connections=1)
    server.answer = silence
    holder = asyncio.ensure_future(fetch(transport, server.url))
    await server.until(lambda s: s.requests)
    with call_scope(0.2), pytest.raises(lm15.TimeoutError):
        await fetch(transport, server.url)
    assert server.connections == 1
    holder.cancel()
    await asyncio.gather(holder, return_exceptions=True)
    await transport.aclose()


async def test_cancelling_the_task_closes_the_connection_within_100_ms(server, transport):
    server.answer = silence
    task = asyncio.ensure_future(fetch(transport, server.url))
    await server.until(lambda s: s.requests)
    task.cancel()
    await server.until(lambda s: s.open_now == 0, within_s=0.1)
    assert (await asyncio.gather(task, return_exceptions=True))[0].__class__ is asyncio.CancelledError


async def test_leaving_a_body_unread_closes_the_connection_within_100_ms(server, transport):
    server.answer = raw(b"HTTP/1.1 200 OK\r\ncontent-length: 900\r\n\r\nabc", close=False)
    async with transport.stream(Sent(server.url)) as exchange:
        async for _ in exchange:
            break
    await server.until(lambda s: s.open_now == 0, within_s=0.1)


async def test_silence_longer_than_read_s_is_a_timeout_before_the_deadline(server):
    transport = AiohttpTransport(patience=Patience(read_s=0.2))
    server.answer = silence
    with call_scope(30), pytest.raises(lm15.TimeoutError, match=r"nothing arrived .* for 0\.2 s"):
        await fetch(transport, server.url)
    await transport.aclose()


async def test_bytes_that_trickle_reset_read_s_but_not_the_deadline(server):
    async def trickle(_, writer):
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 900\r\n\r\n")
        while not writer.is_closing():
            writer.write(b"x")
            await asyncio.sleep(0.02)

    transport = AiohttpTransport(patience=Patience(read_s=0.2))
    server.answer = trickle
    with call_scope(0.6), pytest.raises(lm15.TimeoutError, match=r"no whole reply .* within 0\.6 s"):
        await fetch(transport, server.url)
    await transport.aclose()


async def test_no_connection_within_connect_s_is_a_transport_error(monkeypatch):
    transport = AiohttpTransport(patience=Patience(connect_s=0.2))
    unanswered = asyncio.Event()

    async def connect(*_, **__):
        await unanswered.wait()  # a host that drops every packet; loopback has none

    monkeypatch.setattr(lm_transport.aiohttp.connector.aiohappyeyeballs, "start_connection", connect)
    with call_scope(30), pytest.raises(lm15.TransportError, match=r"no connection .* within 0\.2 s"):
        await fetch(transport, "http://127.0.0.1:9/v1")
    await transport.aclose()


async def test_a_name_that_is_not_found_is_a_transport_error(transport):
    with pytest.raises(lm15.TransportError):
        await fetch(transport, "http://nowhere.invalid/v1")


async def test_a_reply_past_the_bound_is_a_transport_error(server, transport, monkeypatch):
    monkeypatch.setattr(lm_transport, "MAX_REPLY_BYTES", 1000)
    server.answer = reply(200, b"x" * 1001)
    with pytest.raises(lm15.TransportError, match="more than 1000 bytes"):
        await fetch(transport, server.url)


async def test_a_redirect_is_not_followed(server, transport):
    server.answer = reply(307, b"", location=server.url)
    assert (await fetch(transport, server.url))[0] == 307
    assert len(server.requests) == 1


@pytest.mark.parametrize("url", ["http://", "http:///v1", "/v1"])
async def test_a_url_without_a_host_is_a_configuration_error(url, transport):
    with pytest.raises(lm15.ConfigurationError):
        transport.check(url)


async def test_a_url_is_sent_as_the_client_spelled_it(server, transport):
    await fetch(transport, f"{server.url}/model/a%3A1/invoke?q=%2F")
    assert server.requests[0].target == "/v1/model/a%3A1/invoke?q=%2F"


async def test_a_closed_transport_refuses(server):
    transport = AiohttpTransport()
    await fetch(transport, server.url)
    await transport.aclose()
    await server.until(lambda s: s.open_now == 0)
    with pytest.raises(lm15.ConfigurationError, match="closed"):
        await fetch(transport, server.url)


async def test_each_event_loop_has_connections_of_its_own(server, transport):
    thread = LoopThread("other")
    for _ in range(2):
        await fetch(transport, server.url)
        await asyncio.to_thread(thread.run, fetch(transport, server.url))
    assert (len(server.requests), server.connections) == (4, 2)
    await asyncio.to_thread(thread.run, transport.aclose())
    await asyncio.to_thread(thread.close)


async def test_the_session_of_a_loop_that_ended_is_closed_with_the_rest(server, transport):
    server.answer = reply(200, b"", connection="close")  # a socket cannot outlive its loop
    await asyncio.to_thread(lambda: asyncio.run(fetch(transport, server.url)))
    (session,) = transport._sessions.values()
    await transport.aclose()
    assert session.closed


async def test_a_proxy_of_the_environment_is_asked_with_its_credentials(server, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", f"http://me:secret@127.0.0.1:{server.port}")
    transport = AiohttpTransport()
    status, _ = await fetch(transport, "http://provider.example/v1")
    await transport.aclose()
    seen = server.requests[0]
    assert status == 200
    assert seen.target == "http://provider.example/v1"
    assert seen.headers["host"] == "provider.example"
    assert seen.headers["proxy-authorization"] == "Basic " + base64.b64encode(b"me:secret").decode()


async def test_an_https_provider_is_reached_through_a_tunnel(server, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", f"http://me:secret@127.0.0.1:{server.port}")
    server.answer = reply(403, b"no tunnel")
    transport = AiohttpTransport()
    with pytest.raises(lm15.TransportError):
        await fetch(transport, "https://provider.example/v1")
    await transport.aclose()
    assert server.requests[0].target == "provider.example:443"
    assert server.requests[0].headers["proxy-authorization"] == "Basic " + base64.b64encode(b"me:secret").decode()


async def test_no_proxy_goes_directly(server, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "localhost,127.0.0.1")
    transport = AiohttpTransport()
    assert (await fetch(transport, server.url))[0] == 200
    await transport.aclose()


async def test_a_proxy_of_another_scheme_is_a_configuration_error(monkeypatch, transport):
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:9")
    with pytest.raises(lm15.ConfigurationError, match="socks5"):
        transport.check("http://provider.example/v1")


@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE"])
def test_a_bundle_that_is_not_there_is_named(variable, monkeypatch, tmp_path):
    monkeypatch.setenv(variable, str(tmp_path / "gone.pem"))
    with pytest.raises(ConfigError, match=variable):
        AiohttpTransport()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    if not shutil.which("openssl"):
        pytest.skip("needs the openssl command to make a certificate")
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost", "-keyout", folder / "key.pem", "-out", folder / "cert.pem"],
        check=True,
        capture_output=True,
    )  # fmt: skip
    return folder / "cert.pem", folder / "key.pem"


@pytest.fixture
async def tls_url(certificate):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    async with FaultServer(tls=context) as server:
        yield f"https://localhost:{server.port}/v1"


@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"])
async def test_a_private_authority_is_trusted_once_the_environment_names_it(
    variable, certificate, tls_url, monkeypatch
):
    monkeypatch.setenv(variable, str(certificate[0]))
    transport = AiohttpTransport()
    status, body = await fetch(transport, tls_url)
    await transport.aclose()
    assert status == 200
    assert COMPLETION["id"].encode() in body


async def test_an_unknown_authority_is_a_transport_error(tls_url, transport):
    with pytest.raises(lm15.TransportError, match="certificate"):
        await fetch(transport, tls_url)


async def test_a_port_nobody_listens_on_is_a_transport_error(transport):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(lm15.TransportError):
            await fetch(transport, f"http://127.0.0.1:{taken.getsockname()[1]}/v1")
