"""``switchyard kuberay render``: one configuration for the laptop and the cluster, or a line that says why not."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import yaml

from serve_app import cli
from serve_app.kuberay import Surroundings, rayservice_patch, serve_config

ROOT = Path(__file__).parents[2]
FILE = Path("serve_config.yaml")
OWN = """\
http_options: {port: 8000}
applications:
  - name: app
    import_path: graphs.compact:build
    args:
      programs:
        - {name: ask, program: "question -> answer", levels: {full: {models: [small]}}}
      models:
        - {name: small, lm: openai/gpt-4o-mini, api_key_env: NOT_SET_ON_THIS_MACHINE}
      default_model: small
"""


@pytest.fixture(autouse=True)
def _from_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.fixture
def own(tmp_path: Path):
    """Writes a configuration of one's own, with one text in place of another."""

    def write(old: str = "", new: str = "") -> Path:
        assert old in OWN
        file = tmp_path / "mine.yaml"
        file.write_text(OWN.replace(old, new) if old else OWN)
        return file

    return write


def rendered(file: Path, there: Surroundings) -> dict:
    patch = yaml.safe_load(rayservice_patch(file, there))
    return yaml.safe_load(patch["spec"]["serveConfigV2"])


def args(config: dict) -> dict:
    return config["applications"][0]["args"]


def refusal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    """The lines of a command that must refuse."""
    monkeypatch.setattr(sys, "argv", ["switchyard", "kuberay", "render", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err.splitlines()


def test_nothing_but_host_and_cache_differs_from_the_file() -> None:
    expected = yaml.safe_load(FILE.read_text())
    expected["http_options"]["host"] = "0.0.0.0"
    args(expected)["cache"]["redis_url"] = "redis://switchyard-cache:6379/0"
    assert rendered(FILE, Surroundings()) == expected
    assert yaml.safe_load(serve_config(FILE, Surroundings())) == expected


def test_the_patch_names_the_rayservice_and_its_source() -> None:
    text = rayservice_patch(FILE, Surroundings(), "mine")
    assert text.startswith("# Made from serve_config.yaml by `switchyard kuberay render`")
    assert {"kind": "RayService", "metadata": {"name": "mine"}}.items() <= yaml.safe_load(text).items()


def test_the_text_is_a_block_that_a_person_can_read_and_keeps_every_character(own) -> None:
    file = own("question -> answer", "größe: Literal['µ', '—'] -> answer")
    text = rayservice_patch(file, Surroundings())
    assert "serveConfigV2: |\n" in text
    assert "größe: Literal[''µ'', ''—''] -> answer" in text


def test_options_put_in_what_lies_elsewhere() -> None:
    there = Surroundings("10.0.0.1", "rediss://cache.example:6380/1", {"large": "http://vllm.models:8000/v1"})
    config = rendered(FILE, there)
    assert config["http_options"] == {"host": "10.0.0.1", "port": 8000}
    assert args(config)["cache"] == {"redis_url": "rediss://cache.example:6380/1"}
    bases = {model["name"]: model["api_base"] for model in args(config)["models"]}
    assert bases["large"] == "http://vllm.models:8000/v1"
    assert bases["small"] == "http://127.0.0.1:8000/sim/v1"


@pytest.mark.parametrize("url", ["redis://elsewhere:6379/0", None])
def test_a_cache_of_ones_own_stays(own, url) -> None:
    file = own("default_model: small", f"default_model: small\n      cache: {{redis_url: {url or 'null'}}}")
    assert args(rendered(file, Surroundings()))["cache"]["redis_url"] == url


def test_a_file_that_says_nothing_of_the_cache_or_of_http_gets_both(own) -> None:
    config = rendered(own("http_options: {port: 8000}\n"), Surroundings())
    assert config["http_options"] == {"host": "0.0.0.0"}
    assert args(config)["cache"] == {"redis_url": "redis://switchyard-cache:6379/0"}


def test_keys_need_not_be_set_here_since_the_cluster_has_them(own) -> None:
    assert args(rendered(own(), Surroundings()))["models"][0]["api_key_env"] == "NOT_SET_ON_THIS_MACHINE"


def test_a_port_in_quotes_is_the_port_that_ray_takes_it_for(own) -> None:
    assert "8000" in serve_config(own("port: 8000", 'port: "8000"'), Surroundings())


def test_an_anchor_is_written_out_for_each_place_that_uses_it(own) -> None:
    file = own("levels: {full: {models: [small]}}", "levels: {full: &all {models: [small]}, minimal: *all}")
    assert "&" not in serve_config(file, Surroundings())


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("name: small,", "name: small, api_base: http://localhost:11434/v1,", "models[0].api_base: is the pod itself"),
        ("name: small,", "name: small, api_base: http://127.0.0.1:8000/v1,", "models[0].api_base: is the pod itself"),
        ("name: small,", "name: [small],", "models[0].name: must be a string"),
        ("name: small,", "name: small, api_base: http://localhost:x/v1,", "models[0].api_base: names no host"),
        ("port: 8000", "port: 9000", "http_options.port: must be 8000"),
        ("default_model: small", "default_model: smal", "default_model: unknown model 'smal'; did you mean 'small'?"),
        ("name: app", "nme: app", "applications[0].nme: unknown key; did you mean 'name'?"),
        ("http_options: {port: 8000}", "http_options: 8000", "http_options: must be a mapping"),
    ],
)
def test_what_would_not_run_there_is_one_line_with_its_place(monkeypatch, capsys, own, old, new, line) -> None:
    file = own(old, new)
    (said,) = refusal(monkeypatch, capsys, str(file))
    assert said.startswith(f"{file}:")
    assert line in said


@pytest.mark.parametrize(
    "url", ["redis://localhost:6379", "rediss://u:p@[::1]/2", "redis+cluster://far:1,127.0.0.1:2", "unix:///tmp/x"]
)
def test_a_cache_on_this_machine_is_refused_however_it_was_named(monkeypatch, capsys, url) -> None:
    (said,) = refusal(monkeypatch, capsys, "--redis-url", url)
    assert "cache.redis_url: is the pod itself there" in said


def test_an_address_for_a_model_that_is_not_there_is_refused(monkeypatch, capsys) -> None:
    said = refusal(monkeypatch, capsys, "--api-base", "larg=http://x/v1")
    assert said == ["--api-base: unknown model 'larg'; did you mean 'large'?"]


@pytest.mark.parametrize("pair", ["large", "=http://x", "large="])
def test_an_address_without_its_model_is_explained(monkeypatch, capsys, pair) -> None:
    assert "MODEL=URL" in refusal(monkeypatch, capsys, "--api-base", pair)[-1]


def test_a_refused_file_leaves_the_old_output_alone(monkeypatch, capsys, tmp_path) -> None:
    output = tmp_path / "old.yaml"
    output.write_text("as it was")
    refusal(monkeypatch, capsys, "nowhere.yaml", "--output", str(output))
    assert output.read_text() == "as it was"


def test_output_and_standard_output_get_the_same(monkeypatch, capsys, tmp_path) -> None:
    output = tmp_path / "new.yaml"
    for arguments in ([], ["-o", str(output)]):
        monkeypatch.setattr(sys, "argv", ["switchyard", "kuberay", "render", *arguments])
        cli.main()
    assert capsys.readouterr().out == output.read_text() == rayservice_patch(FILE, Surroundings())


def test_a_directory_that_is_not_there_is_one_line(monkeypatch, capsys, tmp_path) -> None:
    (said,) = refusal(monkeypatch, capsys, "-o", str(tmp_path / "none" / "x.yaml"))
    assert said.endswith("cannot be written: No such file or directory")
