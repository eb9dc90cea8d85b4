"""From a ``serve_config.yaml`` for one machine to what a cluster runs: the same file but for what lies elsewhere there.

Containers differ from a laptop in three places: who may connect (``http_options.host``), where the shared cache is
(``cache.redis_url``) and, for a provider on the laptop itself, where that is (``api_base``).
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import yaml

from serve_app.config_lines import read_document
from serve_app.config_problem import Key, Problem, unknown
from serve_app.errors import ConfigError
from serve_app.launch_ports import endpoint_of
from serve_app.redis_url import parse_redis_url

PORT: Final = 8000
"""Where the manifests' probes and services look for Serve."""
_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1", "0.0.0.0"})  # noqa: S104 - compared with, never bound


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What differs in the cluster.

    Attributes:
        http_host: address Serve listens on.
        redis_url: the cache's server; ``None`` keeps the file's, unless that is ``embedded``, which only one node sees.
        api_bases: provider URLs by model.
    """

    http_host: str = "0.0.0.0"  # noqa: S104 - the pods' network policy decides who gets in
    redis_url: str | None = None
    api_bases: Mapping[str, str] = field(default_factory=dict)


EMBEDDED_REPLACED_BY: Final = "redis://switchyard-cache:6379/0"
"""The cache's server in ``cluster/``."""


def rayservice_patch(file: Path, there: Surroundings, name: str = "switchyard") -> str:
    """A merge patch that gives the RayService ``name`` its ``serveConfigV2``; for kustomize and ``kubectl patch``.

    Raises:
        ConfigError: one line for each thing that keeps the file from running in a cluster.
    """
    spec = {"serveConfigV2": _Text(_dump(_adapted(file, there)))}
    manifest = {"apiVersion": "ray.io/v1", "kind": "RayService", "metadata": {"name": name}, "spec": spec}
    return _heading(file, "switchyard kuberay render") + _dump(manifest)


def serve_config(file: Path, there: Surroundings) -> str:
    """The configuration alone, for ``switchyard run`` in a container or ``serve deploy``.

    Raises:
        ConfigError: as ``rayservice_patch``.
    """
    return _heading(file, "switchyard kuberay render --config-only") + _dump(_adapted(file, there))


def _heading(file: Path, command: str) -> str:
    return f"# Made from {file.as_posix()} by `{command}`: change that file, then render again.\n"


def _adapted(file: Path, there: Surroundings) -> dict[str, Any]:
    document = read_document(file)
    if document.problems:
        raise ConfigError([str(problem) for problem in document.problems])
    from serve_app.config_apps import check_applications  # noqa: PLC0415 - Ray is slow to import
    from serve_app.config_serve import check_serve  # noqa: PLC0415 - same

    config = _moved(document.value, there)
    variables = os.environ | dict.fromkeys(_key_variables(config), "from a secret of the cluster")
    problems = [*check_serve(config), *check_applications(config, variables)]
    problems = problems or list(_unreachable(config))
    located = sorted((document.locate(problem) for problem in problems), key=lambda problem: problem.line)
    if located or (located := list(_unknown_models(config, there))):
        raise ConfigError([str(problem) for problem in located])
    return config


def _moved(document: Mapping[str, Any], there: Surroundings) -> dict[str, Any]:
    """The configuration as it is there; a part of the wrong shape is left for the checks to name."""
    config = copy.deepcopy(dict(document))
    http = config.get("http_options")
    if http is None or isinstance(http, dict):
        config["http_options"] = {**(http or {}), "host": there.http_host}
    for _, args in _switchyards(config):
        cache = args.setdefault("cache", {})
        if isinstance(cache, dict):
            is_embedded = cache.get("redis_url", "embedded") == "embedded"
            cache["redis_url"] = there.redis_url or (EMBEDDED_REPLACED_BY if is_embedded else cache["redis_url"])
        for _, model in _models(args):
            name = model.get("name")
            if isinstance(name, str) and name in there.api_bases:
                model["api_base"] = there.api_bases[name]
    return config


def _unreachable(config: Mapping[str, Any]) -> Iterator[Problem]:
    """Addresses that mean the pod itself there, and are served by nothing in it."""
    port = endpoint_of(config).port
    if port != PORT:
        yield Problem(("http_options", "port"), f"must be {PORT}, where the manifests' probes and services look")
    own = [(app.get("route_prefix") or "").rstrip("/") for app in config["applications"]]
    for key, args in _switchyards(config):
        if _is_pods_own(args["cache"]["redis_url"]):
            yield Problem((*key, "cache", "redis_url"), "is the pod itself there; name the server with --redis-url")
        for position, model in _models(args):
            base = model.get("api_base") or ""
            if _is_loopback(base) and not _is_served_here(base, port, own):
                text = f"is the pod itself there; name the provider with --api-base {model['name']}=URL"
                yield Problem((*key, "models", position, "api_base"), text)


def _is_pods_own(redis_url: str | None) -> bool:
    where = parse_redis_url(redis_url) if redis_url else None
    return where is not None and (bool(where.path) or any(host in _LOOPBACK for host, _ in where.hosts))


def _is_loopback(url: str) -> bool:
    return urlsplit(url).hostname in _LOOPBACK


def _is_served_here(url: str, port: int, prefixes: list[str]) -> bool:
    parts = urlsplit(url)
    return parts.port == port and any(parts.path.startswith(f"{prefix}/") for prefix in prefixes if prefix)


def _unknown_models(config: Mapping[str, Any], there: Surroundings) -> Iterator[Problem]:
    names = [model["name"] for _, args in _switchyards(config) for _, model in _models(args)]
    for name in there.api_bases:
        if name not in names:
            yield Problem(("--api-base",), unknown("model", name, names))


def _key_variables(config: Mapping[str, Any]) -> Iterator[str]:
    """Variables that hold keys: in the cluster they come from a secret, so they need not be set here."""
    for _, args in _switchyards(config):
        for _, model in _models(args):
            if isinstance(model.get("api_key_env"), str):
                yield model["api_key_env"]


def _switchyards(config: Mapping[str, Any]) -> Iterator[tuple[Key, dict[str, Any]]]:
    """The ``args`` of the applications that are ours."""
    for position, application in _mappings(config.get("applications")):
        args = application.get("args")
        if isinstance(args, dict) and "programs" in args:
            yield ("applications", position, "args"), args


def _models(args: Mapping[str, Any]) -> Iterator[tuple[int, dict[str, Any]]]:
    return _mappings(args.get("models"))


def _mappings(items: object) -> Iterator[tuple[int, dict[str, Any]]]:
    for position, item in enumerate(items if isinstance(items, list) else ()):
        if isinstance(item, dict):
            yield position, item


class _Text(str):
    """Written as a block of lines."""

    __slots__ = ()


class _Dumper(yaml.SafeDumper):
    """Writes every part in full, and ``_Text`` as a block."""

    def ignore_aliases(self, _data: Any) -> bool:  # noqa: ANN401 - PyYAML's
        return True


_Dumper.add_representer(
    _Text, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", str(text), style="|")
)


def _dump(value: Mapping[str, Any]) -> str:
    return yaml.dump(
        dict(value), Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=None, width=120
    )
