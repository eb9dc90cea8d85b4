"""Where Ray Serve listens for HTTP: what the running instance says, not what a file asked for.

``serve deploy`` leaves the ``http_options`` of an instance that is up as they are, so the file may be wrong. In HAProxy
mode the same address is HAProxy's and that of each ingress replica behind it.
"""

from __future__ import annotations

import logging
import os

import ray

log = logging.getLogger("switchyard.serve_address")


def node_address() -> str:
    """Address at which Ray reaches this machine; for channels, so nothing may be said there where Ray encrypts.

    Raises:
        OSError: it does.
    """
    if os.environ.get("RAY_USE_TLS", "0") in ("1", "true"):
        raise OSError("RAY_USE_TLS is set, and channels are not encrypted")
    return str(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]


def listening_host() -> str | None:
    """Name or address that HTTP is served at; ``None`` when Ray does not say. Blocks: for constructors."""
    try:
        from ray.serve.context import _get_global_client  # noqa: PLC0415 - Ray has no public way to ask

        client = _get_global_client()
        return str(client.http_config.host) if client is not None else None
    except Exception as error:  # noqa: BLE001 - another Ray may raise anything here; then nothing counts as local
        log.warning("serve_address.unknown", extra={"why": type(error).__name__})
        return None
