"""OpenAI's chat completion dialect: requests checked, replies and errors written.

Source: https://platform.openai.com/docs/api-reference/chat.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import orjson

from serve_app.simulator.openai_errors import RequestError

CHARS_PER_TOKEN = 4
"""Characters counted as one token: OpenAI's own rule of thumb for English."""
_BAD_REQUEST = 400
_MAX_CHOICES = 16


def read_request(body: bytes) -> dict[str, Any]:
    """The chat completion request in ``body``, checked as far as it is used.

    Raises:
        RequestError: 400 with the parameter at fault.
    """
    return check_request(read_object(body))


def read_object(body: bytes) -> dict[str, Any]:
    """The JSON object in ``body``.

    Raises:
        RequestError: 400, there is none.
    """
    try:
        request = orjson.loads(body)
    except orjson.JSONDecodeError:
        message = "We could not parse the JSON body of your request."
        raise RequestError(_BAD_REQUEST, message) from None
    if not isinstance(request, dict):
        raise RequestError(_BAD_REQUEST, "The body of the request must be a JSON object.")
    return request


def check_request(request: dict[str, Any], messages: str = "messages") -> dict[str, Any]:
    """The same request; ``messages`` is the name under which the caller knows its messages.

    Raises:
        RequestError: 400 with the parameter at fault.
    """
    if not isinstance(request.get("model"), str) or not request["model"]:
        raise RequestError(_BAD_REQUEST, "you must provide a model parameter", param="model")
    given = request.get("messages")
    if not isinstance(given, list) or not given or not all(isinstance(part, dict) for part in given):
        raise _invalid(messages, "a non-empty array of objects")
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
