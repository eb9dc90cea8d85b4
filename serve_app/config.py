"""Everything a person writes in ``serve_config.yaml``, with its range, its unit and its meaning.

``AppConfig`` is an application's ``args``: topology; changing it restarts replicas. ``Policy`` is the
``user_config`` of ``ControlPlane``: changing it and running ``serve deploy`` restarts nothing.

Durations end in ``_s`` (seconds), money in ``_usd``, ratios and qualities are 0..1. Unknown keys are errors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from serve_app.messages import Level
from serve_app.redis_url import parse_redis_url

NAME_PATTERN: Final = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
LM_PATTERN: Final = r"^[^/\s]+/\S+$"
URL_PATTERN: Final = r"^https?://\S+$"
FUNCTION_PATTERN: Final = r"^[A-Za-z_][\w.]*:[A-Za-z_][\w.]*$"
ENV_PATTERN: Final = r"^[A-Za-z_][A-Za-z0-9_]*$"
REDIS_PATTERN: Final = r"^(embedded|(rediss?(\+cluster|\+sentinel)?|unix)://\S+)$"

PATTERN_WORDS: Final = {
    NAME_PATTERN: "letters, digits, '.', '_' and '-', beginning with a letter or a digit",
    LM_PATTERN: "a DSPy model string such as openai/gpt-4o",
    URL_PATTERN: "a URL that begins with http:// or https://",
    FUNCTION_PATTERN: "module:function",
    ENV_PATTERN: "the name of an environment variable, not a key itself",
    REDIS_PATTERN: "embedded, redis://…, redis+cluster://…, redis+sentinel://…, the same with rediss, unix://… or null",
}
"""What each pattern asks for, in words; a value that does not match is never repeated, for it may be a secret."""

Ratio = Annotated[float, Field(ge=0, le=1)]
Name = Annotated[str, Field(pattern=NAME_PATTERN, max_length=100)]


class Section(BaseModel):
    """Base of every section: frozen, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


def _or_text(schema: dict[str, Any]) -> None:
    """Let a schema's mapping be written as text as well."""
    mapping = dict(schema)
    schema.clear()
    schema["anyOf"] = [{"type": "string", "pattern": FUNCTION_PATTERN}, mapping]


def _names_a_host(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return bool(parts.hostname) and parts.port != 0
    except ValueError:  # the port is no port, or what stands in [brackets] no address
        return False


# ── args: topology ───────────────────────────────────────────────────────────────────────────────────


class LowConfidence(Section):
    """A shorter life for answers the program itself doubts."""

    below: Ratio
    """Answers whose confidence (0..1) is below this get ``ttl_s``."""
    ttl_s: NonNegativeFloat
    """Seconds such an answer stays fresh; 0 never stores it."""


class CacheRule(Section):
    """Another life for answers that say a certain thing."""

    field: str = Field(min_length=1)
    """Name of an output of the program."""
    equals: str | bool | int | float | None
    """What it says, in JSON form; ``1`` equals ``1.0`` but neither ``true`` nor ``"1"``."""
    ttl_s: NonNegativeFloat
    """Seconds such an answer stays fresh; 0 never stores it."""

    def matches(self, outputs: Mapping[str, object]) -> bool:
        """Whether the answer says it; one without the field does not."""
        value = outputs.get(self.field, ...)
        return isinstance(value, bool) is isinstance(self.equals, bool) and value == self.equals


class ProgramCache(Section):
    """How long one program's answers are worth keeping."""

    ttl_s: NonNegativeFloat = 1800
    """Seconds an answer stays fresh; 0 turns caching off for the program."""
    rules: tuple[CacheRule, ...] = ()
    """By what an answer says: the first rule that matches takes the place of ``ttl_s``."""
    low_confidence: LowConfidence | None = None
    """Needs ``confidence_field``; makes a life shorter, never longer."""
    early_refresh_beta: NonNegativeFloat = 1.0
    """How eagerly an answer in demand is made anew before ``ttl_s`` ends (XFetch); 0 waits for the end."""
    stale_while_revalidate_s: NonNegativeFloat = 0
    """Seconds after ``ttl_s`` during which the old answer is served while a new one is made (RFC 5861)."""
    stale_if_error_s: NonNegativeFloat = 0
    """Seconds after ``ttl_s`` during which the old answer is served when no model can answer (RFC 5861)."""

    @model_validator(mode="after")
    def _rules_need_caching(self) -> Self:
        if self.rules and self.ttl_s == 0:
            raise ValueError("rules have no effect while ttl_s is 0, which turns caching off")
        return self


class LevelConfig(Section):
    """What a program is at one level of service."""

    models: tuple[str, ...] = Field(min_length=1)
    """Names of the models that may answer, in the order of preference that strategy ``ordered`` uses."""
    max_tokens: PositiveInt | None = None
    """Most output tokens of each LM call; null leaves it to the model."""
    max_input_chars: dict[str, PositiveInt] = Field(default_factory=dict)
    """Most characters by input field; longer text is cut at a word."""
    drop_inputs: tuple[str, ...] = ()
    """Input fields left out (sent empty)."""
    program: str | None = None
    """A simpler program to run instead: ``module:Class`` or a signature."""


class Levels(Section):
    """The three levels; one left out is the next better one."""

    full: LevelConfig
    """All is well."""
    degraded: LevelConfig | None = None
    """Under pressure."""
    minimal: LevelConfig | None = None
    """The least that is still an answer."""

    def at(self, level: Level) -> LevelConfig:
        """The level's configuration, or the nearest better one's."""
        minimal = self.minimal or self.degraded or self.full
        return {Level.FULL: self.full, Level.DEGRADED: self.degraded or self.full, Level.MINIMAL: minimal}[level]


class RewardConfig(Section):
    """A function that scores a program's answers, beside the calls; ``module:function`` alone takes the defaults."""

    model_config = ConfigDict(json_schema_extra=_or_text)

    function: str = Field(pattern=FUNCTION_PATTERN)
    """``module:function`` of a ``function(args, pred) -> float``, 0..1, sync or async, as DSPy's optimisers take it."""
    share: Ratio = 1.0
    """Share of the answers that are scored."""
    timeout_s: PositiveFloat = 5.0
    """Seconds after which a score is no longer waited for."""

    @model_validator(mode="before")
    @classmethod
    def _function_alone(cls, value: object) -> object:
        return {"function": value} if isinstance(value, str) else value


class RecordConfig(Section):
    """Calls written down, to optimise the program again; ``switchyard export-trainset`` reads them."""

    path: str = Field(min_length=1)
    """Directory on the replica's own disk; each replica writes files of its own below it, readable by its user only."""
    share: Ratio = 1.0
    """Share of the scored answers that are written; of all answers where there is no ``reward``."""
    redact: tuple[str, ...] = ()
    """Inputs and outputs that are written as ``[redacted]``; ``comment`` is what callers write with a verdict."""
    max_bytes: int = Field(default=256 * 2**20, ge=2**20)
    """Most bytes of one program's files in one directory; the oldest are deleted. A replica may run over by a 16th."""


class ProgramConfig(Section):
    """One DSPy program to serve."""

    name: Name
    """Name in URLs, metrics and ``client.predict``."""
    program: str = Field(min_length=1)
    """``module:Class`` of a ``dspy.Module``, or a signature such as ``ticket -> category``."""
    state: str | None = None
    """Path of a JSON state saved with ``program.save("x.json")``; pickles are refused."""
    adapter: Literal["chat", "json", "xml"] = "chat"
    """DSPy adapter; fixed here because DSPy's default changes between versions."""
    description: str = ""
    """One sentence for ``/docs``; empty takes the program's docstring."""
    confidence_field: str | None = None
    """An output field or attribute in 0..1 that says how sure the program is."""
    reward: RewardConfig | None = None
    """Scores answers: ``module:function``, or a mapping with ``function``, ``share`` and ``timeout_s``."""
    record: RecordConfig | None = None
    """Writes sampled calls with their scores to disk; off unless set."""
    resume: bool = True
    """Continue on the next model with the LM calls that were finished; false starts over."""
    hedge_after_s: PositiveFloat | None = None
    """Seconds after which the next model is asked as well and the first answer counts; paid from the retry budget. For
    programs whose tools may run twice. Null never does."""
    cache: ProgramCache = ProgramCache()
    """How long answers are kept."""
    levels: Levels
    """What the program may become."""

    @model_validator(mode="after")
    def _doubt_needs_confidence(self) -> Self:
        if self.cache.low_confidence is not None and self.confidence_field is None:
            raise ValueError("cache.low_confidence needs confidence_field, which is not set")
        return self


class Price(Section):
    """What a model's tokens cost."""

    input_usd_per_1m_tokens: NonNegativeFloat = 0.0
    """USD for a million input tokens."""
    output_usd_per_1m_tokens: NonNegativeFloat = 0.0
    """USD for a million output tokens."""

    def cost_usd(self, input_tokens: float, output_tokens: float) -> float:
        """USD for that many tokens."""
        return (input_tokens * self.input_usd_per_1m_tokens + output_tokens * self.output_usd_per_1m_tokens) / 1e6


class Replicas(Section):
    """How many replicas a part runs, and what makes it grow."""

    min: int = Field(default=1, ge=0)
    """Fewest replicas; 0 (of a model) lets the last one go, and a call then waits for the start of the next."""
    max: PositiveInt = 1
    """Most replicas; not below ``min``."""
    target_queue_depth: PositiveFloat = 8
    """Calls per replica that autoscaling aims at: for a model those waiting for a slot, elsewhere those in hand."""
    downscale_delay_s: NonNegativeFloat = 60
    """Seconds for which fewer replicas must be enough before one goes."""

    @model_validator(mode="after")
    def _max_reaches_min(self) -> Self:
        if self.max < self.min:
            raise ValueError(f"max ({self.max}) is below min ({self.min})")
        return self


class LastingReplicas(Replicas):
    """How many replicas a part runs that calls cannot wait for, and what makes it grow."""

    min: int = Field(default=1, ge=1)
    """Fewest replicas; only models may scale to zero."""


class ModelConfig(Section):
    """One language model, and the replicas that talk to it."""

    name: Name
    """Name in routes, metrics and ``options.model``."""
    lm: str = Field(pattern=LM_PATTERN)
    """DSPy model string, ``provider/model``, for example ``openai/gpt-4o``."""
    api_base: str | None = Field(default=None, pattern=URL_PATTERN)
    """Base URL of the provider; null is the provider's own."""
    api_key_env: str | None = Field(default=None, pattern=ENV_PATTERN)
    """Name of the environment variable that holds the key; never a key."""
    model_type: Literal["chat", "responses"] = "chat"
    """Which of OpenAI's dialects the provider speaks; other providers have one."""
    temperature: float | None = Field(default=None, ge=0, le=2)
    """Sampling temperature; null is the provider's default."""
    max_tokens: PositiveInt | None = None
    """Most output tokens of an LM call at any level."""
    quality: Ratio = 0.5
    """Prior quality, 0..1, until measured."""
    latency_s: PositiveFloat = 1.0
    """Prior latency of a call in seconds, until measured."""
    price: Price = Price()
    """Token prices, for routing by cost and for accounting."""
    context_window: PositiveInt = 128_000
    """Tokens the model takes, prompt and answer together. After a prompt that is too long only models with a larger one
    are asked: where all keep the default, none."""
    max_ongoing_requests: PositiveInt = 64
    """Most calls one replica runs at once; a program with ``forward`` alone takes a thread for each."""
    adaptive_concurrency: bool = True
    """Run fewer at once while the provider is slower per token than usual or answers 429; false always allows all."""
    max_queued_requests: PositiveInt = 1000
    """Most calls that wait for a slot in one replica; beyond it the worst class gets 429, sheddable calls at half."""
    replicas: Replicas = Replicas()
    """How many replicas, and when to add one."""

    @field_validator("api_base")
    @classmethod
    def _has_an_address(cls, url: str | None) -> str | None:
        if url is not None and not _names_a_host(url):
            raise ValueError("names no host and port that could be connected to")
        return url


class CacheConfig(Section):
    """Where answers are kept."""

    redis_url: str | None = Field(default="embedded", pattern=REDIS_PATTERN)
    """Where the level is that all replicas share: ``embedded`` (a server of our own), null for memory only, or a URL.

    ``redis://[user:password@]host[:port][/db]``; ``redis+cluster://host:port[,host:port…]``;
    ``redis+sentinel://host:port[,host:port…]/service[/db]``; ``unix:///path``; with ``rediss`` for ``redis`` it is TLS,
    and ``?ssl_ca_certs=/path`` and the like may follow. ``serve_app.redis_url`` has the whole grammar.
    """
    redis_timeout_s: Annotated[float, Field(gt=0, le=5)] = 0.05
    """Seconds a call waits for the shared level before it goes on without; longer for one that is far away."""
    replicas: LastingReplicas = LastingReplicas()
    """Replicas of the cache; graph ``standard`` only, in ``compact`` each ingress has its own."""
    near_entries: int = Field(default=10_000, ge=0)
    """Most answers each ingress keeps in its own memory, and each cache in its own; 0 keeps none."""
    near_max_bytes: int = Field(default=64 * 2**20, ge=0)
    """Most bytes each ingress keeps in its own memory, and each cache in its own; in ``compact`` a process is both."""

    @field_validator("redis_url")
    @classmethod
    def _is_readable(cls, url: str | None) -> str | None:
        if url is not None and url != "embedded":
            parse_redis_url(url)
        return url

    def has_peers(self, holders: Replicas) -> bool:
        """Whether others may store under the same keys: more ``holders`` of this application, or other applications."""
        is_private = self.redis_url is None or self.redis_url == "embedded"
        return not is_private or holders.max > 1


class BatchingConfig(Section):
    """How waiting calls become a batch."""

    max_batch_size: PositiveInt = 32
    """Most calls in a batch."""
    batch_wait_timeout_s: NonNegativeFloat = 0.0
    """Seconds a batch waits for more calls; 0 takes what is there."""


class LimitsConfig(Section):
    """Bounds on everything a caller can make large."""

    max_queued_requests: PositiveInt = 2000
    """Most calls one ingress replica holds; further ones get 429."""
    max_body_bytes: int = Field(default=1_048_576, ge=1024)
    """Most bytes of a request body."""
    default_deadline_s: PositiveFloat = 60.0
    """Seconds a call may take unless it says otherwise."""
    max_deadline_s: PositiveFloat = 600.0
    """Most seconds a call may ask for."""

    @model_validator(mode="after")
    def _default_fits(self) -> Self:
        if self.default_deadline_s > self.max_deadline_s:
            raise ValueError(
                f"default_deadline_s ({self.default_deadline_s:g}) is above max_deadline_s ({self.max_deadline_s:g})"
            )
        return self


class AppConfig(Section):
    """An application's ``args``: which programs, which models, how they are wired."""

    programs: tuple[ProgramConfig, ...] = Field(min_length=1)
    """The programs to serve."""
    models: tuple[ModelConfig, ...] = Field(min_length=1)
    """The models that answer them."""
    default_model: str
    """The model asked when selection leaves nothing."""
    cache: CacheConfig = CacheConfig()
    """Where answers are kept."""
    batching: BatchingConfig = BatchingConfig()
    """How calls are batched."""
    limits: LimitsConfig = LimitsConfig()
    """Bounds."""
    ingress: LastingReplicas = LastingReplicas()
    """Replicas of the ingress."""
    router: LastingReplicas = LastingReplicas()
    """Replicas of the router; graph ``standard`` only."""


# ── user_config of ControlPlane: policy ──────────────────────────────────────────────────────────────


class ComplexityThresholds(Section):
    """Quality a model must reach for a call of that complexity."""

    high: Ratio = 0.9
    """For hard calls."""
    medium: Ratio = 0.8
    """For ordinary calls."""
    low: Ratio = 0.0
    """For easy calls."""

    @model_validator(mode="after")
    def _harder_asks_for_more(self) -> Self:
        if not self.high >= self.medium >= self.low:
            raise ValueError(f"high ({self.high:g}), medium ({self.medium:g}), low ({self.low:g}): must not rise")
        return self


class LearningPolicy(Section):
    """How scores move a model's quality; ``serve_app.core.learned_quality`` has the formula."""

    sources: tuple[Literal["reward", "feedback", "confidence"], ...] = Field(("reward", "feedback"), min_length=1)
    """Scores that count, all alike; leave ``feedback`` out where callers are not trusted with your routing."""
    min_samples: NonNegativeFloat = 20
    """Scored answers of a model for a program that move nothing yet."""
    prior_weight: PositiveFloat = 20
    """Scored answers, beyond those, that weigh as much as the prior."""
    max_change: Ratio = 0.5
    """Furthest the learned quality may be from the prior."""
    half_life_s: PositiveFloat = 3600.0
    """Seconds after which a score counts half."""


class RoutingPolicy(Section):
    """How the router orders models."""

    strategy: Literal["cost", "quality", "latency", "ordered"] = "cost"
    """``cost`` cheapest first, ``quality`` best first, ``latency`` fastest first, ``ordered`` as listed."""
    complexity: ComplexityThresholds = ComplexityThresholds()
    """Quality thresholds by complexity."""
    max_attempts: PositiveInt = 3
    """Most models asked for one call."""
    learn_quality: bool = False
    """Route by what answers scored, for each program and model, in place of the models' ``quality``."""
    learning: LearningPolicy = LearningPolicy()
    """How scores move a model's quality; also decides what ``/v1/status`` shows while ``learn_quality`` is off."""


class BreakerPolicy(Section):
    """When a model is left alone, and how it comes back."""

    failure_rate_threshold: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of failed calls in the window that opens the breaker."""
    slow_call_s: PositiveFloat = 30.0
    """Seconds from which an answered call counts as slow."""
    slow_call_rate_threshold: Annotated[float, Field(gt=0, le=1)] = 0.8
    """Share of slow calls in the window that opens the breaker."""
    minimum_calls: PositiveInt = 5
    """Calls in the window below which no rate is judged."""
    window_s: PositiveFloat = 30.0
    """Seconds of the sliding window."""
    open_s: PositiveFloat = 30.0
    """Seconds an open breaker waits before it admits a probe; doubles with each trip in a row."""
    max_open_s: PositiveFloat = 30.0
    """Cap on the growth of ``open_s``; a model that recovers is asked again within this time."""
    half_open_probes: PositiveInt = 1
    """Probes in flight at once, and successes needed to close."""
    probe_lease_s: PositiveFloat = 60.0
    """Seconds after which a probe that said nothing is given up."""

    @model_validator(mode="after")
    def _cap_reaches_open(self) -> Self:
        if self.max_open_s < self.open_s:
            raise ValueError(f"max_open_s ({self.max_open_s:g}) is below open_s ({self.open_s:g})")
        return self


class RetryPolicy(Section):
    """The retry budget: how much load second attempts may add."""

    budget_ratio: Ratio = 0.2
    """Retries allowed as a share of recent calls."""
    budget_floor_per_s: NonNegativeFloat = 1.0
    """Retries a second allowed however few calls there are."""


class Thresholds(Section):
    """Readings that enter a level; null never does."""

    cpu: Ratio | None = None
    """CPU use of the busiest node, 0..1."""
    memory: Ratio | None = None
    """Memory use of the fullest node, 0..1."""
    error_rate: Ratio | None = None
    """Share of calls that failed; not judged below 5 calls in the window."""
    p95_latency_s: PositiveFloat | None = None
    """95th percentile of answer time, seconds; not judged below 5 answers in the window."""
    queue_wait_s: PositiveFloat | None = None
    """95th percentile of the wait for a model slot, seconds; not judged below 5 waits in the window."""


class DegradationPolicy(Section):
    """When the service becomes less, on purpose: one level for all programs, each of which says what it is then."""

    degraded: Thresholds = Thresholds(cpu=0.80, p95_latency_s=5, queue_wait_s=2)
    """Any one of these enters ``degraded``."""
    minimal: Thresholds = Thresholds(memory=0.90, error_rate=0.10)
    """Any one of these enters ``minimal``."""
    exit_ratio: Annotated[float, Field(gt=0, le=1)] = 0.8
    """A level is left when every reading is below its threshold times this."""
    dwell_s: NonNegativeFloat = 15.0
    """Seconds a level is kept at least."""
    window_s: PositiveFloat = 10.0
    """Seconds over which readings are taken."""
    pin: Level | None = None
    """Holds a level whatever the readings say."""

    @model_validator(mode="after")
    def _minimal_is_worse(self) -> Self:
        for reading in Thresholds.model_fields:
            degraded, minimal = getattr(self.degraded, reading), getattr(self.minimal, reading)
            if degraded is not None and minimal is not None and minimal < degraded:
                raise ValueError(f"minimal.{reading} ({minimal:g}) is below degraded.{reading} ({degraded:g})")
        return self


class Policy(Section):
    """``user_config`` of ``ControlPlane``: changed while running, without a restart."""

    routing: RoutingPolicy = RoutingPolicy()
    """Model selection."""
    breaker: BreakerPolicy = BreakerPolicy()
    """Circuit breakers."""
    retry: RetryPolicy = RetryPolicy()
    """Retry budget."""
    degradation: DegradationPolicy = DegradationPolicy()
    """Levels of service."""
    batching: BatchingConfig | None = None
    """How calls are batched from now on; null leaves it to ``args.batching``."""
