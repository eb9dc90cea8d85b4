"""What went wrong in a program, in the service's own words.

Nothing of DSPy crosses a process: its parse errors do not pickle, and its messages quote prompts and answers. So
details are written here, from codes and field names; a provider's own words are passed on only where it refuses
the very request, and then with anything that looks like a key taken out.

Which error counts: the error raised and everything behind it is looked through (``__cause__``, else ``__context__``
unless ``from None``; the members of an ``ExceptionGroup``). A model's failure found there is what happened, however
the program wrapped it; that lets the router ask another model. Only an error with no model's failure behind it is
the program's own.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

import dspy
from dspy import lm15

from serve_app.errors import BadOutput, ProgramError, SwitchyardError, UpstreamError, UpstreamRefused
from serve_app.messages import Outcome

if TYPE_CHECKING:
    from collections.abc import Iterator

_BY_CODE = {
    "auth": Outcome.DENIED,
    "billing": Outcome.DENIED,
    "unsupported_model": Outcome.DENIED,
    "unknown_model": Outcome.DENIED,
    "ambiguous_model": Outcome.DENIED,
    "not_configured": Outcome.DENIED,
    "configuration": Outcome.DENIED,
    "rate_limit": Outcome.RATE_LIMITED,
    "timeout": Outcome.TIMEOUT,
    "transport": Outcome.UNREACHABLE,
    "lock_timeout": Outcome.UNREACHABLE,
    "server": Outcome.SERVER_ERROR,
    "context_length": Outcome.CONTEXT_WINDOW,
    "context_window_exceeded": Outcome.CONTEXT_WINDOW,
    "invalid_request": Outcome.BAD_REQUEST,
    "unsupported_feature": Outcome.BAD_REQUEST,
    "stream_assembly": Outcome.MALFORMED,
    "collection_limit": Outcome.MALFORMED,
}
"""Canonical codes of ``dspy.LMError`` and ``dspy.lm15.LM15Error``; what is not here goes by its HTTP status."""

_BY_STATUS = {
    401: Outcome.DENIED,
    402: Outcome.DENIED,
    403: Outcome.DENIED,
    404: Outcome.DENIED,
    408: Outcome.TIMEOUT,
    413: Outcome.CONTEXT_WINDOW,
    429: Outcome.RATE_LIMITED,
    504: Outcome.TIMEOUT,
}

_DENIED_CODES = frozenset(
    {
        "insufficient_quota",
        "exceeded_current_quota_error",
        "billing_hard_limit_reached",
        "billing_not_active",
        "account_deactivated",
        "model_not_found",
        "deployment_not_found",
        "deploymentnotfound",
        "invalid_api_key",
    }
)
"""Provider codes for an account or a model that will not work; OpenAI sends ``insufficient_quota`` with HTTP 429."""

_POLICY_MARKS = ("content_policy", "content_filter", "contentfilter", "responsibleai", "safety", "moderation")

_SENTENCES = {
    Outcome.UNREACHABLE: "the model could not be reached",
    Outcome.TIMEOUT: "the model did not answer in time",
    Outcome.SERVER_ERROR: "the model's provider failed",
    Outcome.MALFORMED: "the model's reply was truncated or malformed",
    Outcome.RATE_LIMITED: "the model's provider is limiting the rate of requests",
    Outcome.DENIED: "the model's provider denied access",
    Outcome.CONTEXT_WINDOW: "the request exceeds the model's context window",
    Outcome.CONTENT_POLICY: "the provider's content policy refuses the request",
    Outcome.BAD_REQUEST: "the provider refuses the request",
}

_SECRETS = re.compile(r"(?i)\bbearer\s+\S+|\b(?:sk|pk|rk|gsk|key|xai|AIza)[-_]?[A-Za-z0-9*._-]{8,}")
_MAX_REASON = 300


def translate(error: BaseException) -> SwitchyardError:
    """The error a caller gets for what a program raised; ``ProgramError`` when no model's failure is behind it."""
    for behind in _chain(error):
        if isinstance(behind, SwitchyardError):
            return behind
        if isinstance(behind, (dspy.LMError, lm15.LM15Error)):
            return upstream_error(behind)
        if isinstance(behind, dspy.AdapterParseError):
            return _bad_output(behind)
    return ProgramError("the program raised an error; its operator finds it in the log")


def unparsed_reply(error: BaseException) -> str | None:
    """The reply of the model's that could not be parsed, where that is what happened."""
    parse_errors = (behind for behind in _chain(error) if isinstance(behind, dspy.AdapterParseError))
    return next((str(behind.lm_response) for behind in parse_errors), None)


def upstream_error(error: dspy.LMError | lm15.LM15Error) -> UpstreamError:
    """The failure of a model as an outcome, with ``retry_after_s`` where the provider gave one."""
    outcome = _outcome(error)
    detail = f"{_SENTENCES[outcome]}{_evidence(error)}"
    if outcome in (Outcome.CONTENT_POLICY, Outcome.BAD_REQUEST):
        reason = _reason(error.message)
        return UpstreamRefused(f"{detail}: {reason}" if reason else detail, outcome=outcome)
    return UpstreamError(detail, _seconds(error.retry_after), outcome=outcome)


def _outcome(error: dspy.LMError | lm15.LM15Error) -> Outcome:
    provider_code = str(error.provider_code or "").lower()
    if provider_code in _DENIED_CODES or error.status == 402:  # noqa: PLR2004 - HTTP 402 Payment Required
        return Outcome.DENIED
    outcome = _BY_CODE.get(str(error.code)) or _by_status(error.status)
    if outcome is Outcome.BAD_REQUEST:
        if any(mark in provider_code.replace("-", "_") for mark in _POLICY_MARKS):
            return Outcome.CONTENT_POLICY
        return _BY_STATUS.get(error.status or 400, Outcome.BAD_REQUEST)
    return outcome or _by_cause(error)


def _by_status(status: int | None) -> Outcome | None:
    """Outcome of an HTTP status; ``None`` for a success or no answer at all."""
    if status is None or status < 400:  # noqa: PLR2004 - where HTTP errors begin
        return None
    known = _BY_STATUS.get(status)
    return known or (Outcome.SERVER_ERROR if status >= 500 else Outcome.BAD_REQUEST)  # noqa: PLR2004 - 5xx


def _by_cause(error: BaseException) -> Outcome:
    """Outcome of an error DSPy did not expect, by what is behind it; an unreadable reply when nothing says more."""
    for behind in _chain(error):
        if isinstance(behind, TimeoutError):
            return Outcome.TIMEOUT
        if isinstance(behind, OSError):
            return Outcome.UNREACHABLE
    return Outcome.MALFORMED


def _chain(error: BaseException) -> Iterator[BaseException]:
    """``error`` and everything behind it, nearest first, each once."""
    waiting, seen = [error], set[int]()
    while waiting:
        current = waiting.pop(0)
        if id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        if isinstance(current, BaseExceptionGroup):
            waiting.extend(current.exceptions)
        behind = current.__cause__ or (None if current.__suppress_context__ else current.__context__)
        if behind is not None:
            waiting.append(behind)


def _bad_output(error: dspy.AdapterParseError) -> BadOutput:
    wanted = list(error.signature.output_fields)
    parsed: Any = error.parsed_result
    missing = [name for name in wanted if name not in parsed] if isinstance(parsed, dict) else wanted
    return BadOutput(f"the model's reply does not give {', '.join(missing or wanted)} as the program needs it")


def _evidence(error: dspy.LMError | lm15.LM15Error) -> str:
    """`` (HTTP 429, insufficient_quota)``, from the status and a provider code that is only a code."""
    code = str(error.provider_code or "")
    parts = [f"HTTP {error.status}"] if error.status else []
    parts += [code] if re.fullmatch(r"[A-Za-z][\w.-]{1,63}", code) and not _SECRETS.search(code) else []
    return f" ({', '.join(parts)})" if parts else ""


def _reason(message: str) -> str:
    """The provider's own sentence without DSPy's guidance, short, and without anything that looks like a key."""
    sentence = " ".join(message.partition("\n\n")[0].split())
    return _SECRETS.sub("[removed]", sentence)[:_MAX_REASON]


def _seconds(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if math.isfinite(value) and value >= 0 else None
