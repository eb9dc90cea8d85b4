"""Which models to ask for a call, and in which order.

The rule, over the models that the program's level lists:

1. A model whose context window the inputs alone overflow is out, and so is one whose estimated cost exceeds
   ``budget_usd``: a fallback may not spend what the caller would not.
2. *Candidates* are those left whose quality reaches the complexity's threshold. The strategy orders them: ``cost``
   cheapest first, ``quality`` best first, ``latency`` fastest first, ``ordered`` as listed. Equals stay as listed.
3. Behind them, as fallbacks, stand those left that do not reach the threshold, best first (``ordered``: as listed):
   a lesser answer is worth more than none.
4. No candidate: ``default_model`` leads if the level lists it and step 1 left it in; the others stand behind it.
   A level is a promise about load, so a default that the level does not list waits until nothing else is left.
5. Nothing left at all: ``default_model`` alone, whatever it costs. A budget chooses among models, it refuses no call:
   where the inputs do not fit into that model, those listed that they fit into are asked, cheapest first.

A pinned model is asked alone, listed or not, whatever its cost and window: the caller named it. Only one that is not
configured is refused.

The estimated cost is that of one answer: the inputs' tokens plus what recent calls of that program needed beyond
them, and as many output tokens as recent calls took, at most ``max_tokens``, at the model's prices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from serve_app.config import LevelConfig, ModelConfig, Price
from serve_app.core.complexity import estimate_tokens, resolve
from serve_app.core.recent_usage import Expectation
from serve_app.messages import Complexity, Options, Route
from serve_app.policy import ComplexityThresholds, RoutingPolicy


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What routing knows of one model for one program.

    Attributes:
        output_tokens: expected of an answer.
        overhead_tokens: input tokens expected beyond the inputs' own.
        latency_s: expected of an answer.
        max_tokens: the model's own cap on output tokens.
    """

    name: str
    quality: float
    price: Price
    context_window: int
    latency_s: float
    output_tokens: float
    overhead_tokens: float = 0.0
    max_tokens: int | None = None

    @classmethod
    def of(cls, model: ModelConfig, expected: Expectation, quality: float | None = None) -> ModelFacts:
        """The facts that a configuration and recent calls give; ``quality`` is what was learned, if anything was."""
        return cls(
            name=model.name,
            quality=model.quality if quality is None else quality,
            price=model.price,
            context_window=model.context_window,
            latency_s=expected.latency_s,
            output_tokens=expected.output_tokens,
            overhead_tokens=expected.overhead_tokens,
            max_tokens=model.max_tokens,
        )


@dataclass(frozen=True, slots=True)
class Demand:
    """What a call asks of a route.

    Attributes:
        complexity: low, medium or high; ``auto`` has been resolved.
        input_tokens: estimate over the inputs.
        budget_usd: most an answer may cost; ``None`` sets no bound.
        max_tokens: most output tokens, the smaller of the caller's and the level's.
        pin: the one model to ask.
    """

    complexity: Complexity
    input_tokens: int = 0
    budget_usd: float | None = None
    max_tokens: int | None = None
    pin: str | None = None

    @classmethod
    def of(cls, inputs: Mapping[str, object], options: Options, level: LevelConfig | None = None) -> Demand:
        """The demand of a call: estimates from what its level leaves of its inputs, wishes from its options."""
        inputs = inputs if level is None else _left_of(inputs, level)
        input_tokens = estimate_tokens(inputs)
        return cls(
            complexity=resolve(options.complexity, inputs, input_tokens),
            input_tokens=input_tokens,
            budget_usd=options.budget_usd,
            max_tokens=_smallest(options.max_tokens, level.max_tokens if level else None),
            pin=options.model,
        )


def _left_of(inputs: Mapping[str, object], level: LevelConfig) -> Mapping[str, object]:
    if not level.drop_inputs and not level.max_input_chars:
        return inputs
    kept = {name: value for name, value in inputs.items() if name not in level.drop_inputs}
    cut = {
        name: value[:most] for name, most in level.max_input_chars.items() if isinstance(value := kept.get(name), str)
    }
    return kept | cut


def estimate_cost_usd(model: ModelFacts, demand: Demand) -> float:
    """USD one answer of ``model`` will cost, about."""
    cap = _smallest(demand.max_tokens, model.max_tokens)
    output_tokens = model.output_tokens if cap is None else min(model.output_tokens, cap)
    return model.price.cost_usd(demand.input_tokens + model.overhead_tokens, output_tokens)


def select(
    demand: Demand,
    listed: Sequence[str],
    facts: Mapping[str, ModelFacts],
    policy: RoutingPolicy,
    default_model: str,
) -> Route:
    """The models to ask, in order, by the rule above.

    Args:
        demand: what the call asks for.
        listed: the level's models in their configured order.
        facts: of every configured model, by name.
        policy: strategy and thresholds.
        default_model: asked when nothing else is left.
    """
    if demand.pin is not None:
        return _pinned(demand, demand.pin, facts)
    possible = [facts[name] for name in dict.fromkeys(listed) if _is_possible(facts[name], demand)]
    threshold = threshold_of(demand.complexity, policy.complexity)
    candidates = [model for model in possible if model.quality >= threshold]
    rest = [model for model in possible if model.quality < threshold]
    ordered = _in_order(candidates, policy.strategy, demand) + _fallbacks(rest, policy.strategy)
    if not candidates:
        ordered.sort(key=lambda model: model.name != default_model)
    return _route(ordered or _last_resort(demand, listed, facts, facts[default_model]), demand)


def _last_resort(
    demand: Demand, listed: Sequence[str], facts: Mapping[str, ModelFacts], default: ModelFacts
) -> list[ModelFacts]:
    at_any_cost = replace(demand, budget_usd=None)
    if _is_possible(default, at_any_cost):
        return [default]
    fitting = [facts[name] for name in dict.fromkeys(listed) if _is_possible(facts[name], at_any_cost)]
    return _in_order(fitting, "cost", at_any_cost) or [default]


def threshold_of(complexity: Complexity, thresholds: ComplexityThresholds) -> float:
    """Quality a model must reach for a call of that complexity.

    Raises:
        ValueError: ``auto`` has no threshold; resolve it first.
    """
    if complexity is Complexity.HIGH:
        return thresholds.high
    if complexity is Complexity.MEDIUM:
        return thresholds.medium
    if complexity is Complexity.LOW:
        return thresholds.low
    raise ValueError(f"complexity {complexity} must be resolved before routing")


def _pinned(demand: Demand, pin: str, facts: Mapping[str, ModelFacts]) -> Route:
    if pin not in facts:
        return Route(models=(), refused=f"options.model: no model is named {pin!r}; there are {', '.join(facts)}")
    return _route([facts[pin]], demand)


def _is_possible(model: ModelFacts, demand: Demand) -> bool:
    if demand.input_tokens > model.context_window:
        return False
    return demand.budget_usd is None or estimate_cost_usd(model, demand) <= demand.budget_usd


def _in_order(models: Iterable[ModelFacts], strategy: str, demand: Demand) -> list[ModelFacts]:
    keys: dict[str, Callable[[ModelFacts], float]] = {
        "cost": lambda model: estimate_cost_usd(model, demand),
        "quality": lambda model: -model.quality,
        "latency": lambda model: model.latency_s,
        "ordered": lambda _: 0.0,
    }
    return sorted(models, key=keys[strategy])


def _fallbacks(models: Iterable[ModelFacts], strategy: str) -> list[ModelFacts]:
    return list(models) if strategy == "ordered" else sorted(models, key=lambda model: -model.quality)


def _route(models: Sequence[ModelFacts], demand: Demand) -> Route:
    return Route(tuple(model.name for model in models), estimate_cost_usd(models[0], demand))


def _smallest(one: int | None, other: int | None) -> int | None:
    if one is None or other is None:
        return other if one is None else one
    return min(one, other)
