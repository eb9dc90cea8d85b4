"""Each kind of mistake is one line: file, line, key, what is wrong and the nearest valid name."""

from __future__ import annotations

import json
import sys
import textwrap
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dspy
import pytest
import yaml

from serve_app import config_check
from serve_app.adapters import litellm_upstream, lm_upstream
from serve_app.build_refused import BuildRefused
from serve_app.config import AppConfig
from serve_app.config_check import check_file, load_app_config, load_policy
from serve_app.config_schema import file_schema
from serve_app.errors import ConfigError

BASE = """\
proxy_location: EveryNode
http_options:
  host: 127.0.0.1
  port: 8000
logging_config:
  log_level: INFO
applications:
  - name: app
    route_prefix: /
    import_path: my_graph:build
    args:
      programs:
        - name: triage
          program: "ticket, context -> category, confidence: float"
          state: null
          confidence_field: confidence
          cache:
            ttl_s: 60
            low_confidence: {below: 0.7, ttl_s: 5}
          levels:
            full:
              models: [large, small]
            minimal:
              models: [small]
              max_input_chars: {ticket: 100}
              drop_inputs: [context]
              program: "ticket -> category"
      models:
        - name: large
          lm: openai/gpt-4o
          quality: 0.9
          price: {input_usd_per_1m_tokens: 2.5}
          replicas: {min: 1, max: 2}
        - name: small
          lm: openai/gpt-4o-mini
          api_base: http://127.0.0.1:1/v1
      default_model: small
      cache:
        redis_url: null
      limits: {default_deadline_s: 60}
    deployments:
      - name: Router
        num_replicas: 1
        ray_actor_options: {num_cpus: 0.5}
      - name: Ingress
        autoscaling_config: {min_replicas: 1, max_replicas: 2}
      - name: ControlPlane
        user_config:
          routing: {strategy: cost}
          degradation:
            pin: null
"""

GRAPH = """
from serve_app.config_check import load_app_config

def build(args):
    return load_app_config(args)

def deployment_names(config):
    return ("ControlPlane", "Ingress", "Router")
"""


@pytest.fixture
def workdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_graph.py").write_text(GRAPH)
    (tmp_path / "my_broken.py").write_text("raise OSError('no licence')\n")
    monkeypatch.delitem(sys.modules, "my_graph", raising=False)
    monkeypatch.delitem(sys.modules, "my_broken", raising=False)
    return tmp_path


def lines_of(text: str) -> list[str]:
    path = Path("c.yaml")
    path.write_text(text)
    return [str(problem) for problem in check_file(path)]


def test_a_valid_file_has_no_problem(workdir: Path) -> None:
    assert lines_of(BASE) == []


@pytest.mark.parametrize("key", ["", "  ", "s3cret with spaces"])
def test_an_operator_key_that_cannot_be_sent_is_a_problem_of_the_whole_and_is_not_repeated(
    workdir: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("SWITCHYARD_OPERATOR_KEY", key)
    (line,) = lines_of(BASE)
    assert "SWITCHYARD_OPERATOR_KEY: " in line
    assert "s3cret" not in line


RAY_LEVELS = [
    ("proxy_location:", "proxy_loc:", "c.yaml:1: proxy_loc: unknown key; did you mean 'proxy_location'?"),
    (
        "import_path: my_graph:build",
        "import_pth: my_graph:build",
        "c.yaml:10: applications[0].import_pth: unknown key; did you mean 'import_path'?",
    ),
    (
        "EveryNode",
        "EveryNod",
        "c.yaml:1: proxy_location: must be one of Disabled, HeadOnly, EveryNode; did you mean 'EveryNode'?",
    ),
    ("  port: 8000", "  prot: 8000", "c.yaml:4: http_options.prot: unknown key; did you mean 'port'?"),
    ("port: 8000", "port: 80000", "c.yaml:4: http_options.port: must be between 1 and 65535"),
    ("port: 8000", 'port: "80000"', "c.yaml:4: http_options.port: must be between 1 and 65535"),
    ("port: 8000", "port: http", "c.yaml:4: http_options.port: must be an integer"),
    ("log_level: INFO", "log_levl: INFO", "c.yaml:6: logging_config.log_levl: unknown key; did you mean 'log_level'?"),
    (
        "route_prefix: /",
        "route_prefx: /",
        "c.yaml:9: applications[0].route_prefx: unknown key; did you mean 'route_prefix'?",
    ),
    (
        "route_prefix: /",
        "route_prefix: api",
        "c.yaml:9: applications[0].route_prefix: must begin with '/', must not end with one, and takes no wildcards",
    ),
    (
        "num_replicas: 1",
        "num_replica: 1",
        "c.yaml:43: applications[0].deployments[0].num_replica: unknown key; did you mean 'num_replicas'?",
    ),
    (
        "num_cpus: 0.5",
        "num_cpu: 0.5",
        "c.yaml:44: applications[0].deployments[0].ray_actor_options.num_cpu: unknown key; did you mean 'num_cpus'?",
    ),
    (
        "num_cpus: 0.5",
        "num_cpus: -1",
        "c.yaml:44: applications[0].deployments[0].ray_actor_options.num_cpus: must be at least 0",
    ),
    (
        "num_cpus: 0.5",
        "runtime_env: {env_var: {}}",
        (
            "c.yaml:44: applications[0].deployments[0].ray_actor_options.runtime_env.env_var: "
            "unknown key; did you mean 'env_vars'?"
        ),
    ),
    (
        "num_cpus: 0.5",
        "runtime_env: {env_vars: {DEBUG: 1}}",
        (
            "c.yaml:44: applications[0].deployments[0].ray_actor_options.runtime_env.env_vars.DEBUG: "
            "name and value must be strings, in quotes where needed"
        ),
    ),
    (
        "max_replicas: 2",
        "max_replica: 2",
        (
            "c.yaml:46: applications[0].deployments[1].autoscaling_config.max_replica: "
            "unknown key; did you mean 'max_replicas'?"
        ),
    ),
    (
        "{min_replicas: 1, max_replicas: 2}",
        "{min_replicas: 3, max_replicas: 2}",
        (
            "c.yaml:46: applications[0].deployments[1].autoscaling_config: "
            "max_replicas (2) must be greater than or equal to min_replicas (3)!"
        ),
    ),
    (
        "max_replicas: 2}",
        "max_replicas: 2, policy: {policy_function: 'no_such_module:f'}}",
        (
            "c.yaml:46: applications[0].deployments[1].autoscaling_config: "
            "ModuleNotFoundError: No module named 'no_such_module'"
        ),
    ),
    (
        "name: Router",
        "name: Ruoter",
        "c.yaml:42: applications[0].deployments[0].name: unknown deployment 'Ruoter'; did you mean 'Router'?",
    ),
    (
        "name: Router",
        "name: Ingress",
        "c.yaml:45: applications[0].deployments[1].name: deployment 'Ingress' stands here twice",
    ),
    (
        "my_graph:build",
        "my_grap:build",
        "c.yaml:10: applications[0].import_path: no module 'my_grap'; did you mean 'my_graph'?",
    ),
    (
        "my_graph:build",
        "my_graph:biuld",
        "c.yaml:10: applications[0].import_path: 'my_graph' has no 'biuld'; did you mean 'build'?",
    ),
    (
        "my_graph:build",
        "json.decoder",
        (
            "c.yaml:10: applications[0].import_path: "
            "'json.decoder' is a module, not an application or a function that builds one"
        ),
    ),
    (
        "my_graph:build",
        "my_broken:build",
        "c.yaml:10: applications[0].import_path: importing 'my_broken' raised OSError: no licence",
    ),
]

ARGS = [
    (
        "default_model: small",
        "defaultmodel: small",
        "37: applications[0].args.defaultmodel: unknown key; did you mean 'default_model'?",
    ),
    (
        "default_model: small",
        "default_model: small\n      on: 1",
        "38: applications[0].args.True: unknown key; did you mean 'router'?",
    ),
    (
        "{ticket: 100}",
        "{ticket: 100, 2024-01-01: 5}",
        (
            "25: applications[0].args.programs[0].levels.minimal.max_input_chars: "
            "there is no input '2024-01-01'; there is 'context', 'ticket'"
        ),
    ),
    ("quality: 0.9", "qualty: 0.9", "31: applications[0].args.models[0].qualty: unknown key; did you mean 'quality'?"),
    ("quality: 0.9", "quality: 1.5", "31: applications[0].args.models[0].quality: must be at most 1"),
    ("quality: 0.9", "quality: yes", "31: applications[0].args.models[0].quality: must be a number"),
    ("quality: 0.9", 'quality: "0.9"', "31: applications[0].args.models[0].quality: must be a number"),
    ("quality: 0.9", "latency_s: .inf", "31: applications[0].args.models[0].latency_s: must be a finite number"),
    ("quality: 0.9", "latency_s: 0", "31: applications[0].args.models[0].latency_s: must be above 0"),
    (
        "{input_usd_per_1m_tokens: 2.5}",
        "{input_usd: 2.5}",
        "32: applications[0].args.models[0].price.input_usd: unknown key; did you mean 'input_usd_per_1m_tokens'?",
    ),
    ("{min: 1, max: 2}", "{min: 3, max: 2}", "33: applications[0].args.models[0].replicas: max (2) is below min (3)"),
    (
        "lm: openai/gpt-4o\n",
        "lm: gpt-4o\n",
        "30: applications[0].args.models[0].lm: must be a DSPy model string such as openai/gpt-4o",
    ),
    (
        "http://127.0.0.1:1/v1",
        "http://user:s3cret@127.0.0.1:port/v1",
        "36: applications[0].args.models[1].api_base: names no host and port that could be connected to",
    ),
    (
        "http://127.0.0.1:1/v1",
        "http://[::1/v1",
        "36: applications[0].args.models[1].api_base: names no host and port that could be connected to",
    ),
    (
        "state: null",
        "record: {path: /x, max_bytes: 5}",
        "15: applications[0].args.programs[0].record.max_bytes: must be at least 1048576",
    ),
    ("          lm: openai/gpt-4o\n", "", "29: applications[0].args.models[0].lm: required key is missing"),
    ("name: small", "name: large", None),
    (
        "models: [small]",
        "models: [smal]",
        "24: applications[0].args.programs[0].levels.minimal.models[0]: unknown model 'smal'; did you mean 'small'?",
    ),
    (
        "models: [small]",
        "models: [gpt]",
        "24: applications[0].args.programs[0].levels.minimal.models[0]: unknown model 'gpt'; valid: large, small",
    ),
    (
        "models: [small]",
        "models: [small, small]",
        "24: applications[0].args.programs[0].levels.minimal.models[1]: model 'small' is listed twice",
    ),
    (
        "models: [small]",
        "models: []",
        "24: applications[0].args.programs[0].levels.minimal.models: must not be empty",
    ),
    (
        "default_model: small",
        "default_model: smal",
        "37: applications[0].args.default_model: unknown model 'smal'; did you mean 'small'?",
    ),
    (
        "minimal:",
        "minimum:",
        "23: applications[0].args.programs[0].levels.minimum: unknown key; did you mean 'minimal'?",
    ),
    (
        "          confidence_field: confidence\n",
        "",
        "13: applications[0].args.programs[0]: cache.low_confidence needs confidence_field, which is not set",
    ),
    (
        "state: null",
        "adapter: jsn",
        "15: applications[0].args.programs[0].adapter: must be one of chat, json, xml; did you mean 'json'?",
    ),
    (
        "name: triage",
        "name: tri/age",
        (
            "13: applications[0].args.programs[0].name: must be letters, digits, '.', '_' and '-', "
            "beginning with a letter or a digit"
        ),
    ),
    (
        "redis_url: null",
        "redis_url: http://me:secret@host",
        (
            "39: applications[0].args.cache.redis_url: must be embedded, redis://…, redis+cluster://…, "
            "redis+sentinel://…, the same with rediss, unix://… or null"
        ),
    ),
    (
        "redis_url: null",
        "redis_url: redis+sentinel://me:secret@host:1",
        ("39: applications[0].args.cache.redis_url: lacks the service's name: redis+sentinel://host:port/service"),
    ),
    (
        "{default_deadline_s: 60}",
        "{default_deadline_s: 900}",
        "40: applications[0].args.limits: default_deadline_s (900) is above max_deadline_s (600)",
    ),
    (
        "api_base: http://127.0.0.1:1/v1",
        "api_key_env: SWITCHYARD_TEST_UNSET",
        "36: applications[0].args.models[1].api_key_env: environment variable SWITCHYARD_TEST_UNSET is not set",
    ),
    (
        "api_base: http://127.0.0.1:1/v1",
        "api_key_env: gsk_4f9a0c",
        "36: applications[0].args.models[1].api_key_env: the environment variable it names is not set",
    ),
    (
        "api_base: http://127.0.0.1:1/v1",
        "api_key_env: sk-proj-4f9a0c",
        "36: applications[0].args.models[1].api_key_env: must be the name of an environment variable, not a key itself",
    ),
]

USER_CONFIG = [
    (
        "strategy: cost",
        "strategy: chepest",
        (
            "49: applications[0].deployments[2].user_config.routing.strategy: "
            "must be one of cost, quality, latency, ordered"
        ),
    ),
    (
        "strategy: cost",
        "stratgy: cost",
        "49: applications[0].deployments[2].user_config.routing.stratgy: unknown key; did you mean 'strategy'?",
    ),
    (
        "name: ControlPlane",
        "name: ControlPlane\n        num_replicas: 3",
        "48: applications[0].deployments[2].num_replicas: must be 1, as one decides for all",
    ),
    (
        "name: ControlPlane",
        "name: ControlPlane\n        autoscaling_config: {max_replicas: 2}",
        "48: applications[0].deployments[2].autoscaling_config.max_replicas: must be 1, as one decides for all",
    ),
    (
        "pin: null",
        "pin: minimum",
        (
            "51: applications[0].deployments[2].user_config.degradation.pin: "
            "must be one of full, degraded, minimal; did you mean 'minimal'?"
        ),
    ),
    (
        "pin: null",
        "minimal: {cpu: 0.5}",
        "50: applications[0].deployments[2].user_config.degradation: minimal.cpu (0.5) is below degraded.cpu (0.8)",
    ),
]


@pytest.mark.parametrize(
    ("right", "wrong", "line"),
    [*RAY_LEVELS, *((right, wrong, line and f"c.yaml:{line}") for right, wrong, line in ARGS + USER_CONFIG)],
)
def test_one_mistake_is_one_line(workdir: Path, right: str, wrong: str, line: str | None) -> None:
    assert BASE.count(right) == 1 or right.startswith("models: [small]")
    found = lines_of(BASE.replace(right, wrong))
    if line is not None:
        assert found == [line]


RULE = "            low_confidence: {below: 0.7, ttl_s: 5}\n"


@pytest.mark.parametrize(
    ("rules", "says"),
    [
        (
            ["{field: categry, equals: x, ttl_s: 1}"],
            ["rules[0].field: there is no output 'categry'; did you mean 'category'?"],
        ),
        (
            ["{field: category, equals: x, ttl_s: 1}", "{field: category, equals: no, ttl_s: 1}"],
            ["rules[1].equals: output 'category' never says false"],
        ),
        (["{field: confidence, equals: '1', ttl_s: 1}"], ["rules[0].equals: output 'confidence' never says \"1\""]),
        (["{field: confidence, equals: 1, ttl_s: 1}", "{field: category, equals: 'no', ttl_s: 0}"], []),
    ],
)
def test_a_cache_rule_that_no_answer_can_match_is_named(workdir: Path, rules: list[str], says: list[str]) -> None:
    listed = "".join(f"              - {rule}\n" for rule in rules)
    found = lines_of(BASE.replace(RULE, f"{RULE}            rules:\n{listed}"))
    where = "applications[0].args.programs[0].cache."
    assert [line.partition(where)[2] for line in found] == says
    assert all(line.startswith(f"c.yaml:{20 + len(rules)}:") for line in found)


def test_a_provider_that_nobody_knows_is_named(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(litellm_upstream, "litellm_providers", lambda: ["openai", "deepinfra"])  # it is slow to import
    monkeypatch.setattr(lm_upstream, "litellm_knows", lambda lm, _: lm.startswith("deepinfra/"))
    assert lines_of(BASE.replace("openai/gpt-4o-mini", "deepinfra/a")) == []
    assert lines_of(BASE.replace("openai/gpt-4o-mini", "opnai/a")) == [
        "c.yaml:35: applications[0].args.models[1].lm: unknown provider 'opnai'; did you mean 'openai'?"
    ]


def test_a_program_whose_constructor_takes_long_is_told_while_it_does(
    workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = threading.Event()
    said: list[str] = []
    monkeypatch.setattr(config_check, "SLOW_S", 0.01)
    monkeypatch.setattr(sys, "stderr", SimpleNamespace(write=lambda text: (said.append(text), told.set())))

    class Slow(dspy.Predict):
        def __init__(self) -> None:
            super().__init__("ticket -> category, confidence: float")
            told.wait(10)

    monkeypatch.setitem(sys.modules, "slow_program", SimpleNamespace(Slow=Slow))
    text = BASE.replace('"ticket, context -> category, confidence: float"', "slow_program:Slow")
    lines_of(text.replace("drop_inputs: [context]", "drop_inputs: []"))
    assert said == ["Still loading program 'triage' (slow_program:Slow) …\n"]


def test_a_name_taken_twice_says_by_whom(workdir: Path) -> None:
    found = lines_of(BASE.replace("name: small", "name: large"))
    assert "c.yaml:34: applications[0].args.models[1].name: 'large' is taken by models[0]" in found


PROGRAMS = [
    ("drop_inputs: [context]", "drop_inputs: [contxt]", 26, "levels.minimal.drop_inputs", "'contxt'", "'context'"),
    ("{ticket: 100}", "{tickt: 100}", 25, "levels.minimal.max_input_chars", "'tickt'", "'ticket'"),
    ('"ticket -> category"', '"tickt -> category"', 27, "levels.minimal.program", "'tickt'", "'ticket'"),
    (
        "confidence_field: confidence",
        "confidence_field: confidance",
        16,
        "confidence_field",
        "confidance",
        "confidence",
    ),
    ('"ticket, context -> category, confidence: float"', "no_such_module:Triage", 14, "program", "no_such_module", ""),
    ('"ticket, context -> category, confidence: float"', '"ticket ->"', 14, "program", "ticket ->", ""),
    ("state: null", "state: missing.json", 15, "state", "missing.json", ""),
]


@pytest.mark.parametrize(("right", "wrong", "line", "key", "names", "nearest"), PROGRAMS)
def test_what_a_program_lacks_is_one_line(
    workdir: Path, right: str, wrong: str, line: int, key: str, names: str, nearest: str
) -> None:
    found = lines_of(BASE.replace(right, wrong))
    assert len(found) == 1
    assert found[0].startswith(f"c.yaml:{line}: applications[0].args.programs[0].{key}: ")
    assert names in found[0]
    assert nearest in found[0]


def test_the_state_of_another_program_is_one_line(workdir: Path) -> None:
    dspy.Predict("question -> answer").save("other.json")
    found = lines_of(BASE.replace("state: null", "state: other.json"))
    assert len(found) == 1
    assert found[0].startswith("c.yaml:15: applications[0].args.programs[0].state: ")


def test_every_mistake_is_found_at_once_in_the_order_of_lines(workdir: Path) -> None:
    text = BASE.replace("  port: 8000", "  prot: 8000").replace("quality: 0.9", "qualty: 0.9")
    text = text.replace("strategy: cost", "strategy: quick")
    assert [line.split(":")[1] for line in lines_of(text)] == ["4", "31", "49"]


ONE_AT_LEAST = """\
      cache:
        redis_url: null
        replicas:
          min: 0
      ingress:
        min: 0
        max: 2
      router: {min: 0}
"""


def test_what_may_not_scale_to_zero_is_named_key_by_key_beside_other_mistakes(workdir: Path) -> None:
    text = BASE.replace("      cache:\n        redis_url: null\n", ONE_AT_LEAST).replace("quality: 0.9", "quality: 9")
    args = "applications[0].args."
    assert lines_of(text) == [
        f"c.yaml:31: {args}models[0].quality: must be at most 1",
        f"c.yaml:41: {args}cache.replicas.min: must be at least 1",
        f"c.yaml:43: {args}ingress.min: must be at least 1",
        f"c.yaml:45: {args}router.min: must be at least 1",
    ]


def test_a_model_may_scale_to_zero(workdir: Path) -> None:
    assert lines_of(BASE.replace("{min: 1, max: 2}", "{min: 0, max: 2}")) == []


UNREADABLE = [
    ("", "c.yaml:1: the file is empty"),
    ("# nothing\n", "c.yaml:1: the file is empty"),
    ("- a\n", "c.yaml:1: must be a mapping with the key 'applications'"),
    ("a: [1\nb: 2\n", "c.yaml:2: not valid YAML: expected ',' or ']', but got ':'"),
    ("a: *nowhere\n", "c.yaml:1: not valid YAML: found undefined alias 'nowhere'"),
    ("a: 1\n---\nb: 2\n", "c.yaml:2: not valid YAML: but found another document"),
    (
        "a: !!python/object:os.system {}\n",
        (
            "c.yaml:1: not valid YAML: "
            "could not determine a constructor for the tag 'tag:yaml.org,2002:python/object:os.system'"
        ),
    ),
    ("applications: []\nb: 1\napplications: []\n", "c.yaml:3: applications: key stands here twice, first on line 1"),
    ("a: " + "[" * 3000, "c.yaml:1: nested too deeply"),
    ("a: &a [*a]\n", "c.yaml:1: nested too deeply"),
    ("a: 2024-13-77\n", "c.yaml:1: not valid YAML: month must be in 1..12"),
    ("a: 1\nb: 2024-13-77\n", "c.yaml:2: not valid YAML: month must be in 1..12"),
    ("a: 1\nb: !!bool x\n", "c.yaml:2: not valid YAML: not what its tag tag:yaml.org,2002:bool says"),
    ("a: 1\nb: \x07\n", "c.yaml:2: not valid YAML: special characters are not allowed"),
]


@pytest.mark.parametrize(("text", "line"), UNREADABLE)
def test_what_is_no_readable_yaml_is_one_line(workdir: Path, text: str, line: str) -> None:
    assert lines_of(text) == [line]


def test_aliases_that_expand_to_billions_are_refused(workdir: Path) -> None:
    levels = "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10))
    assert lines_of(f"a0: &a0 [x]\n{levels}") == [
        "c.yaml:1: holds more than 100000 values once its aliases are expanded"
    ]


def test_a_file_that_cannot_be_read_is_one_line(workdir: Path) -> None:
    Path("binary.yaml").write_bytes(b"a: 1\nb: \xff\n")
    assert [str(p) for p in check_file(Path("none.yaml"))] == ["none.yaml: no such file"]
    assert [str(p) for p in check_file(workdir)] == [f"{workdir}: is a directory, not a file"]
    assert [str(p) for p in check_file(Path("binary.yaml"))] == ["binary.yaml:2: not UTF-8 text (byte 8)"]


SHAPES = [
    ("applications: {}\n", "c.yaml:1: applications: must be a list"),
    ("applications:\n", "c.yaml:1: applications: must be a list"),
    ("applications: []\n", "c.yaml:1: applications: must not be empty"),
    ("applications: [x]\n", "c.yaml:1: applications[0]: must be a mapping"),
    ("http_options: {}\n", "c.yaml:1: applications: required key is missing"),
    ("applications: [{name: a}]\n", "c.yaml:1: applications[0].import_path: required key is missing"),
    (
        "applications: [{import_path: my_graph:build, deployments: [x], args: {}}]\n",
        "c.yaml:1: applications[0].deployments[0]: must be a mapping",
    ),
    (
        "http_options: 8000\napplications: []\n",
        "c.yaml:1: http_options: must be a mapping",
    ),
]


@pytest.mark.parametrize(("text", "line"), SHAPES)
def test_a_wrong_shape_is_said_and_not_crashed_on(workdir: Path, text: str, line: str) -> None:
    assert line in lines_of(text)


def test_lines_are_right_through_anchors_and_merge_keys(workdir: Path) -> None:
    text = BASE.replace(
        "      models:\n        - name: large", "      models:\n        - &model\n          name: large"
    )
    text = text.replace("        - name: small\n", "        - <<: *model\n          name: small\n          qualty: 1\n")
    assert lines_of(text) == ["c.yaml:37: applications[0].args.models[1].qualty: unknown key; did you mean 'quality'?"]


def test_a_key_set_by_the_files_own_runtime_env_is_set(workdir: Path) -> None:
    text = BASE.replace("api_base: http://127.0.0.1:1/v1", "api_key_env: MY_SECRET_KEY")
    assert len(lines_of(text)) == 1
    assert lines_of(text.replace("    args:", "    runtime_env: {env_vars: {MY_SECRET_KEY: x}}\n    args:")) == []


def test_a_key_of_nothing_but_space_is_not_set(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_SECRET_KEY", " \n")
    (line,) = lines_of(BASE.replace("api_base: http://127.0.0.1:1/v1", "api_key_env: MY_SECRET_KEY"))
    assert line.endswith("environment variable MY_SECRET_KEY is not set")


def test_a_key_that_only_one_deployment_gets_is_not_there_when_the_graph_is_built(workdir: Path) -> None:
    text = BASE.replace("api_base: http://127.0.0.1:1/v1", "api_key_env: MY_SECRET_KEY")
    text = text.replace("num_cpus: 0.5", "runtime_env: {env_vars: {MY_SECRET_KEY: x}}")
    (line,) = lines_of(text)
    assert line.endswith("api_key_env: environment variable MY_SECRET_KEY is not set")
    with pytest.raises(BuildRefused):
        load_app_config(args_of(text))


def test_a_control_plane_of_one_may_be_said_so(workdir: Path) -> None:
    assert lines_of(BASE.replace("name: ControlPlane", "name: ControlPlane\n        num_replicas: 1")) == []


def test_an_import_path_may_lead_to_an_application(workdir: Path) -> None:
    Path("my_bound.py").write_text("from ray import serve\nclass A: ...\napp = serve.deployment(A).bind()\n")
    assert lines_of("applications: [{import_path: 'my_bound:app'}]\n") == []


def test_a_bad_import_does_not_hide_the_mistakes_in_args(workdir: Path) -> None:
    text = BASE.replace("my_graph:build", "my_grap:build").replace("quality: 0.9", "qualty: 0.9")
    assert [line.split(":")[1] for line in lines_of(text)] == ["10", "31"]


def test_a_line_never_holds_a_control_character(workdir: Path) -> None:
    (line,) = lines_of(BASE.replace("quality: 0.9", '"qual\\nity\\e[31m": 0.9'))
    assert line.isprintable()


def args_of(text: str) -> dict[str, Any]:
    args: dict[str, Any] = yaml.safe_load(text)["applications"][0]["args"]
    return args


@pytest.mark.parametrize(("right", "wrong", "line"), [row for row in ARGS if row[2] is not None])
def test_a_graph_refuses_the_same_in_the_same_words(workdir: Path, right: str, wrong: str, line: str) -> None:
    with pytest.raises(BuildRefused) as refused:
        load_app_config(args_of(BASE.replace(right, wrong)))
    assert list(refused.value.problems) == [line.partition("applications[0].")[2]]
    assert isinstance(refused.value, ConfigError)
    assert str(refused.value) == refused.value.problems[0]


def test_a_graph_gets_its_configuration(workdir: Path) -> None:
    config = load_app_config(args_of(BASE))
    assert isinstance(config, AppConfig)
    assert config.programs[0].levels.full.models == ("large", "small")
    assert load_app_config(config) == config


def test_policy_is_refused_in_the_same_words() -> None:
    assert load_policy(None).routing.strategy == "cost"
    with pytest.raises(ConfigError) as refused:
        load_policy({"routing": {"stratgy": "cost"}})
    assert refused.value.problems == ("user_config.routing.stratgy: unknown key; did you mean 'strategy'?",)


def test_the_default_file_is_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    assert [str(problem) for problem in check_file(Path("serve_config.yaml"))] == []


def test_the_schema_closes_every_level_and_explains_our_keys() -> None:
    definitions = file_schema()["$defs"]
    assert definitions["ServeApplicationSchema"]["additionalProperties"] is False
    assert definitions["AutoscalingConfig"]["additionalProperties"] is False
    for name in ("AppConfig", "Policy", "ModelConfig", "ProgramConfig", "BreakerPolicy"):
        undescribed = [
            key for key, field in definitions[name]["properties"].items() if not field.keys() & {"description", "$ref"}
        ]
        assert undescribed == []
    references = set(textwrap.dedent(json.dumps(file_schema())).split('"#/$defs/')[1:])
    assert {reference.partition('"')[0] for reference in references} <= set(definitions)
