"""OpenAI's chat completion dialect: requests checked, replies and errors written.

Source: https://platform.openai.com/docs/api-reference/chat.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import orjson

CHARS_PER_TOKEN = 4
"""Characters counted as one token: OpenAI's own rule of thumb for English."""
_TYPES = {401: "authentication_error", 403: "permission_error", 404: "invalid_request_error", 429: "rate_limit_error"}
_CODES = {401: "invalid_api_key", 404: "model_not_found", 429: "rate_limit_exceeded"}
_MESSAGES = {
    401: "Incorrect API key provided.",
    403: "You are not allowed to use this model.",
    429: "Rate limit reached. Please try again later.",
    500: "The server had an error while processing your request.",
    503: "The engine is currently overloaded, please try again later.",
}
_BAD_REQUEST = 400
_SERVER_ERROR = 500
_MAX_CHOICES = 16


class RequestError(Exception):
    """The request is answered with an error.

    Args:
        status: HTTP status.
        message: ``error.message``; ``None`` is OpenAI's for the status.
        code: ``error.code``; ``None`` is OpenAI's for the status.
        param: ``error.param``, the parameter at fault.
        retry_after_s: seconds in ``Retry-After``; ``None`` leaves the header out.
        outcome: the word under which it is counted.
    """

    def __init__(  # noqa: PLR0913 - OpenAI's error has as many members
        self,
        status: int,
        message: str | None = None,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after_s: float | None = None,
        outcome: str = "bad_request",
    ) -> None:
        super().__init__(message)
        self.status = status
        self.outcome = outcome
        self.retry_after_s = retry_after_s
        self._error = {
            "message": message or _MESSAGES.get(status) or f"The request failed with status {status}.",
            "type": _TYPES.get(status) or ("server_error" if status >= _SERVER_ERROR else "invalid_request_error"),
            "param": param,
            "code": code or _CODES.get(status),
        }

    @property
    def body(self) -> bytes:
        """The JSON body."""
        return orjson.dumps({"error": self._error})

    @property
    def headers(self) -> dict[str, str]:
        """Headers beside the content type."""
        if self.retry_after_s is None:
            return {}
        return {"retry-after": f"{self.retry_after_s:.3f}".rstrip("0").rstrip(".")}


def context_length_error(tokens: int, window: int) -> RequestError:
    """The error for a prompt that is too long."""
    message = (
        f"This model's maximum context length is {window} tokens. However, your messages resulted in {tokens} tokens. "
        "Please reduce the length of the messages."
    )
    return RequestError(
        _BAD_REQUEST, message, code="context_length_exceeded", param="messages", outcome="context_length"
    )


def content_policy_error() -> RequestError:
    """The error for a prompt that the provider does not want to answer."""
    message = "Your request was rejected as a result of our safety system: it may violate our usage policies."
    return RequestError(_BAD_REQUEST, message, code="content_policy_violation", outcome="content_policy")


def unknown_model_error(model: str) -> RequestError:
    """The error for a model that the profile does not have."""
    message = f"The model `{model}` does not exist or you do not have access to it."
    return RequestError(404, message, param="model", outcome="unknown_model")


def read_request(body: bytes) -> dict[str, Any]:
    """The request in ``body``, checked as far as it is used.

    Raises:
        RequestError: 400 with the parameter at fault.
    """
    try:
        request = orjson.loads(body)
    except orjson.JSONDecodeError:
        message = "We could not parse the JSON body of your request."
        raise RequestError(_BAD_REQUEST, message) from None
    if not isinstance(request, dict):
        raise RequestError(_BAD_REQUEST, "The body of the request must be a JSON object.")
    if not isinstance(request.get("model"), str) or not request["model"]:
        raise RequestError(_BAD_REQUEST, "you must provide a model parameter", param="model")
    messages = request.get("messages")
    if not isinstance(messages, list) or not messages or not all(isinstance(part, dict) for part in messages):
        raise _invalid("messages", "a non-empty array of objects")
    _require_integer(request, "n", most=_MAX_CHOICES)
    _require_integer(request, "max_tokens")
    _require_integer(request, "max_completion_tokens")
    return request


def _require_integer(request: dict[str, Any], name: str, most: int = 2**31) -> None:
    value = request.get(name)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most):
        raise _invalid(name, f"an integer between 1 and {most}")


def _invalid(name: str, wanted: str) -> RequestError:
    message = f"Invalid value for '{name}': expected {wanted}."
    return RequestError(_BAD_REQUEST, message, code="invalid_value", param=name)


def prompt_tokens(messages: list[dict[str, Any]]) -> int:
    """Estimated tokens of the prompt: its characters, and a few for each message's frame."""
    chars = 0
    for message in messages:
        content = message.get("content")
        parts = content if isinstance(content, list) else [content]
        chars += sum(len(str(part.get("text") or "") if isinstance(part, dict) else str(part or "")) for part in parts)
    return -(-chars // CHARS_PER_TOKEN) + 4 * len(messages)


@dataclass(frozen=True, slots=True)
class Choice:
    """One of a completion's ``n`` answers, already cut to the limits asked for."""

    text: str
    tool: str = ""
    arguments: str = ""
    finish_reason: str = "stop"

    @property
    def tokens(self) -> int:
        """Estimated output tokens, at least one."""
        return max(1, -(-len(self.text or self.arguments) // CHARS_PER_TOKEN))


@dataclass(frozen=True, slots=True)
class Completion:
    """A reply, ready to be written in one piece or in many."""

    id: str
    model: str
    choices: tuple[Choice, ...]
    input_tokens: int

    @property
    def output_tokens(self) -> int:
        """Tokens of all choices."""
        return sum(choice.tokens for choice in self.choices)

    def body(self) -> bytes:
        """The whole ``chat.completion``."""
        choices = [_whole(index, choice, self.id) for index, choice in enumerate(self.choices)]
        return orjson.dumps({**self._head("chat.completion"), "choices": choices, "usage": self._usage()})

    def delta(self, index: int, delta: dict[str, Any], finish_reason: str | None = None) -> bytes:
        """One ``chat.completion.chunk`` event."""
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return event({**self._head("chat.completion.chunk"), "choices": [choice]})

    def usage_event(self) -> bytes:
        """The last event of a stream that was asked for its usage."""
        return event({**self._head("chat.completion.chunk"), "choices": [], "usage": self._usage()})

    def tool_call(self, choice: Choice, index: int) -> dict[str, Any]:
        """The call of a tool in a choice."""
        return _tool_call(choice, self.id, index)

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": int(time.time()),
            "model": self.model,
            "system_fingerprint": "fp_simulator",
        }

    def _usage(self) -> dict[str, Any]:
        output = self.output_tokens
        return {
            "prompt_tokens": self.input_tokens,
            "completion_tokens": output,
            "total_tokens": self.input_tokens + output,
        }


def event(data: dict[str, Any]) -> bytes:
    """A server-sent event."""
    return b"data: " + orjson.dumps(data) + b"\n\n"


def _whole(index: int, choice: Choice, reply_id: str) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": choice.text, "refusal": None}
    if choice.tool:
        message |= {"content": None, "tool_calls": [_tool_call(choice, reply_id, index)]}
    return {"index": index, "message": message, "logprobs": None, "finish_reason": choice.finish_reason}


def _tool_call(choice: Choice, reply_id: str, index: int) -> dict[str, Any]:
    function = {"name": choice.tool, "arguments": choice.arguments}
    return {"id": f"call_{reply_id[-16:]}{index}", "type": "function", "function": function}
