"""Ray Serve's own levels of ``serve_config.yaml``, checked against Ray's own models.

Ray accepts a file with keys it does not know and goes on without them, so a typo there changes nothing and says
nothing. Which keys exist is read from ``ray.serve.schema``, so it is right for the installed version.
"""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, get_args, get_origin

from pydantic import BaseModel, ValidationError
from ray.runtime_env import RuntimeEnv
from ray.serve.config import AutoscalingPolicy
from ray.serve.schema import ServeDeploySchema

from serve_app.config_problem import Key, Problem, from_pydantic, members, models_in, unknown_key, without_echoes
from serve_app.launch_ports import MAX_PORT, port_number

_ALSO_MODELLED: Final[Mapping[str, type[BaseModel]]] = {"autoscaling_policy": AutoscalingPolicy}
"""Fields that Ray types as a plain mapping and reads as a model later."""

_ROUTE: Final = re.compile(r"^/$|^/[^{}]*[^/{}]$")
_RUNTIME_ENV: Final = frozenset(name for name in RuntimeEnv.known_fields if not name.startswith("_"))


def check_serve(document: Mapping[str, Any]) -> list[Problem]:
    """Unknown keys and impossible values at Ray's levels; ``args`` and ``user_config`` are left to their owners."""
    shape = _Shape()
    shape.visit(ServeDeploySchema, document, ())
    if shape.broken:
        return shape.problems
    problems = shape.problems + _applications(document) + _ports(document) + _routes(document)
    sound = copy.deepcopy(dict(document))
    for model, value, key in shape.loose:
        found = _values(model, value, key)
        problems += found
        if found:
            _take_out(sound, key)  # Ray would stumble over it again, and over nothing else after it
    return without_echoes(problems + _values(ServeDeploySchema, sound, ()))


def _take_out(document: Any, key: Key) -> None:  # noqa: ANN401 - a document
    for part in key[:-1]:
        document = document[part]
    document.pop(key[-1], None)


def _values(model: type[BaseModel], value: Mapping[str, Any], key: Key) -> list[Problem]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Ray's deprecations are for those who write Ray
            model.model_validate(copy.deepcopy(dict(value)))
    except ValidationError as error:
        return [problem.under(key) for problem in from_pydantic(model, error, value)]
    except Exception as error:  # noqa: BLE001 - Ray's validators import what a person names, and that may raise anything
        return [Problem(key, f"{type(error).__name__}: {error}")]
    return []


def _applications(document: Mapping[str, Any]) -> list[Problem]:
    return [Problem(("applications",), "must not be empty")] if document.get("applications") == [] else []


def _ports(document: Mapping[str, Any]) -> list[Problem]:
    keys = [("http_options", "port"), ("grpc_options", "port")]
    given = [(key, port_number((document.get(key[0]) or {}).get(key[1]))) for key in keys]
    bad = [key for key, port in given if port is not None and not 0 < port <= MAX_PORT]
    return [Problem(key, f"must be between 1 and {MAX_PORT}") for key in bad]


def _routes(document: Mapping[str, Any]) -> list[Problem]:
    """Ray looks at route prefixes only when it deploys."""
    problems = []
    for position, application in enumerate(document.get("applications") or ()):
        route = application.get("route_prefix")
        if isinstance(route, str) and not _ROUTE.match(route):
            text = "must begin with '/', must not end with one, and takes no wildcards"
            problems.append(Problem(("applications", position, "route_prefix"), text))
    return problems


def _variables(value: object, key: Key) -> list[Problem]:
    """What keeps a variable from being set; YAML makes numbers and truth of what is not in quotes."""
    if value is not None and not isinstance(value, Mapping):
        return [Problem(key, "must be a mapping")]
    wrong = [name for name, text in (value or {}).items() if not (isinstance(name, str) and isinstance(text, str))]
    return [Problem((*key, str(name)), "name and value must be strings, in quotes where needed") for name in wrong]


@dataclass
class _Shape:
    """Walks Ray's models beside the document.

    Attributes:
        problems: unknown keys, and values that are no mapping or list where one must be.
        loose: parts that Ray types as "a mapping, or this model", and so never validates as the model.
        broken: whether a value has the wrong shape; Ray's validators then fail in ways of their own.
    """

    problems: list[Problem] = field(default_factory=list)
    loose: list[tuple[type[BaseModel], Mapping[str, Any], Key]] = field(default_factory=list)
    broken: bool = False

    def visit(self, annotation: Any, value: object, key: Key) -> None:  # noqa: ANN401 - an annotation
        if value is None and type(None) in members(annotation):
            return
        models = models_in(annotation)
        if models:
            self._visit_model(annotation, models[0], value, key)
            return
        for item in _model_items(annotation):
            if isinstance(value, list):
                for position, inner in enumerate(value):
                    self.visit(item, inner, (*key, position))
            else:
                self._break(key, "must be a list")

    def _visit_model(self, annotation: Any, model: type[BaseModel], value: object, key: Key) -> None:  # noqa: ANN401 - same
        if not isinstance(value, Mapping):
            self._break(key, "must be a mapping")
            return
        if any((get_origin(member) or member) is dict for member in members(annotation)):
            self.loose.append((model, value, key))
        for name, inner in value.items():
            self._visit_field(model, str(name), inner, (*key, str(name)))

    def _visit_field(self, model: type[BaseModel], name: str, value: object, key: Key) -> None:
        if name not in model.model_fields:
            self.problems.append(Problem(key, unknown_key(name, model.model_fields)))
        elif name == "runtime_env" and isinstance(value, Mapping):
            unknown = [str(inner) for inner in value if inner not in _RUNTIME_ENV]
            self.problems += [Problem((*key, inner), unknown_key(inner, _RUNTIME_ENV)) for inner in unknown]
            self.problems += _variables(value.get("env_vars"), (*key, "env_vars"))
        elif name in _ALSO_MODELLED:
            self.visit(dict[str, Any] | _ALSO_MODELLED[name] | None, value, key)
        else:
            self.visit(model.model_fields[name].annotation, value, key)

    def _break(self, key: Key, text: str) -> None:
        self.broken = True
        self.problems.append(Problem(key, text))


def _model_items(annotation: Any) -> list[Any]:  # noqa: ANN401 - an annotation has no narrower type
    """The item annotation of a list of models, if it is one."""
    items = [get_args(member)[0] for member in members(annotation) if get_origin(member) is list]
    return [item for item in items if models_in(item)]
