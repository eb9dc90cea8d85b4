"""Every error a caller can meet, and the one place that says what each is worth.

    SwitchyardError
    ├── RejectedError               nothing ran; asking again costs nothing
    │   ├── InvalidInputs           422 invalid_inputs
    │   │   ├── UnknownProgram      404 unknown_program
    │   │   ├── UnknownModel        404 unknown_model
    │   │   ├── TooLarge            413 too_large
    │   │   └── UnsupportedMediaType 415 unsupported_media_type
    │   ├── KeyRequired             401 key_required
    │   ├── Forbidden               403 forbidden
    │   ├── UnknownRequest          404 unknown_request
    │   ├── AlreadyScored           409 already_scored
    │   ├── Overloaded              429 shed
    │   │   └── RateLimited         429 rate_limited
    │   └── NoRoute                 503 no_route
    │       └── CircuitOpen         503 no_route
    ├── ExecutionError              a model or the program was asked
    │   ├── UpstreamError           503 no_route
    │   │   └── UpstreamRefused     422 refused
    │   ├── BadOutput               502 bad_output
    │   └── ProgramError            500 program_error
    ├── DeadlineExceeded            504 deadline_exceeded
    ├── ClientClosed                499 client_closed
    ├── ControlPlaneUnreachable     503 control_plane_unreachable
    └── ConfigError                 never crosses HTTP

Every field goes positionally to ``super().__init__``: that is what makes an exception survive pickling,
and an error raised in a replica is read by a caller in another process.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Self

from serve_app.messages import Outcome

if TYPE_CHECKING:
    from collections.abc import Sequence

    from serve_app.messages import Attempt


class SwitchyardError(Exception):
    """Base of everything Switchyard raises on purpose.

    Args:
        detail: what is wrong, in a sentence a caller may read; never a prompt, an answer or a key.
        retry_after_s: seconds after which asking again may help; ``None`` when unknown.
        attempts: the model attempts made before the error, oldest first.
        request_id: the call it belongs to.
    """

    code: ClassVar[str] = "internal"
    status: ClassVar[int] = 500
    title: ClassVar[str] = "Internal error"
    retryable: ClassVar[bool] = False
    outcome: Outcome = Outcome.PROGRAM_ERROR
    """What an attempt that ended with this error came to."""

    def __init__(
        self,
        detail: str = "",
        retry_after_s: float | None = None,
        attempts: tuple[Attempt, ...] = (),
        request_id: str = "",
    ) -> None:
        super().__init__(detail, retry_after_s, attempts, request_id)
        self.detail = detail
        self.retry_after_s = retry_after_s
        self.attempts = attempts
        self.request_id = request_id

    def __str__(self) -> str:
        return self.detail or self.title

    def about(self, request_id: str, attempts: tuple[Attempt, ...]) -> Self:
        """The same error, saying which call it belongs to and what was tried."""
        detail, retry_after_s, _, _, *rest = self.args
        return type(self)(detail, retry_after_s, attempts, request_id, *rest)

    def again_after(self, retry_after_s: float) -> Self:
        """The same error, asking for other seconds of patience."""
        detail, _, *rest = self.args
        return type(self)(detail, retry_after_s, *rest)


class RejectedError(SwitchyardError):
    """The call never ran."""

    outcome = Outcome.REJECTED


class InvalidInputs(RejectedError):
    """The request does not fit the program's types; the detail names the field."""

    code = "invalid_inputs"
    status = 422
    title = "Invalid inputs"


class UnknownProgram(InvalidInputs):
    """No program of that name is served."""

    code = "unknown_program"
    status = 404
    title = "Unknown program"


class UnknownModel(InvalidInputs):
    """No model of that name is configured."""

    code = "unknown_model"
    status = 404
    title = "Unknown model"


class TooLarge(InvalidInputs):
    """The body exceeds ``limits.max_body_bytes``."""

    code = "too_large"
    status = 413
    title = "Request body too large"


class UnsupportedMediaType(InvalidInputs):
    """The body is not ``application/json``."""

    code = "unsupported_media_type"
    status = 415
    title = "Unsupported media type"


class KeyRequired(RejectedError):
    """An operator key is set, and the request brings none that can be read."""

    code = "key_required"
    status = 401
    title = "Operator key required"


class Forbidden(RejectedError):
    """The key is not the right one, or there is none and the request may come from another machine."""

    code = "forbidden"
    status = 403
    title = "Not allowed"


class UnknownRequest(RejectedError):
    """A verdict on a call that was not answered here, or too long ago."""

    code = "unknown_request"
    status = 404
    title = "Unknown request"


class AlreadyScored(RejectedError):
    """A second verdict on a call; the first one counts."""

    code = "already_scored"
    status = 409
    title = "Already scored"


class Overloaded(RejectedError):
    """Refused before any work, because more work is waiting than can be done in time."""

    code = "shed"
    status = 429
    title = "Too much traffic"
    retryable = True


class RateLimited(Overloaded):
    """Refused because every model left in the route is cooling down after a 429."""

    code = "rate_limited"
    title = "Rate limited"


class NoRoute(RejectedError):
    """No model may be asked now."""

    code = "no_route"
    status = 503
    title = "No model available"
    retryable = True


class CircuitOpen(NoRoute):
    """Every model of the route has an open breaker."""


class ExecutionError(SwitchyardError):
    """A model or the program was asked, and it did not work out."""


class UpstreamError(ExecutionError):
    """A model failed to answer.

    Args:
        outcome: what kind of failure it was; decides fallback and breaker (``serve_app.core.outcomes``).
    """

    code = "no_route"
    status = 503
    title = "No model could answer"
    retryable = True

    def __init__(
        self,
        detail: str = "",
        retry_after_s: float | None = None,
        attempts: tuple[Attempt, ...] = (),
        request_id: str = "",
        outcome: Outcome = Outcome.SERVER_ERROR,
    ) -> None:
        super().__init__(detail, retry_after_s, attempts, request_id)
        self.args = (detail, retry_after_s, attempts, request_id, outcome)
        self.outcome = outcome


class UpstreamRefused(UpstreamError):
    """The provider refuses this very request (content policy, malformed for the model); its reason is the detail."""

    code = "refused"
    status = 422
    title = "The provider refused the request"
    retryable = False


class BadOutput(ExecutionError):
    """Every route answered with something the program cannot parse."""

    outcome = Outcome.BAD_OUTPUT
    code = "bad_output"
    status = 502
    title = "Unusable answer"
    retryable = True


class ProgramError(ExecutionError):
    """The person's own program raised; its message is logged, not returned."""

    code = "program_error"
    status = 500
    title = "The program failed"


class DeadlineExceeded(SwitchyardError):
    """The call's deadline passed."""

    outcome = Outcome.TIMEOUT
    code = "deadline_exceeded"
    status = 504
    title = "Deadline exceeded"
    retryable = True


class ClientClosed(SwitchyardError):
    """The caller went away; upstream work was cancelled."""

    outcome = Outcome.CANCELLED
    code = "client_closed"
    status = 499
    title = "Client closed request"


class ControlPlaneUnreachable(SwitchyardError):
    """An order could not be given, or whether it arrived is not known; giving it again does no harm."""

    code = "control_plane_unreachable"
    status = 503
    title = "Control plane unreachable"
    retryable = True


class ConfigError(SwitchyardError):
    """A configuration that cannot be served.

    Args:
        problems: one line each: where, which key, what is wrong, and the nearest valid name.
    """

    code = "config_error"
    title = "Invalid configuration"

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.args = (tuple(problems),)
        self.problems = tuple(problems)
