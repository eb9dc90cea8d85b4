"""How ``GET /v1/status`` and ``/metrics`` show what answers scored."""

from __future__ import annotations

from typing import Any

from serve_app.adapters.telemetry import Family, Labels, MetricsPage, gauge
from serve_app.core.quality_board import QualityBoard
from serve_app.messages import Level
from serve_app.policy import RoutingPolicy


def quality_status(board: QualityBoard, page: MetricsPage, policy: RoutingPolicy) -> dict[str, Any]:
    """By program and model: the prior, what was learned (used or not), every score, and unparsable answers.

    ``samples`` are faded with age, so they are no whole numbers.
    """
    learned, current = board.learned(policy.learning), board.versions()
    programs: dict[str, dict[str, Any]] = {}

    def entry(program: str, model: str) -> dict[str, Any]:
        shown = programs.setdefault(program, {"version": current.get(program), "models": {}})
        prior = board.priors.get(model)
        levels = {level.value: round(learned.get((program, level, model), prior or 0.0), 4) for level in Level}
        fresh: dict[str, Any] = {"prior": prior, "learned": levels, "bad_outputs": 0, "scores": []}
        found: dict[str, Any] = shown["models"].setdefault(model, fresh)
        return found

    for (origin, metric_type), evidence in board.scores(policy.learning.half_life_s).items():
        where = {"version": origin.version, "level": origin.level.value, "metric_type": metric_type.value}
        entry(origin.program, origin.model)["scores"].append(
            {**where, "mean": round(evidence.mean, 4), "samples": round(evidence.weight, 2)}
        )
    for (program, model), count in page.totals("dspy_bad_output_total", "program", "model").items():
        entry(program, model)["bad_outputs"] = int(count)
    return {"learning": policy.learn_quality, "programs": programs}


def quality_gauges(board: QualityBoard, policy: RoutingPolicy) -> tuple[Family, ...]:
    """Recent means by origin, and what was learned beside the prior; a version goes with its last scores."""
    means: dict[Labels, float] = {}
    for (origin, metric_type), evidence in board.scores(policy.learning.half_life_s).items():
        labels: Labels = (
            ("level", origin.level.value),
            ("metric_type", metric_type.value),
            ("model", origin.model),
            ("program", origin.program),
            ("version", origin.version),
        )
        means[labels] = evidence.mean
    learned: dict[Labels, float] = {
        (("level", level.value), ("model", model), ("program", program)): quality
        for (program, level, model), quality in board.learned(policy.learning).items()
    }
    priors: dict[Labels, float] = {(("model", model),): prior for model, prior in board.priors.items()}
    return (
        gauge("dspy_quality_mean", "Mean of recent scores, 0 to 1.", means),
        gauge("dspy_quality_learned", "Quality learned from scores, 0 to 1.", learned),
        gauge("dspy_quality_prior", "Configured quality, 0 to 1.", priors),
    )
