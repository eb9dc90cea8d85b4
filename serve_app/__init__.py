"""Switchyard: production serving for DSPy programs on Ray Serve."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from serve_app.client import Client


def connect(application: str = "switchyard", *, address: str | None = None) -> Client:
    """A client of a running application; see ``serve_app.client.connect``."""
    from serve_app.client import connect  # noqa: PLC0415 - Ray and DSPy are imported by those who need them

    return connect(application, address=address)


__all__ = ["connect"]
