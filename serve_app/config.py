"""Everything a person writes in ``serve_config.yaml``, with its range, its unit and its meaning.

``AppConfig`` is an application's ``args``: topology; changing it restarts replicas. What may change without is in
``serve_app.policy``.

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
