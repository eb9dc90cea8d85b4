"""JSON Schema of the whole ``serve_config.yaml``, for editors."""

from __future__ import annotations

from typing import Any, Final

from pydantic import BaseModel
from ray.serve.schema import ServeDeploySchema

from serve_app.config import AppConfig
from serve_app.config_apps import CONTROL_PLANE
from serve_app.policy import Policy

_REF: Final = "#/$defs/{model}"

_IS_GRAPH: Final = {
    "anyOf": [
        {"properties": {"import_path": {"pattern": r"^graphs\."}}, "required": ["import_path"]},
        {"properties": {"args": {"required": ["programs"]}}, "required": ["args"]},
    ]
}
_IS_CONTROL_PLANE: Final = {"properties": {"name": {"const": CONTROL_PLANE}}, "required": ["name"]}


def file_schema() -> dict[str, Any]:
    """Ray's schema with ``AppConfig`` as the ``args`` of a graph and ``Policy`` as the control plane's ``user_config``.

    Unknown keys are errors at Ray's levels too, where Ray itself would ignore them.
    """
    schema = _schema(ServeDeploySchema)
    definitions: dict[str, Any] = schema.pop("$defs")
    for model in (AppConfig, Policy):
        own = _schema(model)
        definitions |= own.pop("$defs", {})
        definitions[model.__name__] = own
    for definition in definitions.values():
        _forbid_unknown_keys(definition)
    _when(definitions["ServeApplicationSchema"], _IS_GRAPH, "args", "AppConfig")
    _when(definitions["DeploymentSchema"], _IS_CONTROL_PLANE, "user_config", "Policy")
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "serve_config.yaml"}
    return {**schema, **head, "additionalProperties": False, "$defs": definitions}


def _schema(model: type[BaseModel]) -> dict[str, Any]:
    return model.model_json_schema(ref_template=_REF)


def _forbid_unknown_keys(definition: dict[str, Any]) -> None:
    """Close the object, and take out ``any mapping`` where Ray says ``any mapping, or this model``."""
    if "properties" not in definition:
        return
    definition.setdefault("additionalProperties", False)
    for field in definition["properties"].values():
        choices = field.get("anyOf", [])
        if any("$ref" in choice for choice in choices):
            field["anyOf"] = [choice for choice in choices if choice.get("type") != "object"]


def _when(definition: dict[str, Any], condition: dict[str, Any], key: str, model: str) -> None:
    definition["if"] = condition
    definition["then"] = {"properties": {key: {"$ref": _REF.format(model=model)}}}
