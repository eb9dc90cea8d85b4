"""Calls of one program over HTTP."""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final
from urllib.parse import quote, urljoin

import aiohttp
from pydantic_core import from_json

from serve_app.bulk.attempt import UNREACHABLE, Answer, Failure, is_worth_retrying
from serve_app.bulk.rows import Row
from serve_app.errors import ConfigError
from serve_app.messages import Priority

OK: Final = 200
ABSENT: Final = frozenset({OK, 404, 500, 502, 503, 504})
"""What a proxy says while no application is behind it, or a stranger in its place, when the words are not ours."""
REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
"""None is followed: after most of them a POST goes on as a GET (RFC 9110 §15.4)."""
REDIRECTED: Final = "redirected"
"""Code of a row that was sent elsewhere."""
PROBLEM_TYPE: Final = "application/problem+json"
MAX_SHOWN: Final = 120
"""Characters of a stranger's reply that an error shows."""
CONNECT_S: Final = 5.0
SILENCE_S: Final = 900.0
"""Seconds without a byte after which a call counts as lost: more than any deadline that is granted by default."""
DEFAULT_OPTIONS: Final = {"priority": Priority.SHEDDABLE.value}
"""Bulk work is the first to wait when there is too much; a row's own options go before."""


class HttpCaller:
    """Calls a program of the application at a URL, which includes the application's ``route_prefix``."""

    def __init__(self, session: aiohttp.ClientSession, url: str, program: str) -> None:
        self._session = session
        self._base = url
        self._path = f"/v1/programs/{quote(program, safe='')}"
        self._url = url.rstrip("/") + self._path

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str, program: str) -> AsyncIterator[HttpCaller]:
        """A caller whose connections end with the block.

        Raises:
            ConfigError: the URL is none, it redirects, no application answers there, or no such program is served.
        """
        _must_be_http(url)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=SILENCE_S)
        connector = aiohttp.TCPConnector(limit=0)  # the pool of rows is the bound
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
            caller = cls(session, url, program)
            await caller._must_be_served()
            yield caller

    async def __call__(self, row: Row) -> Answer | Failure:
        """One call, made once."""
        body = json.dumps({"inputs": row.inputs, "options": DEFAULT_OPTIONS | row.options}).encode()
        headers = {"content-type": "application/json"}
        try:
            async with self._session.post(self._url, data=body, headers=headers, allow_redirects=False) as reply:
                return self._redirect(reply) or _outcome(reply.status, reply.headers, await reply.read())
        except (aiohttp.ClientError, TimeoutError) as error:
            return Failure(UNREACHABLE, f"no answer: {error or type(error).__name__}", is_retryable=True)

    async def is_served(self) -> bool:
        """Whether the application is there now, and has the program."""
        try:
            return await self._fault() is None
        except (aiohttp.ClientError, TimeoutError):
            return False

    async def _fault(self) -> Failure | None:
        """What is wrong where the program should be; ``None`` when it is there."""
        async with self._session.get(self._url, allow_redirects=False) as reply:
            raw = await reply.read()
            is_there = reply.status == OK and "inputs" in _object(raw)
            return None if is_there else self._redirect(reply) or _failure(reply.status, reply.headers, raw)

    def _redirect(self, reply: aiohttp.ClientResponse) -> Failure | None:
        """Where the reply sends its caller; ``None`` when it does not."""
        location = reply.headers.get("Location")
        if reply.status not in REDIRECTS or not location:
            return None
        target = _absolute(self._url, location)
        base = target.removesuffix(self._path)
        where = f"{base}: give that URL" if base != target else _shortened(target)
        return Failure(REDIRECTED, f"{self._base} redirects to {where}")

    async def _must_be_served(self) -> None:
        url = self._base
        try:
            failure = await self._fault()
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise ConfigError([f"nothing answers at {url}: {error or type(error).__name__}"]) from error
        if failure is None:
            return
        if failure.code == REDIRECTED:
            raise ConfigError([failure.detail])
        if failure.code != UNREACHABLE:
            raise ConfigError([f"{url}: {failure.detail}"])
        hint = "perhaps it is still starting, or has a route_prefix that the URL lacks"
        raise ConfigError([f"something answers at {url}, but {failure.detail}; {hint}"])


def _must_be_http(url: str) -> None:
    if url.lower().startswith(("http://", "https://")):
        return
    if "://" in url:
        raise ConfigError([f"{url}: must begin with http:// or https://"])
    raise ConfigError([f"{url}: http:// is missing, as in http://{url}"])


def _outcome(status: int, headers: Mapping[str, str], raw: bytes) -> Answer | Failure:
    body = _object(raw) if status == OK else {}
    if "outputs" in body:
        return Answer(body["outputs"], body.get("meta", {}))
    return _failure(status, headers, raw)


def _failure(status: int, headers: Mapping[str, str], raw: bytes) -> Failure:
    """What the application says is wrong, or what another's reply in its place comes to."""
    if problem := _problem(headers, raw):
        detail = str(problem.get("detail") or f"HTTP status {status}")
        is_retryable = is_worth_retrying(status, _outcomes(problem))
        return Failure(problem["code"], detail, is_retryable, _retry_after_s(headers, problem))
    said, retry_after_s = f"HTTP status {status}: {_first_words(raw)}", _retry_after_s(headers, {})
    if status in ABSENT:
        return Failure(UNREACHABLE, f"no Switchyard application is there ({said})", True, retry_after_s)
    return Failure(f"http_{status}", said, is_worth_retrying(status, ()), retry_after_s)


def _outcomes(problem: Mapping[str, Any]) -> list[object]:
    """How the call's attempts ended, as the application says."""
    attempts = problem.get("attempts")
    return [each.get("outcome") for each in attempts if isinstance(each, dict)] if isinstance(attempts, list) else []


def _problem(headers: Mapping[str, str], raw: bytes) -> dict[str, Any]:
    """The application's problem document; empty when the reply is another's."""
    content_type = headers.get("Content-Type", "").partition(";")[0].strip().lower()
    body = _object(raw) if content_type == PROBLEM_TYPE else {}
    return body if isinstance(body.get("code"), str) else {}


def _absolute(url: str, location: str) -> str:
    """Where a ``Location`` leads that came from ``url``; as it is when it cannot be read."""
    try:
        return urljoin(url, location)
    except ValueError:
        return location


def _first_words(raw: bytes) -> str:
    return _shortened(" ".join(raw.decode(errors="replace").split()))


def _shortened(text: str) -> str:
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"


def _object(raw: bytes) -> dict[str, Any]:
    try:
        body = from_json(raw)
    except ValueError:  # a proxy's own page
        return {}
    return body if isinstance(body, dict) else {}


def _retry_after_s(headers: Mapping[str, str], problem: Mapping[str, Any]) -> float | None:
    """From the problem document, which has fractions of a second, else from the header (RFC 9110, delay-seconds)."""
    for given in (problem.get("retry_after_s"), headers.get("Retry-After")):
        try:
            seconds = float(given or "")
        except (TypeError, ValueError):  # nothing, or the header's other form, a date
            continue
        if math.isfinite(seconds) and seconds >= 0:
            return seconds
    return None
