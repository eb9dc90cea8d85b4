"""The operator key: from the environment of this process, or from a file that it names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from serve_app.errors import ConfigError

VARIABLE: Final = "SWITCHYARD_OPERATOR_KEY"
FILE_VARIABLE: Final = "SWITCHYARD_OPERATOR_KEY_FILE"
MAX_CHARS: Final = 1000

_KEY: Final = re.compile(r"[\x21-\x7e]+")


def read_operator_key(environment: Mapping[str, str]) -> bytes | None:
    """The key; ``None`` when neither variable is set. It is read once: a new key takes a restart.

    Raises:
        ConfigError: the variable, or the file, holds no key that a header could carry. The key is never repeated.
    """
    if VARIABLE in environment and FILE_VARIABLE in environment:
        raise ConfigError([f"{VARIABLE} and {FILE_VARIABLE} are both set; unset one"])
    if VARIABLE in environment:
        return _key(VARIABLE, environment[VARIABLE])
    if FILE_VARIABLE in environment:
        return _key(FILE_VARIABLE, _content(environment[FILE_VARIABLE]))
    return None


def _content(name: str) -> str:
    path = Path(name)
    if not path.is_absolute():
        raise ConfigError([f"{FILE_VARIABLE} must be an absolute path: replicas work in directories of their own"])
    try:
        with path.open("rb") as file:
            return file.read(MAX_CHARS + 2).decode("utf-8", "replace").removesuffix("\n").removesuffix("\r")
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "not a file's name"
        raise ConfigError([f"{FILE_VARIABLE} names a file that cannot be read: {why}"]) from None


def _key(variable: str, text: str) -> bytes:
    if not text.strip():
        raise ConfigError([f"{variable}: the operator key is empty; unset the variable, or give it a key"])
    if len(text) > MAX_CHARS or not _KEY.fullmatch(text):
        raise ConfigError([f"{variable}: a key has 1 to {MAX_CHARS} visible ASCII characters and no space"])
    return text.encode()
