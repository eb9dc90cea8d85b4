import pickle

import dspy
import pytest
from dspy import lm15
from program_fakes import Provider

from serve_app.adapters.program_errors import translate
from serve_app.errors import (
    BadOutput,
    DeadlineExceeded,
    InvalidInputs,
    ProgramError,
    UpstreamError,
    UpstreamRefused,
)
from serve_app.messages import Outcome

KEY = "sk-abcdefghijklmnop1234"


async def failure(error):
    """What comes out of DSPy when the engine raises ``error``, translated."""
    lm = Provider(error).lm()
    with dspy.context(lm=lm, trace=[], adapter=dspy.ChatAdapter(use_json_adapter_fallback=False)):
        try:
            await dspy.Predict("a -> b").acall(a="the prompt")
        except Exception as raised:  # noqa: BLE001 - any error is what is tested
            return translate(raised)
    raise AssertionError("nothing was raised")


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (lm15.TransportError("reset by peer"), Outcome.UNREACHABLE),
        (lm15.LockTimeoutError("lock"), Outcome.UNREACHABLE),
        (lm15.TimeoutError("slow"), Outcome.TIMEOUT),
        (lm15.TimeoutError("gateway", status=504), Outcome.TIMEOUT),
        (lm15.ServerError("oops", status=500), Outcome.SERVER_ERROR),
        (lm15.ServerError("busy", status=529), Outcome.SERVER_ERROR),
        (lm15.StreamAssemblyError("cut"), Outcome.MALFORMED),
        (lm15.ProviderError("not JSON", status=200), Outcome.MALFORMED),
        (lm15.ProviderError("not JSON"), Outcome.MALFORMED),
        (lm15.RateLimitError("slow down", status=429), Outcome.RATE_LIMITED),
        (lm15.RateLimitError("quota", status=429, provider_code="insufficient_quota"), Outcome.DENIED),
        (lm15.BillingError("pay", status=402), Outcome.DENIED),
        (lm15.BillingError("pay", status=429), Outcome.DENIED),
        (lm15.AuthError("bad key", status=401), Outcome.DENIED),
        (lm15.AuthError("forbidden", status=403), Outcome.DENIED),
        (lm15.UnsupportedModelError("no such model", status=404), Outcome.DENIED),
        (lm15.InvalidRequestError("not found", status=404), Outcome.DENIED),
        (lm15.InvalidRequestError("x", status=400, provider_code="model_not_found"), Outcome.DENIED),
        (lm15.NotConfiguredError("no key"), Outcome.DENIED),
        (lm15.ContextLengthError("too long", status=400), Outcome.CONTEXT_WINDOW),
        (lm15.InvalidRequestError("too large", status=413), Outcome.CONTEXT_WINDOW),
        (lm15.ProviderError("x", status=502), Outcome.SERVER_ERROR),
        (lm15.ProviderError("x", status=429), Outcome.RATE_LIMITED),
        (KeyError("choices"), Outcome.MALFORMED),
        (ConnectionResetError("reset"), Outcome.UNREACHABLE),
        (TimeoutError("read"), Outcome.TIMEOUT),
    ],
)
async def test_a_models_failure_has_its_outcome(error, outcome):
    told = await failure(error)
    assert type(told) is UpstreamError
    assert told.outcome is outcome
    assert told.retryable


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (lm15.InvalidRequestError("bad field", status=400), Outcome.BAD_REQUEST),
        (lm15.InvalidRequestError("bad field", status=422), Outcome.BAD_REQUEST),
        (lm15.UnsupportedFeatureError("no images"), Outcome.BAD_REQUEST),
        (lm15.ProviderError("teapot", status=418), Outcome.BAD_REQUEST),
        (lm15.InvalidRequestError("no", status=400, provider_code="content_policy_violation"), Outcome.CONTENT_POLICY),
        (lm15.InvalidRequestError("no", status=400, provider_code="content_filter"), Outcome.CONTENT_POLICY),
        (lm15.InvalidRequestError("no", provider_code="image_content_policy_violation"), Outcome.CONTENT_POLICY),
        (
            lm15.InvalidRequestError("no", status=400, provider_code="ResponsibleAIPolicyViolation"),
            Outcome.CONTENT_POLICY,
        ),
    ],
)
async def test_a_refusal_has_its_outcome_and_the_providers_reason(error, outcome):
    told = await failure(error)
    assert type(told) is UpstreamRefused
    assert told.outcome is outcome
    assert error.message.partition("\n\n")[0] in told.detail
    assert not told.retryable


@pytest.mark.parametrize(
    ("given", "expected"), [(2.5, 2.5), (0.0, 0.0), (None, None), (-1.0, None), (float("nan"), None)]
)
async def test_retry_after_is_passed_on(given, expected):
    told = await failure(lm15.RateLimitError("slow down", status=429, retry_after=given))
    assert told.retry_after_s == expected


@pytest.mark.parametrize(
    "error",
    [
        lm15.AuthError(f"Incorrect API key provided: {KEY}", status=401, provider_code=KEY),
        lm15.InvalidRequestError(f"bad header Bearer {KEY}", status=400),
        lm15.InvalidRequestError(f"key {KEY} may not do this", status=400, provider_code="content_filter"),
        lm15.ServerError(f"the prompt was: the prompt {KEY}", status=500),
    ],
)
async def test_details_hold_no_key_and_no_prompt(error):
    told = await failure(error)
    assert KEY not in told.detail
    assert "the prompt" not in told.detail


async def test_the_status_and_code_are_told():
    told = await failure(lm15.RateLimitError("x", status=429, provider_code="rate_limit_exceeded"))
    assert told.detail == "the model's provider is limiting the rate of requests (HTTP 429, rate_limit_exceeded)"


async def test_a_reply_that_does_not_parse_names_the_outputs_and_not_the_reply():
    told = await failure("my secret words")
    assert type(told) is BadOutput
    assert told.detail == "the model's reply does not give b as the program needs it"


async def test_an_empty_reply_is_a_bad_output():
    assert type(await failure("")) is BadOutput


async def test_everything_translated_survives_pickling():
    for error in (
        lm15.RateLimitError("x", status=429, retry_after=2),
        lm15.InvalidRequestError("x", status=400),
        "nonsense",
    ):
        told = await failure(error)
        copy = pickle.loads(pickle.dumps(told))
        assert type(copy) is type(told)
        assert vars(copy) == vars(told)


def test_a_programs_own_error_is_told_without_its_message():
    told = translate(ValueError("secret"))
    assert type(told) is ProgramError
    assert "secret" not in told.detail


def test_a_failure_behind_a_cause_counts():
    error = RuntimeError("wrapped")
    error.__cause__ = ValueError("again")
    error.__cause__.__cause__ = dspy.LMServerError("x", status=500)
    assert translate(error).outcome is Outcome.SERVER_ERROR


def test_a_failure_behind_a_context_counts_unless_it_is_suppressed():
    error = RuntimeError("mine")
    error.__context__ = dspy.LMServerError("x", status=500)
    assert translate(error).outcome is Outcome.SERVER_ERROR
    error.__suppress_context__ = True
    assert type(translate(error)) is ProgramError


def test_a_failure_inside_a_group_counts():
    group = ExceptionGroup("g", [ValueError("x"), ExceptionGroup("h", [dspy.LMTimeoutError("slow")])])
    assert translate(group).outcome is Outcome.TIMEOUT


def test_errors_that_refer_to_each_other_end():
    first, second = ValueError("a"), ValueError("b")
    first.__cause__, second.__cause__ = second, first
    assert type(translate(first)) is ProgramError


@pytest.mark.parametrize("error", [DeadlineExceeded("x"), InvalidInputs("y")])
def test_the_services_own_errors_pass_through(error):
    assert translate(error) is error
