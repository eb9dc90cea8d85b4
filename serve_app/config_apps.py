"""The applications of a ``serve_config.yaml``: their builders, their ``args`` and their ``deployments``."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from serve_app.config import AppConfig
from serve_app.config_check import Invalid, check_app, parse_section
from serve_app.config_imports import Builder, find_builder, importing_from, is_app
from serve_app.config_problem import Key, Problem, from_pydantic, unknown
from serve_app.errors import ConfigError
from serve_app.policy import Policy

CONTROL_PLANE = "ControlPlane"
"""The deployment whose ``user_config`` is a ``Policy``."""


def check_applications(document: Mapping[str, Any], environment: Mapping[str, str] | None = None) -> list[Problem]:
    """What is wrong inside the applications, as far as they are mappings; Ray's own keys are checked elsewhere.

    ``environment`` is what the replicas will have, this process' own unless told otherwise.
    """
    variables = os.environ if environment is None else environment
    applications = document.get("applications")
    problems: list[Problem] = []
    with importing_from(Path.cwd()):
        for position, application in enumerate(applications if isinstance(applications, list) else ()):
            if isinstance(application, Mapping):
                problems += [found.under(("applications", position)) for found in _application(application, variables)]
    return problems


def _application(application: Mapping[str, Any], variables: Mapping[str, str]) -> Iterator[Problem]:
    args = application.get("args", {})
    builder: Builder | None = None
    if isinstance(application.get("import_path"), str):
        try:
            builder = find_builder(application["import_path"])
        except ConfigError as error:
            yield from (Problem(("import_path",), text) for text in error.problems)
    if not isinstance(args, Mapping):
        return
    model = AppConfig if is_app(builder, args) else builder and builder.args
    config = None
    try:
        config = _parse(model, args) if model else None
    except Invalid as error:
        yield from (problem.under(("args",)) for problem in error.problems)
    if isinstance(config, AppConfig):
        problems = check_app(config, environment={**variables, **_env_vars(application)})
        yield from (problem.under(("args",)) for problem in problems)
    names = builder.deployment_names if builder else None
    yield from _deployments(application, names(config) if names and config else None, is_ours=model is AppConfig)


def _parse(model: type[BaseModel], args: Mapping[str, Any]) -> BaseModel:
    """``args`` as that builder gets them: our own strictly, any other model as Ray validates it."""
    if model is AppConfig:
        return parse_section(AppConfig, args)
    try:
        return model.model_validate(args)
    except ValidationError as error:
        raise Invalid(from_pydantic(model, error, args)) from None


def _deployments(application: Mapping[str, Any], names: tuple[str, ...] | None, *, is_ours: bool) -> Iterator[Problem]:
    seen: list[str] = []
    for key, deployment in _mappings(application, "deployments"):
        name = deployment.get("name")
        if not isinstance(name, str):
            continue
        if name in seen:
            yield Problem((*key, "name"), f"deployment '{name}' stands here twice")
        elif names is not None and name not in names:
            yield Problem((*key, "name"), unknown("deployment", name, names))
        seen.append(name)
        if is_ours and name == CONTROL_PLANE:
            yield from (problem.under((*key, "user_config")) for problem in _policy(deployment.get("user_config")))
            yield from (problem.under(key) for problem in _more_than_one(deployment))


def _more_than_one(deployment: Mapping[str, Any]) -> Iterator[Problem]:
    """Sizes of the control plane, of which there is one: each of several would know a part, and decide by that."""
    scaling = deployment.get("autoscaling_config")
    sizes: dict[Key, object] = {("num_replicas",): deployment.get("num_replicas")}
    if isinstance(scaling, Mapping):
        sizes["autoscaling_config", "max_replicas"] = scaling.get("max_replicas")
    yield from (
        Problem(key, "must be 1, as one decides for all") for key, size in sizes.items() if size not in (None, 1)
    )


def _policy(user_config: object) -> list[Problem]:
    if not isinstance(user_config, Mapping):
        return []
    try:
        parse_section(Policy, user_config)
    except Invalid as error:
        return error.problems
    return []


def _mappings(parent: Mapping[str, Any], name: str) -> Iterator[tuple[Key, Mapping[str, Any]]]:
    listed = parent.get(name)
    for position, item in enumerate(listed if isinstance(listed, list) else ()):
        if isinstance(item, Mapping):
            yield (name, position), item


def _env_vars(application: Mapping[str, Any]) -> dict[str, str]:
    """Variables that the application's ``runtime_env`` sets; a deployment's own are not there when it is built."""
    runtime_env = application.get("runtime_env")
    variables = runtime_env.get("env_vars") if isinstance(runtime_env, Mapping) else None
    return dict(variables) if isinstance(variables, Mapping) else {}
