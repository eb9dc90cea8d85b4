"""OpenAI's error bodies, and the exception that carries one to the endpoint.

Source: https://platform.openai.com/docs/guides/error-codes.
"""

from __future__ import annotations

import orjson

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

    def __init__(
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
