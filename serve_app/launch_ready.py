"""Ask a starting service whether it is ready, and show how to call it."""

from __future__ import annotations

import http.client
import json
import shlex
import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any, Final

PROBE_TIMEOUT_S: Final = 2.0
NOT_FOUND: Final = 404

_SAMPLES: Final[Mapping[str, Any]] = {
    "string": "Hello",
    "integer": 1,
    "number": 1.0,
    "boolean": True,
    "array": [],
    "object": {},
    "null": None,
}
_FORMATS: Final[Mapping[str, str]] = {
    "date": "2026-01-31",
    "date-time": "2026-01-31T12:00:00Z",
    "time": "12:00:00Z",
    "duration": "PT1M",
    "uuid": "00000000-0000-4000-8000-000000000000",
    "uri": "https://example.com",
}


def is_ready(base_url: str) -> bool:
    """Whether ``GET /ready`` answers 200; an application without that route counts as ready."""
    try:
        with _get(f"{base_url}/ready") as response:
            return bool(response.status == http.client.OK)
    except urllib.error.HTTPError as error:
        with error:
            return error.code == NOT_FOUND
    except (OSError, http.client.HTTPException):
        return False


def urls_of(document: Mapping[str, Any], base_url: str) -> dict[str, str]:
    """Where each application of a valid file answers, by its name; one without a route is called by others only."""
    return {
        application.get("name", "default"): base_url + prefix.rstrip("/")
        for application in document["applications"]
        if (prefix := application.get("route_prefix", "/")) is not None
    }


def announcement(urls: Mapping[str, str]) -> list[str]:
    """Lines that say where applications answer and, of those that hold programs, how to call the first."""
    examples = {name: example_call(url) for name, url in urls.items()}
    lines = [
        f"Ready: {url} ({name}, API: {url}/docs)" if examples[name] else f"Ready: {url} ({name})"
        for name, url in urls.items()
    ]
    calls = [f"  {call}" for call in examples.values() if call]
    return [*lines, "Try:", *calls, "Ctrl-C ends it."] if calls else [*lines, "Ctrl-C ends it."]


def example_call(base_url: str) -> str:
    """A ``curl`` for the first program, with a value of the right type for each input it needs; empty if unknown."""
    try:
        name = _get_json(f"{base_url}/v1/programs")["programs"][0]["name"]
        url = f"{base_url}/v1/programs/{name}"
        inputs = sample(_get_json(url)["inputs"])
    except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError):
        return ""  # not one of our graphs; there is nothing to show
    body = shlex.quote(json.dumps({"inputs": inputs}, ensure_ascii=False))
    return f"curl -s {url} -H 'Content-Type: application/json' -d {body}"


def sample(schema: Mapping[str, Any], definitions: Mapping[str, Any] | None = None) -> Any:  # noqa: ANN401 - any JSON
    """A small value that fits a JSON Schema of inputs; the schema's own example where it has one.

    Raises:
        KeyError: the schema refers to what is not in it, or to itself without an end.
    """
    known = schema.get("$defs", {}) if definitions is None else definitions
    if "$ref" in schema:
        name = _name(schema)
        return sample(known[name], {other: known[other] for other in known if other != name})
    for key in ("examples", "enum"):
        if schema.get(key):
            return schema[key][0]
    for key in ("const", "default"):
        if key in schema:
            return schema[key]
    for key in ("anyOf", "oneOf", "allOf"):
        if schema.get(key):  # what contains itself is no choice
            ends = [choice for choice in schema[key] if "$ref" not in choice or _name(choice) in known]
            return sample((ends or schema[key])[0], known)
    if schema.get("properties"):
        needed = schema.get("required", [])
        return {name: sample(inner, known) for name, inner in schema["properties"].items() if name in needed}
    plain = _SAMPLES.get(schema.get("type", "string"), "Hello")
    return _FORMATS.get(schema.get("format", ""), plain) if isinstance(plain, str) else plain


def _name(reference: Mapping[str, Any]) -> str:
    return str(reference["$ref"]).rpartition("/")[2]


def _get_json(url: str) -> Any:  # noqa: ANN401 - any JSON
    with _get(url) as response:
        return json.load(response)


def _get(url: str) -> Any:  # noqa: ANN401 - urllib's response has no public type
    # No proxy, and no look at the certificate: this asks the very process that was just started here.
    context = ssl._create_unverified_context()  # noqa: S323, SLF001 - as said above
    handlers = (urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))
    return urllib.request.build_opener(*handlers).open(url, timeout=PROBE_TIMEOUT_S)
