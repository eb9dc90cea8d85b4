"""Questions with the recorded answers of two real models."""

import os
from pathlib import Path

from running_cluster import ROOT

RECORDED = Path(os.environ.get("SWITCHYARD_GSM8K", ROOT.parent / "shared/data/gsm8k/responses.csv"))
"""The file; tests that need it skip where it is missing."""
COLUMNS = {"sim-large": "gpt-4-1106-preview", "sim-small": "mistralai/Mixtral-8x7B-Instruct-v0.1"}
