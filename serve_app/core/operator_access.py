"""Who may give orders or read the configuration: whoever has the key; with no key set, only this machine.

    key set    request                                         answer
    yes        ``Authorization: Bearer`` with that key         allowed
    yes        with another key                                403
    yes        without one, or nothing that can be read        401
    no         to a loopback address, by nobody else's page    allowed
    no         any other                                       403

A request's own address proves nothing here: behind HAProxy every peer is loopback, and uvicorn believes the
``X-Forwarded-For`` of a loopback peer. So "this machine" is what the *listening* address says. What then still arrives
from elsewhere comes through somebody on this machine: a proxy, which shows by its headers; or a browser with a foreign
page open, which shows by ``Origin`` (cross-site request) or by ``Host`` (DNS rebinding: the page's own name was made to
point here).
"""

from __future__ import annotations

import hmac
import ipaddress
import re
from dataclasses import dataclass
from typing import Final

from serve_app.errors import Forbidden, KeyRequired

_BEARER: Final = re.compile(r"bearer +([\x21-\x7e]+)", re.IGNORECASE)
"""RFC 6750 §2.1, with every visible character allowed in a key."""
_HOST: Final = re.compile(r"(?:\[(?P<v6>[0-9a-f:.]+)\]|(?P<name>[^:\[\]]+))(?::\d+)?", re.IGNORECASE)

NO_KEY_SET: Final = "no operator key is set: set SWITCHYARD_OPERATOR_KEY on every node to allow this from elsewhere"


@dataclass(frozen=True, slots=True)
class Caller:
    """What a request says of whom it is from; header values as they came, ``None`` for one that did not.

    Attributes:
        is_forwarded: whether some proxy says that it passed the request on.
    """

    authorization: str | None = None
    host: str | None = None
    origin: str | None = None
    is_forwarded: bool = False


class OperatorAccess:
    """Lets operators through and nobody else.

    Args:
        key: what an operator must know; ``None`` when none is set.
        is_local: whether HTTP is served at a loopback address, so that only this machine reaches it.
    """

    def __init__(self, key: bytes | None = None, *, is_local: bool = False) -> None:
        self._key = key
        self._is_local = is_local

    def allows(self, caller: Caller) -> bool:
        """Whether ``check`` would let the caller through."""
        try:
            self.check(caller)
        except (KeyRequired, Forbidden):
            return False
        return True

    def check(self, caller: Caller) -> None:
        """Let an operator through.

        Raises:
            KeyRequired: a key is set, and the request brings none that can be read.
            Forbidden: the key is another, or none is set and the request may not be this machine's own.
        """
        if self._key is not None:
            _check_key(self._key, caller.authorization)
        elif not self._is_local:
            raise Forbidden(NO_KEY_SET)
        else:
            _check_local(caller)


def is_loopback(host: str) -> bool:
    """Whether an address or name is this machine's own, for this machine only."""
    try:
        return host.lower() == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _check_key(key: bytes, authorization: str | None) -> None:
    found = _BEARER.fullmatch(authorization or "")
    if found is None:
        raise KeyRequired("send the operator key: Authorization: Bearer <key>")
    if not hmac.compare_digest(found[1].encode(), key):
        raise Forbidden("the operator key is not the right one")


def _check_local(caller: Caller) -> None:
    if caller.is_forwarded:
        raise Forbidden(f"the request came through a proxy, and {NO_KEY_SET}")
    if not _names_this_machine(caller.host):
        raise Forbidden(f"the Host header does not name this machine, and {NO_KEY_SET}")
    if caller.origin is not None and not _is_own_page(caller.origin, caller.host or ""):
        raise Forbidden(f"the request was made by a page of another site, and {NO_KEY_SET}")


def _names_this_machine(host: str | None) -> bool:
    found = _HOST.fullmatch(host or "")
    return found is not None and is_loopback(found["v6"] or found["name"])


def _is_own_page(origin: str, host: str) -> bool:
    return origin.lower() in {f"{scheme}://{host.lower()}" for scheme in ("http", "https")}
