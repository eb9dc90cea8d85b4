"""What a model's replica makes of its answers beside the calls."""

import asyncio
import json

import pytest
from deployment_fakes import app_config, call, link, run_all

from serve_app.adapters.call_scope import current_scope
from serve_app.adapters.dspy_program import load_program
from serve_app.adapters.program_answer import Answer
from serve_app.config import ProgramConfig
from serve_app.core.clock import ManualClock
from serve_app.deployments.model_replica import ModelReplica
from serve_app.deployments.scoring import LOG_EVERY_S, Scoring
from serve_app.errors import BadOutput
from serve_app.messages import Level, Options
from serve_app.reports import MetricType

REWARD = "reward_for_tests:echoed"


class Bench:
    """The scoring of model ``large``; ``draws`` decides who is in a sample, and then everyone is."""

    def __init__(self, *draws: float, **program) -> None:
        config = app_config().programs[0].model_dump(exclude_none=True) | program
        self.program = load_program(ProgramConfig.model_validate(config))
        self.link = link()
        self.draws = list(draws)
        self.clock = ManualClock()
        self.scoring = Scoring(
            "large",
            {"ask": self.program},
            self.link._telemetry,
            self.link,
            draw=lambda: self.draws.pop(0) if self.draws else 0.0,
            clock=self.clock,
        )

    async def answered(self, question: str = "why", answer: str = "why", confidence: float | None = None) -> None:
        asked = call(1, inputs={"question": question})
        self.scoring.answered(asked, Answer({"answer": answer}, confidence))
        await asyncio.gather(*self.scoring._tasks)

    def scores(self) -> dict[MetricType, tuple[float, float]]:
        found = self.link.scores.sums()
        assert all((s.origin.model, s.origin.version) == ("large", self.program.version) for s in found)
        return {s.metric_type: (round(s.weight), round(s.total, 2)) for s in found}

    def count(self, name: str) -> dict[tuple[str, ...], float]:
        return {
            tuple(value for _, value in labels): value
            for family in self.link._telemetry.samples()
            for sample, labels, value in family.samples
            if sample == name
        }


async def test_confidence_counts_as_often_as_it_is_told() -> None:
    bench = Bench()
    await bench.answered(confidence=0.8)
    await bench.answered()
    assert bench.scores() == {MetricType.CONFIDENCE: (1, 0.8)}
    assert bench.count("dspy_quality_score_count") == {("confidence", "ask"): 1}


async def test_a_reward_counts_for_the_model_version_and_level_that_answered() -> None:
    bench = Bench(reward=REWARD)
    await bench.answered("a", "a")
    await bench.answered("a", "b")
    assert bench.scores() == {MetricType.REWARD: (2, 1.0)}
    assert bench.link.scores.sums()[0].origin.level is Level.FULL
    assert bench.count("dspy_quality_score_count") == {("reward", "ask"): 2}


async def test_only_the_sample_is_scored() -> None:
    bench = Bench(0.49, 0.5, 0.9, reward={"function": REWARD, "share": 0.5})
    for _ in range(3):
        await bench.answered()
    assert bench.scores() == {MetricType.REWARD: (1, 1.0)}


async def test_a_reward_off_the_scale_is_counted_by_its_reason_and_logged_once_a_minute(caplog) -> None:
    bench = Bench(reward=REWARD)
    for _ in range(5):
        await bench.answered("scale")
    assert bench.scores() == {}
    assert bench.count("dspy_reward_failures_total") == {("ask", "out_of_range"): 5}
    assert [entry.message for entry in caplog.records] == ["reward.failed"]
    bench.clock.advance(LOG_EVERY_S)
    await bench.answered("scale")
    assert [entry.message for entry in caplog.records] == ["reward.failed"] * 2
    assert "scale" not in str(vars(caplog.records[0]))


async def test_a_reward_without_an_opinion_is_counted_and_not_logged(caplog) -> None:
    bench = Bench(reward=REWARD)
    await bench.answered("?")
    assert bench.scores() == {}
    assert bench.count("dspy_reward_failures_total") == {("ask", "abstained"): 1}
    assert caplog.records == []


async def test_an_answer_nobody_can_parse_is_counted_and_scores_0_in_the_rewards_sample() -> None:
    bench = Bench(0.9, 0.1, reward={"function": REWARD, "share": 0.5})
    for _ in range(2):
        bench.scoring.unparsable(call(1))
    assert bench.count("dspy_bad_output_total") == {("large", "ask"): 2}
    assert bench.scores() == {MetricType.REWARD: (1, 0.0)}


async def test_without_a_reward_an_unparsable_answer_is_counted_and_not_scored() -> None:
    bench = Bench()
    bench.scoring.unparsable(call(1))
    assert bench.count("dspy_bad_output_total") == {("large", "ask"): 1}
    assert bench.scores() == {}


async def test_scored_answers_are_recorded_with_their_scores(tmp_path) -> None:
    bench = Bench(reward=REWARD, record={"path": str(tmp_path)})
    await bench.answered("a", "b", confidence=0.75)
    await bench.answered("scale")
    await bench.scoring.aclose()
    (file,) = (tmp_path / "ask").iterdir()
    (line,) = [json.loads(text) for text in file.read_text().splitlines()]
    assert file.name.startswith(bench.link.source)
    assert (line["inputs"], line["outputs"]) == ({"question": "a"}, {"answer": "b"})
    assert line["scores"] == {"confidence": 0.75, "reward": 0.0}
    assert (line["request_id"], line["call_id"], line["model"], line["level"]) == ("r1", "c1", "large", "full")


async def test_without_a_reward_the_records_own_share_is_taken_of_all_answers(tmp_path) -> None:
    bench = Bench(0.2, 0.3, record={"path": str(tmp_path), "share": 0.25})
    await bench.answered()
    await bench.answered()
    await bench.scoring.aclose()
    (file,) = (tmp_path / "ask").iterdir()
    assert len(file.read_text().splitlines()) == 1


class Pool:
    def lm(self, model) -> str:
        return model.name


async def test_the_replica_scores_what_it_answers_and_what_it_cannot_parse() -> None:
    class Program:
        version, reward = "v1", None
        config = app_config().programs[0]

        def takes_batches(self, level) -> bool:
            return False

        async def run(self, asked, lm) -> Answer:
            if asked.id == "c2":
                raise BadOutput("?")
            return Answer({"answer": "x"}, 0.5)

    made = link()
    replica = ModelReplica(app_config().models[0], {"ask": Program()}, Pool(), made._telemetry, made)
    await run_all(replica, call(1), call(2))
    assert made.versions == {"ask": "v1"}
    assert [(score.metric_type, round(score.total, 3)) for score in made.scores.sums()] == [
        (MetricType.CONFIDENCE, 0.5)
    ]
    assert [f.samples[0][2] for f in made._telemetry.samples() if f.name == "dspy_bad_output"] == [1]


class Cutting:
    """A program whose LM calls end at the bound; question ``bad`` cannot be parsed then."""

    version, reward = "v1", None

    def __init__(self, level_max_tokens: int | None) -> None:
        config = app_config().programs[0]
        full = config.levels.full.model_copy(update={"max_tokens": level_max_tokens})
        self.config = config.model_copy(update={"levels": config.levels.model_copy(update={"full": full})})

    def takes_batches(self, level) -> bool:
        return False

    async def run(self, asked, lm) -> Answer:
        current_scope().is_cut_off = asked.inputs["question"] != "short"
        if asked.inputs["question"] == "bad":
            raise BadOutput("?")
        return Answer({"answer": "x"}, 0.5)


@pytest.mark.parametrize(
    ("callers", "levels", "question", "scores"),
    [
        (5, None, "long", False),
        (5, None, "bad", False),
        (5, 6, "bad", False),
        (5, None, "short", True),
        (5, 5, "long", True),
        (5, 5, "bad", True),
        (None, 5, "bad", True),
    ],
)
async def test_what_the_callers_own_limit_cut_off_says_nothing_of_the_model(callers, levels, question, scores) -> None:
    made = link()
    replica = ModelReplica(app_config().models[0], {"ask": Cutting(levels)}, Pool(), made._telemetry, made)
    await run_all(replica, call(1, inputs={"question": question}, options=Options(max_tokens=callers)))
    unparsable = [family.samples for family in made._telemetry.samples() if family.name == "dspy_bad_output"]
    assert bool(made.scores.sums() or any(unparsable)) is scores


@pytest.mark.parametrize(
    ("program", "line"),
    [
        ({"reward": "reward_for_tests:nothing"}, "programs.ask.reward: 'reward_for_tests' has no 'nothing'"),
        ({"record": {"path": ".", "redact": ["qestion"]}}, "programs.ask.record.redact: there is no input or output"),
        ({"record": {"path": __file__}}, "programs.ask.record.path: .* is a file; a directory is needed"),
    ],
)
def test_what_cannot_work_is_refused_when_the_program_is_loaded(program, line) -> None:
    from serve_app.errors import ConfigError

    with pytest.raises(ConfigError, match=line):
        Bench(**program)
