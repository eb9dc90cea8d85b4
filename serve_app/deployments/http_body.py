"""Reading a request's body, with a bound."""

from __future__ import annotations

import re
from typing import Final

from fastapi import Request
from starlette.requests import ClientDisconnect

from serve_app.errors import ClientClosed, TooLarge, UnsupportedMediaType

_JSON_TYPE: Final = re.compile(r"application/(json|[\w.+-]+\+json)\s*(;.*)?", re.IGNORECASE)


async def read_body(request: Request, max_bytes: int) -> bytes:
    """The body, never holding more than ``max_bytes`` of it.

    Raises:
        UnsupportedMediaType: it is not JSON.
        TooLarge: it is larger than that.
        ClientClosed: the client went away before it was all there.
    """
    content_type = request.headers.get("content-type", "")
    if not _JSON_TYPE.fullmatch(content_type):
        raise UnsupportedMediaType("send content-type: application/json")
    declared = request.headers.get("content-length", "0")
    too_large = TooLarge(f"the body may have at most {max_bytes} bytes")
    if declared.isascii() and declared.isdigit() and int(declared[:20]) > max_bytes:
        raise too_large
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > max_bytes:
                raise too_large
    except ClientDisconnect as error:
        raise ClientClosed("the client went away while it was sending") from error
    return bytes(body)
