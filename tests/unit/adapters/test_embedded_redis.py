from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import psutil
import pytest
from redis import Redis, RedisError

from serve_app.adapters import embedded_redis, parent_watch
from serve_app.adapters.embedded_redis import EmbeddedRedis
from serve_app.errors import ConfigError

PARENT = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's job in the background ignores it
from serve_app.adapters.embedded_redis import EmbeddedRedis
server = EmbeddedRedis(max_memory="16mb")
server.start()
print(server.url, flush=True)
time.sleep(60)
"""


def wait_until(condition: Callable[[], bool], bound_s: float = 10.0) -> bool:
    give_up = time.monotonic() + bound_s
    while time.monotonic() < give_up:
        if condition():
            return True
        time.sleep(0.02)
    return False


def server_of(watch_pid: int) -> psutil.Process:
    return psutil.Process(watch_pid).children()[0]


def is_gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def test_it_serves_with_a_bound_and_without_a_disk() -> None:
    with EmbeddedRedis(max_memory="16mb") as server, Redis.from_url(server.url) as client:
        assert client.set("a", b"1")
        assert client.get("a") == b"1"
        assert client.config_get("maxmemory")["maxmemory"] == str(16 * 2**20)
        assert client.config_get("maxmemory-policy")["maxmemory-policy"] == "allkeys-lru"
        assert client.config_get("save")["save"] == ""
        assert client.config_get("appendonly")["appendonly"] == "no"
        assert client.config_get("port")["port"] == "0"


def test_only_this_user_can_reach_its_socket() -> None:
    with EmbeddedRedis() as server:
        directory = Path(server.url.removeprefix("unix://")).parent
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700


def test_memory_past_its_bound_evicts_instead_of_refusing() -> None:
    with EmbeddedRedis(max_memory="4mb") as server, Redis.from_url(server.url) as client:
        for number in range(200):
            assert client.set(f"k{number}", bytes(100_000))
        assert client.info("memory")["used_memory"] < 8 * 2**20
        assert client.info("stats")["evicted_keys"] > 0


def test_stopping_ends_the_server_and_removes_its_directory() -> None:
    server = EmbeddedRedis()
    server.start()
    directory = Path(server.url.removeprefix("unix://")).parent
    process = server_of(server._watch.pid)
    server.stop()
    assert is_gone(process)
    assert not directory.exists()
    assert not server.is_running
    server.stop()


def test_starting_twice_keeps_the_first_server() -> None:
    with EmbeddedRedis() as server:
        url = server.url
        server.start()
        assert server.url == url


def test_asking_for_the_url_before_the_start_says_so() -> None:
    with pytest.raises(RuntimeError, match="has not been started"):
        _ = EmbeddedRedis().url


@pytest.fixture
def parent() -> subprocess.Popen[str]:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_the_server_ends_with_its_parent_however_that_ends(parent: subprocess.Popen[str], ending: int) -> None:
    url = parent.stdout.readline().strip()
    directory = Path(url.removeprefix("unix://")).parent
    watch = psutil.Process(parent.pid).children()[0]
    server = server_of(watch.pid)
    assert server.name().startswith("valkey-server")

    os.kill(parent.pid, ending)
    parent.wait(10)

    assert wait_until(lambda: is_gone(server) and is_gone(watch))
    assert wait_until(lambda: not directory.exists())


def test_a_child_that_keeps_the_pipe_open_does_not_keep_the_server_alive() -> None:
    forking = PARENT.replace("time.sleep(60)", "import os\nos.fork()\ntime.sleep(60)")
    with subprocess.Popen([sys.executable, "-c", forking], stdout=subprocess.PIPE, text=True) as process:
        process.stdout.readline()
        assert wait_until(lambda: len(psutil.Process(process.pid).children()) == 2)
        watch, heir = sorted(psutil.Process(process.pid).children(), key=lambda child: len(child.cmdline()) == 3)
        server = server_of(watch.pid)
        process.kill()
        assert wait_until(lambda: is_gone(server))
        assert heir.is_running()
        heir.kill()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="prctl is Linux' own")
def test_killing_the_watch_kills_the_server() -> None:
    with EmbeddedRedis() as running:
        server = server_of(running._watch.pid)
        running._watch.kill()
        assert wait_until(lambda: is_gone(server))


def test_a_server_that_crashes_is_started_again_at_the_same_address() -> None:
    with EmbeddedRedis() as running:
        first, answered_at = server_of(running._watch.pid), time.monotonic()
        assert wait_until(lambda: time.monotonic() - answered_at > parent_watch.MIN_RUN_S + 0.2)
        first.kill()
        assert wait_until(lambda: answers(running.url))
        assert server_of(running._watch.pid).pid != first.pid


def answers(url: str) -> bool:
    with Redis.from_url(url) as client:
        try:
            return bool(client.ping())
        except RedisError:
            return False


def test_without_the_package_the_error_names_the_extra_and_the_way_around(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: str) -> None:
        raise metadata.PackageNotFoundError

    monkeypatch.setattr(embedded_redis.metadata, "files", missing)
    with pytest.raises(ConfigError, match=r"dspy-switchyard\[embedded\].*redis_url: null"):
        EmbeddedRedis().start()


def test_a_server_that_refuses_to_start_is_an_error_that_says_why() -> None:
    server = EmbeddedRedis(max_memory="a lot")
    with pytest.raises(ConfigError, match=r"did not start: .*memory"):
        server.start()
    assert not server.is_running


def test_a_long_temporary_directory_falls_back_to_a_short_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    long = tmp_path / ("d" * 100)
    long.mkdir()
    monkeypatch.setattr(embedded_redis.tempfile, "gettempdir", lambda: str(long))
    with EmbeddedRedis() as server:
        assert str(long) not in server.url
        assert answers(server.url)
