"""What a process loads, and what it does not."""

import subprocess
import sys


def test_replicas_without_programs_start_without_dspy() -> None:
    code = "import serve_app.deployments.replicas, sys; sys.exit('dspy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
