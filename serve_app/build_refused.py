"""How a graph refuses to be built, so that Ray passes the words on."""

from __future__ import annotations

from ray.serve.exceptions import RayServeException

from serve_app.errors import ConfigError


class BuildRefused(ConfigError, RayServeException):
    """A ``ConfigError`` whose text reaches ``serve status`` as it is.

    Ray reports its own exceptions from a builder by their text, once; any other becomes a traceback after four tries.
    """
