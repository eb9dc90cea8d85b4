"""The simulated provider: admits a request, answers it at the model's pace, and misbehaves when told to."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from dataclasses import dataclass
from hashlib import blake2b
from random import Random
from typing import TYPE_CHECKING, Any

from serve_app.simulator.answer import Answer, Answerer
from serve_app.simulator.delivery import Delivery
from serve_app.simulator.exchange import BodyTooLargeError, ClientGoneError, CutError, Exchange
from serve_app.simulator.faults import Fault, FaultBoard, PlainFault, SilenceFault, SlowFault, StatusFault
from serve_app.simulator.limits import Limiter
from serve_app.simulator.openai_errors import (
    RequestError,
    content_policy_error,
    context_length_error,
    unknown_model_error,
)
from serve_app.simulator.openai_wire import CHARS_PER_TOKEN, Choice, Completion, prompt_tokens
from serve_app.simulator.replay import Recordings
from serve_app.simulator.stats import Stats

if TYPE_CHECKING:
    from collections.abc import Callable

    from serve_app.simulator.profile import ModelProfile, Profile

_log = logging.getLogger(__name__)
_MAX_BODY_BYTES = 32 * 2**20
_UNPARSEABLE = "I am sorry, but < I would rather not answer in that form."


class Model:
    """One simulated model: its profile, its answers, its patience.

    Raises:
        ConfigError: its recordings cannot be read.
    """

    def __init__(self, name: str, profile: ModelProfile) -> None:
        self.name = name
        self.profile = profile
        self.answerer = Answerer(name, profile.quality, Recordings.load(profile.replay) if profile.replay else None)
        self.limiter = Limiter(profile.max_concurrency, profile.requests_per_minute, clock=time.monotonic)


@dataclass(frozen=True, slots=True)
class Dialect:
    """One of OpenAI's interfaces to the same models.

    Attributes:
        read: turns a body into a checked chat completion request; raises ``RequestError``.
        reply: makes the reply from id, model, choices and input tokens.
        prefix: opens a reply's id.
    """

    read: Callable[[bytes], dict[str, Any]]
    reply: Callable[[str, str, tuple[Choice, ...], int], Completion]
    prefix: str


class Provider:
    """All models of a profile, with their faults and statistics.

    Args:
        profile: the models.

    Raises:
        ConfigError: a model's recordings cannot be read.
    """

    def __init__(self, profile: Profile) -> None:
        self._dice = Random(profile.seed)  # noqa: S311 - jitter and faults, nothing secret
        self.models = {name: Model(name, model) for name, model in profile.models.items()}
        self.faults = FaultBoard(self._dice)
        self.stats = Stats()

    async def serve(self, exchange: Exchange, dialect: Dialect) -> None:
        """Answer one request in the dialect it is written in."""
        try:
            request = dialect.read(await exchange.body(_MAX_BODY_BYTES))
            await self._admit(exchange, dialect, request)
        except BodyTooLargeError:
            error = RequestError(413, f"The body exceeds {_MAX_BODY_BYTES} bytes.")
            await exchange.reply(error.status, error.body)
        except RequestError as error:
            await exchange.reply(error.status, error.body, error.headers)
        except ClientGoneError:
            _log.debug("simulator.client_gone")
        finally:
            exchange.close()

    async def _admit(self, exchange: Exchange, dialect: Dialect, request: dict[str, Any]) -> None:
        model = self.models.get(request["model"])
        if model is None:
            raise unknown_model_error(request["model"])
        self.stats.began(model.name)
        outcome = "failed"
        try:
            outcome = await self._limited(exchange, dialect, model, request)
        except RequestError as error:
            outcome = error.outcome
            raise
        except (ClientGoneError, asyncio.CancelledError):
            outcome = "cancelled"
            raise
        except CutError:
            outcome = "stream_cut"
            raise
        finally:
            self.stats.ended(model.name, outcome)

    async def _limited(self, exchange: Exchange, dialect: Dialect, model: Model, request: dict[str, Any]) -> str:
        wait_s = model.limiter.admit()
        if wait_s is not None:
            raise RequestError(429, retry_after_s=max(1, math.ceil(wait_s)), outcome="rate_limited")
        try:
            return await self._answer(exchange, dialect, model, request)
        finally:
            model.limiter.release()

    async def _answer(self, exchange: Exchange, dialect: Dialect, model: Model, request: dict[str, Any]) -> str:
        """Serve the request or the fault that it meets; the word to count it under."""
        fault = self.faults.take(model.name)
        _raise_refusal(fault, model)
        size, window = prompt_tokens(request["messages"]), model.profile.context_window
        if window is not None and size > window:
            raise context_length_error(size, window)
        delivery = Delivery(exchange, model.profile, self._dice)
        if isinstance(fault, PlainFault) and fault.kind == "reset":
            await exchange.reset(is_started=False)
        elif isinstance(fault, SilenceFault) and fault.kind == "no_answer":
            await delivery.silence(fault.max_s, is_started=False)
        else:
            completion = _completion(dialect, model, request, size, is_unparseable=_is(fault, "unparseable"))
            await delivery.deliver(completion, request, fault)
        return fault.kind if fault is not None and not isinstance(fault, SlowFault) else "ok"


def _is(fault: Fault | None, kind: str) -> bool:
    return fault is not None and fault.kind == kind


def _raise_refusal(fault: Fault | None, model: Model) -> None:
    if isinstance(fault, StatusFault):
        outcome = f"status_{fault.status}"
        raise RequestError(
            fault.status, fault.message, code=fault.code, retry_after_s=fault.retry_after_s, outcome=outcome
        )
    if _is(fault, "content_policy"):
        raise content_policy_error()
    if _is(fault, "context_length"):
        window = model.profile.context_window or 8192
        raise context_length_error(window + 1, window)


def _completion(
    dialect: Dialect, model: Model, request: dict[str, Any], size: int, *, is_unparseable: bool
) -> Completion:
    count = request.get("n") or 1
    try:
        answers = [Answer(_UNPARSEABLE) if is_unparseable else model.answerer.answer(request, i) for i in range(count)]
        choices = tuple(_choice(request, answer) for answer in answers)
    except (AttributeError, LookupError, TypeError, ValueError, ArithmeticError, RecursionError):
        _log.warning("simulator.malformed_request", exc_info=True, extra={"model": model.name})
        raise RequestError(400, "A message, a tool or a schema of the request is malformed.") from None
    digest = blake2b(f"{model.name}\0{choices}".encode(errors="replace"), digest_size=12).hexdigest()
    return dialect.reply(f"{dialect.prefix}{digest}", model.name, choices, size)


def _choice(request: dict[str, Any], answer: Answer) -> Choice:
    """The answer as far as ``stop`` and the token limit let it get."""
    if answer.tool:
        return Choice("", answer.tool, answer.arguments, "tool_calls")
    text = answer.text
    stops = request.get("stop") or ()
    for stop in (stops,) if isinstance(stops, str) else stops:
        text = text.partition(stop)[0] if isinstance(stop, str) and stop else text
    limit = request.get("max_completion_tokens") or request.get("max_tokens")
    if limit is not None and len(text) > limit * CHARS_PER_TOKEN:
        return Choice(text[: limit * CHARS_PER_TOKEN], finish_reason="length")
    return Choice(text)
