"""Triage every ticket of a JSON Lines file from Python, as a Ray job does it at night.

    python -m examples.bulk tickets.jsonl

On the command line, ``switchyard batch --program triage tickets.jsonl out.jsonl`` does it too, and goes on after an
end. Calls are sheddable: people who wait go first.
"""

import collections
import json
import sys
from pathlib import Path

import serve_app


def main(path: Path) -> int:
    """Print how many tickets fell into each category; the number that failed is returned."""
    tickets = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
    found: collections.Counter[str] = collections.Counter()
    cost_usd = 0.0
    for predicted in serve_app.connect().predict_many("triage", tickets, concurrency=16):
        if predicted.prediction is None:
            print(f"ticket {predicted.index}: {predicted.error}", file=sys.stderr)
            found["failed"] += 1
        else:
            found[predicted.prediction.category] += 1
            cost_usd += predicted.prediction.meta["cost_usd"]
    print(f"{found.total()} tickets, ${cost_usd:.4f}: {dict(found)}")
    return found["failed"]


if __name__ == "__main__":
    sys.exit(1 if main(Path(sys.argv[1])) else 0)
