"""A model's quality for one program: the configured prior, moved by what its answers scored.

    n        = max(0, weight - min_samples)
    moved    = (prior * prior_weight + mean * n) / (prior_weight + n)
    learned  = moved, at most max_change away from the prior, in 0..1

``moved`` is the posterior mean of a Beta-binomial with ``prior_weight`` pseudo-counts (Gelman et al., *Bayesian Data
Analysis*, 3rd ed., §2.4). Taking the first ``min_samples`` off the weight keeps a handful of scores silent without a
jump when there is one more. ``weight`` and ``mean`` are of the recent past (``score_tally``), as a discounted bandit
has them (Garivier & Moulines 2011).

Levels form a chain: what was learned at ``full`` is the prior of ``degraded``, and that of ``minimal``. So a level
that was just entered starts from what is known, and a simpler program's scores do not blame the full one.

Learning feeds on itself: a model that lost its calls gets no more scores. Its old ones fade, so it drifts back to its
prior, is asked again, and either stays or leaves again after a few calls. A model at the threshold so gets about
``weight * ln 2 / half_life_s`` scored calls a second: that is all the exploration there is. The other way round nothing
is explored: a model whose prior keeps it from a kind of call is scored only on the calls it does get.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from serve_app.policy import LearningPolicy


@dataclass(frozen=True, slots=True)
class Evidence:
    """Scores taken together: how many they count for, and their sum."""

    weight: float = 0.0
    total: float = 0.0

    def __add__(self, other: Evidence) -> Evidence:
        return Evidence(self.weight + other.weight, self.total + other.total)

    @property
    def mean(self) -> float:
        """Between 0 and 1; 0 when there is none."""
        return min(1.0, max(0.0, self.total / self.weight)) if self.weight > 0 else 0.0


def learned_quality(prior: float, levels: Sequence[Evidence], policy: LearningPolicy) -> tuple[float, ...]:
    """The quality at each level, in 0..1.

    Args:
        prior: the configured quality.
        levels: what the answers of each level scored, best level first.
        policy: how fast and how far to move.
    """
    qualities: list[float] = []
    before = prior
    for evidence in levels:
        before = _bounded(_moved(before, evidence, policy), prior, policy.max_change)
        qualities.append(before)
    return tuple(qualities)


def _moved(prior: float, evidence: Evidence, policy: LearningPolicy) -> float:
    n = max(0.0, evidence.weight - policy.min_samples)
    return prior + (evidence.mean - prior) * (n / (policy.prior_weight + n))


def _bounded(quality: float, prior: float, max_change: float) -> float:
    return min(1.0, prior + max_change, max(0.0, prior - max_change, quality))
