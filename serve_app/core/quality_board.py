"""What all answers of the cluster scored, by program, version, model and level; and what routing learns from it.

Each replica reports the sums it has (``score_tally``). The board keeps the newest of each replica and lets them fade
on after the replica has gone, so it forgets nothing that counts and counts nothing twice, and after a restart of its
own the next reports say everything again.

Rewards and callers' verdicts teach; a program's own confidence is shown and, unless the policy says so, not learned
from, since models are overconfident when asked (Xiong et al. 2024, arXiv:2306.13063). Only scores of the program's
current version teach: the version that the replica started last runs, of those that still report. A board that was
born while replicas are replaced hears old and new ones in any order, and then the old ones fall silent.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from serve_app.core.learned_quality import Evidence, learned_quality
from serve_app.core.roster import SILENCE_S
from serve_app.core.score_tally import MIN_WEIGHT
from serve_app.messages import Level
from serve_app.reports import MetricType, Origin, Quality, Report, ScoreSum

if TYPE_CHECKING:
    from serve_app.core.clock import Clock
    from serve_app.policy import LearningPolicy

MAX_SOURCES: Final = 1024
"""Most replicas remembered; the one silent for longest goes first."""
REFRESH_S: Final = 0.2
"""Seconds for which what was learned is not worked out again."""


@dataclass(slots=True)
class _Source:
    started: int
    seen_at: float
    versions: Mapping[str, str]
    scores: tuple[ScoreSum, ...]


class QualityBoard:
    """Scores of all replicas.

    Args:
        priors: configured quality of each model, by name.
        clock: monotonic seconds.
    """

    def __init__(self, priors: Mapping[str, float], *, clock: Clock) -> None:
        self.priors = priors
        self._clock = clock
        self._sources: dict[str, _Source] = {}
        self._started = 0
        self._learned: tuple[float, LearningPolicy, Quality] | None = None

    def take(self, report: Report) -> None:
        """A replica's newest sums, in place of those before."""
        before = self._sources.pop(report.source, None)
        if before is None:
            self._started += 1
        started = before.started if before else self._started
        self._sources[report.source] = _Source(started, self._clock(), report.versions, report.scores)
        while len(self._sources) > MAX_SOURCES:
            del self._sources[next(iter(self._sources))]

    def scores(self, half_life_s: float) -> dict[tuple[Origin, MetricType], Evidence]:
        """Every replica's sums added up, as of now."""
        merged: dict[tuple[Origin, MetricType], Evidence] = {}
        for score in self._faded(half_life_s):
            key = (score.origin, score.metric_type)
            merged[key] = merged.get(key, Evidence()) + Evidence(score.weight, score.total)
        return merged

    def versions(self) -> dict[str, str]:
        """The current version of each program."""
        current: dict[str, str] = {}
        heard_since = self._clock() - SILENCE_S
        for source in sorted(self._sources.values(), key=lambda each: (each.seen_at >= heard_since, each.started)):
            current |= source.versions
        return current

    def learned(self, policy: LearningPolicy) -> Quality:
        """The quality of each model with scores that teach, by program, level and model."""
        now, known = self._clock(), self._learned
        if known is None or known[1] != policy or now - known[0] >= REFRESH_S:
            known = self._learned = (now, policy, self._learn(policy))
        return known[2]

    def _learn(self, policy: LearningPolicy) -> Quality:
        current = self.versions()
        evidence: dict[tuple[str, str], dict[Level, Evidence]] = {}
        for (origin, metric_type), scored in self.scores(policy.half_life_s).items():
            is_current = current.get(origin.program, origin.version) == origin.version
            if metric_type in policy.sources and origin.model in self.priors and is_current:
                levels = evidence.setdefault((origin.program, origin.model), {})
                levels[origin.level] = levels.get(origin.level, Evidence()) + scored
        return {
            (program, level, model): quality
            for (program, model), levels in evidence.items()
            for level, quality in zip(
                Level,
                learned_quality(self.priors[model], [levels.get(level, Evidence()) for level in Level], policy),
                strict=True,
            )
        }

    def _faded(self, half_life_s: float) -> Iterator[ScoreSum]:
        now = self._clock()
        for source in self._sources.values():
            kept = 0.5 ** ((now - source.seen_at) / half_life_s)
            for score in source.scores:
                if score.weight * kept >= MIN_WEIGHT:
                    yield replace(score, weight=score.weight * kept, total=score.total * kept)
