"""OpenAI's responses dialect, whole replies only, translated to and from chat completions.

Source: https://platform.openai.com/docs/api-reference/responses.
"""

from __future__ import annotations

import time
from typing import Any

import orjson

from serve_app.simulator.openai_errors import RequestError
from serve_app.simulator.openai_wire import Choice, Completion, check_request, read_object

_BAD_REQUEST = 400


def read_responses_request(body: bytes) -> dict[str, Any]:
    """The request in ``body`` as a chat completion request.

    Raises:
        RequestError: 400 with the parameter at fault, or because a stream is wanted.
    """
    request = read_object(body)
    if request.get("stream"):
        raise RequestError(_BAD_REQUEST, "The simulator does not stream responses.", param="stream")
    wanted = request.get("text")
    format_ = wanted.get("format") if isinstance(wanted, dict) else None
    chat = {
        "model": request.get("model"),
        "messages": [*_instructions(request), *_messages(request.get("input"))],
        "max_completion_tokens": request.get("max_output_tokens"),
        "tools": request.get("tools"),
        "tool_choice": request.get("tool_choice"),
        "response_format": {**format_, "json_schema": format_} if isinstance(format_, dict) else None,
    }
    return check_request(chat, messages="input")


class ResponsesReply(Completion):
    """A reply written as a ``response`` object."""

    def body(self) -> bytes:
        """The whole ``response``."""
        is_cut = any(choice.finish_reason == "length" for choice in self.choices)
        return orjson.dumps(
            {
                "id": self.id,
                "object": "response",
                "created_at": int(time.time()),
                "model": self.model,
                "status": "incomplete" if is_cut else "completed",
                "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
                "error": None,
                "output": [self._item(choice) for choice in self.choices],
                "parallel_tool_calls": True,
                "tool_choice": "auto",
                "tools": [],
                "usage": {
                    "input_tokens": self.input_tokens,
                    "input_tokens_details": {"cached_tokens": 0},
                    "output_tokens": self.output_tokens,
                    "output_tokens_details": {"reasoning_tokens": 0},
                    "total_tokens": self.input_tokens + self.output_tokens,
                },
            }
        )

    def _item(self, choice: Choice) -> dict[str, Any]:
        if choice.tool:
            item = {"type": "function_call", "id": f"fc_{self.id}", "call_id": f"call_{self.id}", "status": "completed"}
            return {**item, "name": choice.tool, "arguments": choice.arguments}
        content = {"type": "output_text", "text": choice.text, "annotations": []}
        item = {"type": "message", "id": f"msg_{self.id}", "role": "assistant", "status": "completed"}
        return {**item, "content": [content]}


def _instructions(request: dict[str, Any]) -> list[dict[str, Any]]:
    text = request.get("instructions")
    return [{"role": "system", "content": text}] if isinstance(text, str) else []


def _messages(given: object) -> list[Any]:
    """The items of ``input`` as chat messages; a tool's output becomes a message of role ``tool``."""
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    items = given if isinstance(given, list) else []
    return [
        {"role": "tool", "content": item.get("output")}
        if isinstance(item, dict) and item.get("type") == "function_call_output"
        else item
        for item in items
    ]
