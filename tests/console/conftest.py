"""Where pictures of the page go."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where pictures go: ``SWITCHYARD_SCREENSHOTS`` keeps them."""
    directory = Path(os.environ.get("SWITCHYARD_SCREENSHOTS") or tmp_path_factory.mktemp("screenshots"))
    directory.mkdir(parents=True, exist_ok=True)
    return directory
