"""A virtual environment for each peer, made once and kept under ``.switchyard/bench``."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.serving import ROOT

CACHE = ROOT / ".switchyard" / "bench"
INSTALL_S = 900


class NotInstalled(Exception):
    """The peer cannot be installed here; the text says why."""


def environment(name: str, requirements: tuple[str, ...]) -> Path:
    """The interpreter of an environment with these requirements, and what they want, in the newest versions.

    Raises:
        NotInstalled: pip failed; its last line is the reason.
    """
    wanted = "\n".join((sys.version, *requirements))
    directory = CACHE / f"{name}-{hashlib.sha256(wanted.encode()).hexdigest()[:8]}"
    python, ready = directory / "bin" / "python", directory / ".ready"
    if not ready.exists():
        print(f"installing {name} into {directory} ...", file=sys.stderr)
        shutil.rmtree(directory, ignore_errors=True)
        _run(sys.executable, "-m", "venv", str(directory))
        _run(str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *requirements)
        ready.touch()
    return python


def version_in(python: Path, package: str) -> str:
    """The version of a package in that environment."""
    code = f"from importlib.metadata import version; print(version({package!r}))"
    return subprocess.run([str(python), "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def _run(*command: str) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=INSTALL_S)
    except subprocess.CalledProcessError as error:
        said = (error.stderr or error.stdout).strip().splitlines()
        raise NotInstalled(said[-1] if said else f"exit code {error.returncode}") from error
    except subprocess.TimeoutExpired as error:
        raise NotInstalled(f"not done within {INSTALL_S} s") from error
