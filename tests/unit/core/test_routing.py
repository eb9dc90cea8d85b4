from __future__ import annotations

import itertools
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.config import LevelConfig, ModelConfig, Price
from serve_app.core.recent_usage import Expectation
from serve_app.core.routing import Demand, ModelFacts, estimate_cost_usd, select
from serve_app.messages import Complexity, Options
from serve_app.policy import RoutingPolicy

# USD for 1,000 input and 100 output tokens: large 0.00350, medium 0.00035, small 0.00007.
FACTS = {
    model.name: model
    for model in (
        ModelFacts("large", 0.95, Price(input_usd_per_1m_tokens=2.5, output_usd_per_1m_tokens=10), 100_000, 2.0, 100),
        ModelFacts("medium", 0.85, Price(input_usd_per_1m_tokens=0.25, output_usd_per_1m_tokens=1), 100_000, 0.5, 100),
        ModelFacts("small", 0.60, Price(input_usd_per_1m_tokens=0.05, output_usd_per_1m_tokens=0.2), 100_000, 1.0, 100),
        ModelFacts("spare", 0.70, Price(input_usd_per_1m_tokens=9, output_usd_per_1m_tokens=9), 100_000, 9.0, 100),
    )
}
BUDGETS = {"all": None, "generous": 1.0, "some": 0.001, "none": 0.00001}
LEVELS = {
    "full": ("large", "medium", "small"),
    "degraded": ("medium", "small"),
    "minimal": ("small",),
    "reversed": ("small", "medium", "large"),
}

# (strategy, complexity, budget, level) → route. "all" and "generous" budgets fit every model, "some" all but large.
TABLE = """
cost     low     all   full      small medium large
cost     low     all   degraded  small medium
cost     low     all   minimal   small
cost     low     all   reversed  small medium large
cost     low     some  full      small medium
cost     low     some  degraded  small medium
cost     low     some  minimal   small
cost     low     some  reversed  small medium
cost     medium  all   full      medium large small
cost     medium  all   degraded  medium small
cost     medium  all   minimal   small
cost     medium  all   reversed  medium large small
cost     medium  some  full      medium small
cost     medium  some  degraded  medium small
cost     medium  some  minimal   small
cost     medium  some  reversed  medium small
cost     high    all   full      large medium small
cost     high    all   degraded  medium small
cost     high    all   minimal   small
cost     high    all   reversed  large medium small
cost     high    some  full      medium small
cost     high    some  degraded  medium small
cost     high    some  minimal   small
cost     high    some  reversed  medium small
quality  low     all   full      large medium small
quality  low     all   degraded  medium small
quality  low     all   minimal   small
quality  low     all   reversed  large medium small
quality  low     some  full      medium small
quality  low     some  degraded  medium small
quality  low     some  minimal   small
quality  low     some  reversed  medium small
quality  medium  all   full      large medium small
quality  medium  all   degraded  medium small
quality  medium  all   minimal   small
quality  medium  all   reversed  large medium small
quality  medium  some  full      medium small
quality  medium  some  degraded  medium small
quality  medium  some  minimal   small
quality  medium  some  reversed  medium small
quality  high    all   full      large medium small
quality  high    all   degraded  medium small
quality  high    all   minimal   small
quality  high    all   reversed  large medium small
quality  high    some  full      medium small
quality  high    some  degraded  medium small
quality  high    some  minimal   small
quality  high    some  reversed  medium small
latency  low     all   full      medium small large
latency  low     all   degraded  medium small
latency  low     all   minimal   small
latency  low     all   reversed  medium small large
latency  low     some  full      medium small
latency  low     some  degraded  medium small
latency  low     some  minimal   small
latency  low     some  reversed  medium small
latency  medium  all   full      medium large small
latency  medium  all   degraded  medium small
latency  medium  all   minimal   small
latency  medium  all   reversed  medium large small
latency  medium  some  full      medium small
latency  medium  some  degraded  medium small
latency  medium  some  minimal   small
latency  medium  some  reversed  medium small
latency  high    all   full      large medium small
latency  high    all   degraded  medium small
latency  high    all   minimal   small
latency  high    all   reversed  large medium small
latency  high    some  full      medium small
latency  high    some  degraded  medium small
latency  high    some  minimal   small
latency  high    some  reversed  medium small
ordered  low     all   full      large medium small
ordered  low     all   degraded  medium small
ordered  low     all   minimal   small
ordered  low     all   reversed  small medium large
ordered  low     some  full      medium small
ordered  low     some  degraded  medium small
ordered  low     some  minimal   small
ordered  low     some  reversed  small medium
ordered  medium  all   full      large medium small
ordered  medium  all   degraded  medium small
ordered  medium  all   minimal   small
ordered  medium  all   reversed  medium large small
ordered  medium  some  full      medium small
ordered  medium  some  degraded  medium small
ordered  medium  some  minimal   small
ordered  medium  some  reversed  medium small
ordered  high    all   full      large medium small
ordered  high    all   degraded  medium small
ordered  high    all   minimal   small
ordered  high    all   reversed  large small medium
ordered  high    some  full      medium small
ordered  high    some  degraded  medium small
ordered  high    some  minimal   small
ordered  high    some  reversed  small medium
"""


def table() -> dict[tuple[str, ...], tuple[str, ...]]:
    rows = [tuple(line.split()) for line in TABLE.split("\n") if line]
    answers = {row[:4]: row[4:] for row in rows}
    answers |= {(s, c, "generous", level): route for (s, c, b, level), route in answers.items() if b == "all"}
    return answers


STRATEGIES = ("cost", "quality", "latency", "ordered")
COMPLEXITIES = ("low", "medium", "high")
ROWS = table()


@dataclass(frozen=True)
class Case:
    strategy: str = "cost"
    complexity: str = "low"
    budget_usd: float | None = None
    level: str = "full"
    pin: str | None = None
    default_model: str = "spare"
    input_tokens: int = 1000

    def route(self, facts: dict[str, ModelFacts] = FACTS):
        demand = Demand(Complexity(self.complexity), self.input_tokens, self.budget_usd, None, self.pin)
        policy = RoutingPolicy(strategy=self.strategy)
        return select(demand, LEVELS.get(self.level, (self.level,)), facts, policy, self.default_model)


def test_the_table_holds_every_combination() -> None:
    assert set(ROWS) == set(itertools.product(STRATEGIES, COMPLEXITIES, ("all", "generous", "some"), LEVELS))


@pytest.mark.parametrize(("row", "models"), [*ROWS.items()], ids="-".join)
def test_the_route_is_the_tables(row: tuple[str, ...], models: tuple[str, ...]) -> None:
    strategy, complexity, budget, level = row
    route = Case(strategy, complexity, BUDGETS[budget], level).route()
    assert (route.models, route.refused) == (models, "")


@pytest.mark.parametrize("combination", [*itertools.product(STRATEGIES, COMPLEXITIES, LEVELS)], ids="-".join)
def test_a_budget_that_no_model_fits_leaves_the_default_model(combination: tuple[str, str, str]) -> None:
    strategy, complexity, level = combination
    assert Case(strategy, complexity, BUDGETS["none"], level).route().models == ("spare",)


@pytest.mark.parametrize(
    "combination", [*itertools.product(STRATEGIES, COMPLEXITIES, BUDGETS, LEVELS, FACTS)], ids="-".join
)
def test_a_pinned_model_is_asked_alone_whatever_else_is_wished(combination: tuple[str, ...]) -> None:
    strategy, complexity, budget, level, pin = combination
    assert Case(strategy, complexity, BUDGETS[budget], level, pin).route().models == (pin,)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_an_unknown_pin_is_refused_and_names_what_there_is(strategy: str) -> None:
    route = Case(strategy, pin="huge").route()
    assert route.models == ()
    assert "'huge'" in route.refused
    assert "large, medium, small, spare" in route.refused


@pytest.mark.parametrize(
    ("level", "default_model", "models"),
    [
        ("degraded", "small", ("small", "medium")),  # listed: it leads
        ("degraded", "medium", ("medium", "small")),
        ("degraded", "large", ("medium", "small")),  # not listed: the level's own models go before it
        ("minimal", "large", ("small",)),
    ],
)
def test_without_a_candidate_the_default_model_leads_if_the_level_lists_it(
    level: str, default_model: str, models: tuple[str, ...]
) -> None:
    assert Case(complexity="high", level=level, default_model=default_model).route().models == models


def test_a_default_model_over_the_budget_does_not_lead_while_another_fits() -> None:
    case = Case(complexity="high", budget_usd=0.001, default_model="large")
    assert case.route().models == ("medium", "small")


def test_a_model_whose_window_the_inputs_overflow_is_left_out() -> None:
    facts = FACTS | {"large": ModelFacts("large", 0.95, Price(), 500, 1, 1)}
    assert Case(complexity="high").route(facts).models == ("medium", "small")
    assert Case(complexity="high", input_tokens=500).route(facts).models == ("large", "medium", "small")


def test_inputs_that_overflow_every_window_go_to_the_default_model() -> None:
    assert Case(input_tokens=100_001).route().models == ("spare",)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_equals_keep_the_listed_order(strategy: str) -> None:
    same = {name: ModelFacts(name, 0.95, Price(), 1000, 1.0, 1) for name in ("b", "c", "a")}
    policy = RoutingPolicy(strategy=strategy)
    for complexity in (Complexity.LOW, Complexity.HIGH):
        for listed in itertools.permutations(same):
            assert select(Demand(complexity), listed, same, policy, "a").models == listed


def test_a_model_listed_twice_is_asked_once() -> None:
    assert select(Demand(Complexity.LOW), ("small", "small"), FACTS, RoutingPolicy(), "spare").models == ("small",)


def test_thresholds_are_the_policys_and_reached_by_equality() -> None:
    policy = RoutingPolicy.model_validate({"strategy": "cost", "complexity": {"high": 0.85, "medium": 0.6, "low": 0.6}})
    assert select(Demand(Complexity.HIGH), LEVELS["full"], FACTS, policy, "spare").models[0] == "medium"
    assert select(Demand(Complexity.MEDIUM), LEVELS["full"], FACTS, policy, "spare").models[0] == "small"


def test_auto_must_be_resolved_first() -> None:
    with pytest.raises(ValueError, match="resolved"):
        select(Demand(Complexity.AUTO), LEVELS["full"], FACTS, RoutingPolicy(), "spare")


def test_the_estimate_is_input_overhead_and_expected_output_at_the_models_prices() -> None:
    price = Price(input_usd_per_1m_tokens=1, output_usd_per_1m_tokens=10)
    model = ModelFacts("m", 0.5, price, 1000, 1, output_tokens=300, overhead_tokens=50)
    assert estimate_cost_usd(model, Demand(Complexity.LOW, 100)) == pytest.approx((150 + 3000) / 1e6)
    assert estimate_cost_usd(model, Demand(Complexity.LOW, 100, max_tokens=20)) == pytest.approx((150 + 200) / 1e6)
    assert estimate_cost_usd(model, Demand(Complexity.LOW, 100, max_tokens=999)) == pytest.approx((150 + 3000) / 1e6)


def test_a_models_own_token_limit_bounds_its_estimate() -> None:
    config = ModelConfig(name="m", lm="openai/m", max_tokens=10, price=Price(output_usd_per_1m_tokens=1e6))
    model = ModelFacts.of(config, Expectation(output_tokens=300, latency_s=2.5, overhead_tokens=7))
    assert estimate_cost_usd(model, Demand(Complexity.LOW)) == pytest.approx(10)
    assert (model.latency_s, model.overhead_tokens, model.quality) == (2.5, 7, config.quality)


def test_the_route_tells_what_its_first_model_will_cost() -> None:
    route = Case(complexity="high").route()
    assert route.estimated_cost_usd == pytest.approx(0.0035)


def test_a_demand_takes_the_smaller_token_limit_and_resolves_auto() -> None:
    options = Options(max_tokens=64, budget_usd=0.1, model="small")
    level = LevelConfig(models=("small",), max_tokens=256)
    demand = Demand.of({"ticket": "hello"}, options, level)
    assert demand == Demand(Complexity.LOW, demand.input_tokens, 0.1, 64, "small")
    assert demand.input_tokens > 0
    assert Demand.of({}, Options(complexity=Complexity.HIGH), level) == Demand(Complexity.HIGH, 0, None, 256, None)


def test_a_demand_is_that_of_what_the_level_leaves_of_the_inputs() -> None:
    inputs = {"ticket": "why? " * 10, "context": "x" * 40_000, "page": 7}
    short = {"ticket": "why? " * 2, "page": 7}
    level = LevelConfig(models=("small",), drop_inputs=("context",), max_input_chars={"ticket": 10, "page": 1})
    assert Demand.of(inputs, Options(), level) == Demand.of(short, Options())
    assert Demand.of(inputs, Options(), LevelConfig(models=("small",))).input_tokens > 10_000


MODELS = st.builds(
    ModelFacts,
    name=st.text("abcdef", min_size=1, max_size=3),
    quality=st.floats(0, 1),
    price=st.builds(Price, input_usd_per_1m_tokens=st.floats(0, 50), output_usd_per_1m_tokens=st.floats(0, 50)),
    context_window=st.integers(1, 2000),
    latency_s=st.floats(0.01, 10),
    output_tokens=st.floats(0, 1000),
)


@given(
    models=st.lists(MODELS, min_size=1, max_size=6, unique_by=lambda model: model.name),
    strategy=st.sampled_from(STRATEGIES),
    complexity=st.sampled_from([Complexity.LOW, Complexity.MEDIUM, Complexity.HIGH]),
    tokens=st.integers(0, 3000),
    budget=st.none() | st.floats(0, 0.1),
)
def test_a_route_never_repeats_a_model_is_never_empty_and_breaks_no_promise_unless_it_is_the_default(
    models, strategy, complexity, tokens, budget
) -> None:
    facts = {model.name: model for model in models}
    demand = Demand(complexity, tokens, budget)
    route = select(demand, tuple(facts), facts, RoutingPolicy(strategy=strategy), models[-1].name)
    assert route.models
    assert len(set(route.models)) == len(route.models)
    default = models[-1].name
    fitting = [name for name, model in facts.items() if tokens <= model.context_window]
    possible = [name for name in fitting if budget is None or estimate_cost_usd(facts[name], demand) <= budget]
    last_resort = [default] if default in fitting else fitting or [default]
    assert sorted(route.models) == sorted(possible or last_resort)


def test_a_budget_refuses_no_call_that_fits_into_another_model_than_the_default() -> None:
    facts = {
        "small": ModelFacts("small", 0.5, Price(output_usd_per_1m_tokens=1), 1_000, 1.0, 100),
        "dear": ModelFacts("dear", 0.9, Price(output_usd_per_1m_tokens=50), 50_000, 1.0, 100),
        "large": ModelFacts("large", 0.9, Price(output_usd_per_1m_tokens=20), 50_000, 1.0, 100),
    }
    demand = Demand(Complexity.LOW, input_tokens=2_000, budget_usd=1e-6)
    assert select(demand, tuple(facts), facts, RoutingPolicy(), "small").models == ("large", "dear")
