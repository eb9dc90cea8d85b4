"""What ``switchyard run`` decides before and around Ray; no Ray runs here."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from serve_app import launch_child, launcher
from serve_app.errors import ConfigError
from serve_app.launch_log import LogFile
from serve_app.launch_ports import Endpoint, Port, endpoint_of, needed_ports, reserved
from serve_app.launch_ready import announcement, example_call, is_ready, sample, urls_of
from serve_app.launcher import environment, reasons_of

HA, FAST = "RAY_SERVE_ENABLE_HA_PROXY", "RAY_SERVE_THROUGHPUT_OPTIMIZED"


@pytest.mark.parametrize(
    ("inherited", "plain", "flags"),
    [
        ({}, False, ("1", "1")),
        ({}, True, ("0", "0")),
        ({HA: "0"}, False, ("0", "0")),
        ({FAST: "0"}, False, ("0", "0")),
        ({HA: "1"}, False, ("1", "1")),
        ({HA: "1", FAST: "1"}, True, ("0", "0")),
    ],
)
def test_the_two_throughput_flags_are_never_set_apart(
    inherited: dict[str, str], plain: bool, flags: tuple[str, str]
) -> None:
    made = environment(inherited, plain=plain)
    assert (made[HA], made[FAST]) == flags


def test_what_the_person_set_wins_over_our_defaults_and_a_foreign_cluster_is_left_alone() -> None:
    made = environment({"RAY_USAGE_STATS_ENABLED": "1", "RAY_ADDRESS": "10.0.0.1:6379", "X": "y"}, plain=False)
    assert made["RAY_USAGE_STATS_ENABLED"] == "1"
    assert made["LITELLM_LOCAL_MODEL_COST_MAP"] == "true"
    assert made["X"] == "y"
    assert "RAY_ADDRESS" not in made


OURS = str(Path(sys.executable).parent)


@pytest.mark.parametrize(
    ("inherited", "path"),
    [
        ({"PATH": f"/usr/bin{os.pathsep}/bin"}, f"{OURS}{os.pathsep}/usr/bin{os.pathsep}/bin"),
        ({"PATH": f"/bin{os.pathsep}{OURS}"}, f"{OURS}{os.pathsep}/bin{os.pathsep}{OURS}"),
        ({"PATH": f"{OURS}{os.pathsep}/bin"}, f"{OURS}{os.pathsep}/bin"),
        ({"PATH": OURS}, OURS),
        ({"PATH": ""}, f"{OURS}{os.pathsep}{os.defpath}"),
        ({}, f"{OURS}{os.pathsep}{os.defpath}"),
    ],
)
def test_a_jobs_python_is_the_one_that_serves(inherited: dict[str, str], path: str) -> None:
    assert environment(inherited, plain=False)["PATH"] == path


@pytest.mark.parametrize(
    ("options", "url"),
    [
        (None, "http://127.0.0.1:8000"),
        ("nonsense", "http://127.0.0.1:8000"),
        ({"host": "0.0.0.0", "port": 81}, "http://127.0.0.1:81"),
        ({"host": "::", "port": 81}, "http://[::1]:81"),
        ({"host": "10.1.2.3", "ssl_certfile": "c.pem"}, "https://10.1.2.3:8000"),
        ({"port": "many"}, "http://127.0.0.1:8000"),
        ({"port": 99999}, "http://127.0.0.1:8000"),
        ({"port": "81"}, "http://127.0.0.1:81"),
    ],
)
def test_the_url_is_one_this_machine_can_reach(options: Any, url: str) -> None:
    assert endpoint_of({"http_options": options}).url == url


def test_haproxys_own_ports_are_needed_only_in_its_mode_and_can_be_moved() -> None:
    endpoint = Endpoint("127.0.0.1", 8000)
    assert [port.number for port in needed_ports(endpoint, {})] == [8000]
    moved = {HA: "1", "RAY_SERVE_HAPROXY_STATS_PORT": "8405"}
    assert [port.number for port in needed_ports(endpoint, moved)] == [8000, 8405, 9101, 8500]


@pytest.fixture
def locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@contextmanager
def listening() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def free_port() -> int:
    with listening() as port:
        return port


def refusal(*ports: Port) -> str:
    with pytest.raises(ConfigError) as refused, reserved(ports):
        raise AssertionError("the ports were given out")
    (line,) = refused.value.problems
    return line


def test_a_port_in_use_names_who_has_it(locks: Path) -> None:
    name = psutil.Process().name()
    with listening() as port:
        assert refusal(Port(port, "127.0.0.1", "http_options.port")) == (
            f"port {port} is in use by {name} (pid {os.getpid()}); end it, or set http_options.port"
        )


def test_ports_of_one_holder_are_one_line(locks: Path) -> None:
    with listening() as one, listening() as two:
        line = refusal(Port(one, "127.0.0.1", "http_options.port"), Port(two, "127.0.0.1", "OTHER"))
        assert line.startswith(f"ports {one}, {two} are in use by ")


def test_a_second_run_is_told_of_the_first_before_anything_listens(locks: Path) -> None:
    port = Port(free_port(), "127.0.0.1", "http_options.port")
    with reserved([port]):
        assert refusal(port) == (
            f"port {port.number} is in use by another 'switchyard run' (pid {os.getpid()}); "
            "end that one, or set http_options.port"
        )
    with reserved([port]):
        pass


def test_a_port_that_is_meant_twice_is_no_other_runs(locks: Path) -> None:
    port = free_port()
    assert refusal(Port(port, "127.0.0.1", "http_options.port"), Port(port, "", "RAY_SERVE_HAPROXY_STATS_PORT")) == (
        f"port {port} is meant twice, by http_options.port and RAY_SERVE_HAPROXY_STATS_PORT; change one"
    )


def test_a_process_that_cannot_be_started_is_not_taken_for_another_run(locks: Path) -> None:
    with pytest.raises(BlockingIOError), reserved([Port(free_port(), "127.0.0.1", "http_options.port")]):
        raise BlockingIOError(errno.EAGAIN, "as fork(2) says it where there are too many processes")


def test_an_address_of_another_machine_is_one_line(locks: Path) -> None:
    line = refusal(Port(free_port(), "192.0.2.1", "http_options.port"))
    assert re.fullmatch(r"http_options\.port: cannot listen on port \d+: .+", line)


def test_a_host_that_does_not_resolve_is_one_line(locks: Path) -> None:
    line = refusal(Port(free_port(), "no such host", "http_options.port"))
    assert line.startswith("http_options.host: cannot listen on 'no such host': ")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="names the holder of a port through /proc")
def test_a_haproxy_left_over_comes_with_the_command_that_ends_it(locks: Path, tmp_path: Path) -> None:
    haproxy = tmp_path / "haproxy"
    haproxy.symlink_to(Path(sys.executable).resolve())
    code = "import socket,sys; s=socket.create_server(('127.0.0.1',0)); print(s.getsockname()[1],flush=True); input()"
    with subprocess.Popen([haproxy, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        assert refusal(Port(port, "127.0.0.1", "http_options.port")) == (
            f"port {port} is held by a HAProxy left over from an earlier run; end it with: kill {process.pid}"
        )
        process.kill()


OUR_WORDS = "Deploying app 'app' failed with exception:\nargs.models[0].qualty: unknown key\nargs.default_model: no"
TRACEBACK = 'started 3 times. Error:\n  \x1b[36mray::Replica\x1b[39m\n  File "x.py", line 1\nRuntimeError: no licence\n'


@pytest.mark.parametrize(
    ("messages", "lines"),
    [
        ({"": OUR_WORDS}, ["args.models[0].qualty: unknown key", "args.default_model: no"]),
        ({"Model-large": TRACEBACK}, ["Model-large: RuntimeError: no licence"]),
        ({"": "Traceback (most recent call last):\n  File 'y'\nKeyError: 'x'\n\n"}, ["KeyError: 'x'"]),
        ({"": ""}, []),
    ],
)
def test_a_failed_deployment_is_told_without_its_traceback(messages: dict[str, str], lines: list[str]) -> None:
    assert reasons_of(messages) == lines


SCHEMA = {
    "$defs": {"Tone": {"enum": ["warm", "cold"]}},
    "properties": {
        "ticket": {"type": "string", "examples": ["My invoice is wrong"]},
        "tone": {"$ref": "#/$defs/Tone"},
        "limit": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
        "tags": {"type": "array", "items": {"type": "string"}},
        "note": {"type": "string"},
        "since": {"type": "string", "format": "date"},
        "secret": {"type": "string", "format": "password"},
        "context": {"type": "string", "default": ""},
    },
    "required": ["ticket", "tone", "limit", "tags", "note", "since", "secret"],
}


def test_an_example_has_a_value_of_the_right_type_for_each_required_input() -> None:
    assert sample(SCHEMA) == {
        "ticket": "My invoice is wrong",
        "tone": "warm",
        "limit": 1,
        "tags": [],
        "note": "Hello",
        "since": "2026-01-31",
        "secret": "Hello",
    }


def test_an_example_of_a_type_that_contains_itself_ends() -> None:
    node = {
        "properties": {"value": {"type": "integer"}, "next": {"anyOf": [{"$ref": "#/$defs/Node"}, {"type": "null"}]}},
        "required": ["value", "next"],
    }
    both = {"properties": {name: {"$ref": "#/$defs/Node"} for name in ("head", "tail")}, "required": ["head", "tail"]}
    one = {"value": 1, "next": None}
    assert sample(both | {"$defs": {"Node": node}}) == {"head": one, "tail": one}


@contextmanager
def service(answers: dict[str, tuple[int, Any]]) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = answers.get(self.path, (404, {}))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(("status", "ready"), [(200, True), (503, False), (404, True), (500, False)])
def test_ready_is_what_the_service_says(status: int, ready: bool) -> None:
    with service({"/ready": (status, {})}) as url:
        assert is_ready(url) is ready


def test_a_service_that_is_not_there_is_not_ready() -> None:
    assert not is_ready(f"http://127.0.0.1:{free_port()}")


def test_the_example_is_a_curl_for_the_first_program() -> None:
    answers = {
        "/v1/programs": (200, {"programs": [{"name": "triage"}, {"name": "other"}]}),
        "/v1/programs/triage": (200, {"inputs": {"properties": {"q": {"examples": ["It's"]}}, "required": ["q"]}}),
    }
    with service(answers) as url:
        call = example_call(url)
    shell = subprocess.run(
        ["sh", "-c", call.replace("curl", "printf '%s\\n'")], capture_output=True, check=True, text=True
    )
    assert f"{url}/v1/programs/triage" in shell.stdout
    assert '{"inputs": {"q": "It\'s"}}' in shell.stdout


def test_every_application_is_named_where_it_answers_and_those_with_programs_with_a_call() -> None:
    types = {"inputs": {"properties": {"q": {"examples": ["a"]}}, "required": ["q"]}}
    programs = {"/v1/programs": (200, {"programs": [{"name": "ask"}]}), "/v1/programs/ask": (200, types)}
    second = {f"/second{path}": answer for path, answer in programs.items()}
    document = {
        "applications": [
            {"name": "desk"},
            {"name": "second", "route_prefix": "/second"},
            {"name": "simulator", "route_prefix": "/sim"},
            {"name": "inner", "route_prefix": None},
        ]
    }
    with service(programs | second) as url:
        lines = announcement(urls_of(document, url))
        calls = [example_call(base) for base in (url, f"{url}/second")]
    assert lines == [
        f"Ready: {url} (desk, API: {url}/docs)",
        f"Ready: {url}/second (second, API: {url}/second/docs)",
        f"Ready: {url}/sim (simulator)",
        "Try:",
        f"  {calls[0]}",
        f"  {calls[1]}",
        "Ctrl-C ends it.",
    ]


def test_a_service_of_another_kind_has_no_example() -> None:
    with service({"/v1/programs": (200, ["x"])}) as url:
        assert example_call(url) == ""


def copied(log: LogFile, content: bytes) -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as source:
        os.write(writing, content)
        os.close(writing)
        log.copy(source)


def test_the_log_keeps_the_run_before_and_knows_its_last_lines(tmp_path: Path) -> None:
    path = tmp_path / "made" / "serve.log"
    for content in (b"first\n", b"".join(b"line %d\n\n" % n for n in range(40))):
        with LogFile.open(path, echo=False) as log:
            copied(log, content)
            tail = log.tail()
    assert tail == [f"line {n}" for n in range(25, 40)]
    assert (tmp_path / "made" / "serve.log.1").read_bytes() == b"first\n"


def test_the_log_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve_app.launch_log.MAX_BYTES", 100)
    with LogFile.open(tmp_path / "serve.log", echo=False) as log:
        for _ in range(50):
            copied(log, b"x" * 30)
    assert {path.name for path in tmp_path.iterdir()} == {"serve.log", "serve.log.1"}
    assert all(path.stat().st_size <= 130 for path in tmp_path.iterdir())


def test_a_log_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError) as refused, LogFile.open(tmp_path / "file" / "serve.log", echo=False):
        pass
    (line,) = refused.value.problems
    assert line.startswith(f"the log {tmp_path / 'file' / 'serve.log'} cannot be written: ")


ORPHANS = """
import subprocess, sys
from serve_app.launch_processes import adopt_orphans, descendants, end_all, reap_orphans
adopted = adopt_orphans()
stubborn = "import signal,time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
middle = f"import subprocess,sys; subprocess.Popen([sys.executable, '-c', {stubborn!r}], start_new_session=True)"
child = subprocess.Popen([sys.executable, "-c", middle], stdout=subprocess.PIPE)
child.stdout.readline()
child.wait()
before = descendants()
left = end_all(before, 0.3, 10)
reap_orphans(0)
print(adopted, len(before), len(left), len(descendants()))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux lets a process adopt orphans")
def test_an_orphan_that_ignores_sigterm_is_ended() -> None:
    done = subprocess.run([sys.executable, "-c", ORPHANS], capture_output=True, check=True, text=True, timeout=60)
    assert done.stdout.split() == ["True", "1", "0", "0"]


@pytest.mark.parametrize("ignored", [False, True])
def test_a_terminal_that_closes_ends_a_run_unless_nohup_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ignored: bool
) -> None:
    def watch(run: launcher.Run, _: object) -> int:
        os.kill(os.getpid(), signal.SIGHUP)
        return run._interrupts

    monkeypatch.setattr(launcher, "adopt_orphans", lambda: True)
    for name, method in {"_start": lambda *_: None, "_watch": watch, "_end": lambda *_: None}.items():
        monkeypatch.setattr(launcher.Run, name, method)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
    try:
        with LogFile.open(tmp_path / "serve.log", echo=False) as log:
            assert launcher.Run(Path("c.yaml"), {}, "", log).serve({}) == (0 if ignored else 1)
        assert signal.getsignal(signal.SIGHUP) is (signal.SIG_IGN if ignored else signal.SIG_DFL)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_file_with_a_mistake_starts_nothing(tmp_path: Path) -> None:
    port = free_port()
    file = tmp_path / "c.yaml"
    file.write_text(f"http_options: {{host: 127.0.0.1, port: {port}}}\napplication: []\n")
    done = subprocess.run(
        [sys.executable, "-m", "serve_app.cli", "run", str(file), "--plain"],
        capture_output=True,
        check=False,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        text=True,
        timeout=60,
    )
    assert done.stderr == f"{file}:2: application: unknown key; did you mean 'applications'?\n"
    assert done.returncode == 2


def test_a_file_with_a_mistake_is_told_before_a_port_that_is_taken(
    locks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with listening() as port:
        Path("c.yaml").write_text(f"http_options: {{host: 127.0.0.1, port: {port}}}\napplication: []\n")
        with pytest.raises(ConfigError) as refused:
            launcher.run(Path("c.yaml"), plain=True)
    mistake, taken = refused.value.problems
    assert mistake == "c.yaml:2: application: unknown key; did you mean 'applications'?"
    assert f"port {port} is in use by" in taken


class Looks:
    """An event that is set after so many waits, and remembers how long each was."""

    def __init__(self, number: int) -> None:
        self.waits: list[float] = []
        self._number = number

    def wait(self, seconds: float) -> bool:
        self.waits.append(seconds)
        return len(self.waits) > self._number


def test_applications_that_run_are_looked_at_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    statuses = iter(["DEPLOYING", "RUNNING", "RUNNING", "UNHEALTHY", "RUNNING"])

    def status() -> SimpleNamespace:
        found = SimpleNamespace(status=SimpleNamespace(value=next(statuses)), message="", deployments={})
        return SimpleNamespace(applications={"app": found})

    monkeypatch.setattr("ray.is_initialized", lambda: True)
    monkeypatch.setattr("ray.serve.status", status)
    looks, written = Looks(5), []
    launch_child._watch(SimpleNamespace(write=written.append), looks)
    often, seldom = launch_child.POLL_S, launch_child.SETTLED_POLL_S
    assert looks.waits == [often, often, seldom, seldom, often, seldom]
    assert [value["applications"]["app"]["status"] for value in written][:2] == ["DEPLOYING", "RUNNING"]
