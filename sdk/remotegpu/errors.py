"""Error codes and the exceptions that carry them: the same classes on the server and in the client.

RemoteGPUError
├── ApiError                  the server answered with an error
│   ├── BadRequest            400   PasswordResetInvalid
│   ├── Unauthorized          401   InvalidCredentials, TokenInvalid
│   ├── Forbidden             403   AccountSuspended, PasswordChangeRequired
│   ├── NotFound              404
│   ├── Conflict              409   NameTaken, StateConflict, EpochStale, GenerationStale, AttemptFinal, ...
│   ├── Gone                  410   EnrollmentTokenUsed, LeaseExpired
│   ├── PayloadTooLarge       413
│   ├── Invalid               422   ImageNotAllowed, Unsatisfiable, ...
│   ├── RateLimited           429
│   ├── ServerError           500
│   ├── NoCapacity            503
│   └── Unavailable           503
└── ClientError               the request never got an answer
    ├── ConnectionFailed
    ├── RequestTimeout
    ├── NotConfigured
    ├── UnexpectedAnswer      something answered that does not speak this API
    ├── MissingExtra          an optional package is not installed
    ├── WaitFailed
    └── WaitTimeout
"""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar


class ErrorCode(StrEnum):
    """Stable codes: a program may depend on them for ever."""

    BAD_REQUEST = "bad_request"
    UNAUTHORIZED = "unauthorized"
    INVALID_CREDENTIALS = "invalid_credentials"
    TOKEN_INVALID = "token_invalid"  # noqa: S105
    FORBIDDEN = "forbidden"
    ACCOUNT_SUSPENDED = "account_suspended"
    PASSWORD_CHANGE_REQUIRED = "password_change_required"  # noqa: S105
    PASSWORD_RESET_INVALID = "password_reset_invalid"  # noqa: S105
    NOT_FOUND = "not_found"
    CONFLICT = "conflict"
    NAME_TAKEN = "name_taken"
    STATE_CONFLICT = "state_conflict"
    IN_USE = "in_use"
    QUOTA_EXCEEDED = "quota_exceeded"
    EPOCH_STALE = "epoch_stale"
    GENERATION_STALE = "generation_stale"
    ATTEMPT_MISMATCH = "attempt_mismatch"
    ATTEMPT_FINAL = "attempt_final"
    LEASE_EXPIRED = "lease_expired"
    IDEMPOTENCY_MISMATCH = "idempotency_mismatch"
    ENROLLMENT_TOKEN_USED = "enrollment_token_used"  # noqa: S105
    PAYLOAD_TOO_LARGE = "payload_too_large"
    INVALID = "invalid"
    IMAGE_NOT_ALLOWED = "image_not_allowed"
    UNSATISFIABLE = "unsatisfiable"
    RATE_LIMITED = "rate_limited"
    SERVER_ERROR = "server_error"
    NO_CAPACITY = "no_capacity"
    UNAVAILABLE = "unavailable"


class RemoteGPUError(Exception):
    """Anything that this package raises on purpose."""


class ApiError(RemoteGPUError):
    """The server refused a request."""

    code: ClassVar[ErrorCode | None] = None
    status: ClassVar[int] = 500
    default_hint: ClassVar[str | None] = None

    def __init__(
        self,
        detail: str,
        *,
        hint: str | None = None,
        data: dict[str, object] | None = None,
        request_id: str = "",
        status: int | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.hint = hint if hint is not None else self.default_hint
        self.data = data or {}
        self.request_id = request_id
        self.http_status = status if status is not None else self.status
        self.error = code if code is not None else str(self.code or ErrorCode.SERVER_ERROR)
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return f"{self.detail} {self.hint}" if self.hint else self.detail


class BadRequest(ApiError):
    """The request is malformed."""

    code = ErrorCode.BAD_REQUEST
    status = 400


class Unauthorized(ApiError):
    """No token was sent."""

    code = ErrorCode.UNAUTHORIZED
    status = 401
    default_hint = "Sign in with `remotegpu login`, or pass a token."


class InvalidCredentials(Unauthorized):
    """User name or password is wrong. Says the same for unknown names."""

    code = ErrorCode.INVALID_CREDENTIALS
    default_hint = "Check user name and password; an admin can set a new password."


class TokenInvalid(Unauthorized):
    """The token is unknown, expired or revoked."""

    code = ErrorCode.TOKEN_INVALID
    default_hint = "Sign in again with `remotegpu login`, or make a new token."


class Forbidden(ApiError):
    """The caller may not do this."""

    code = ErrorCode.FORBIDDEN
    status = 403


class AccountSuspended(Forbidden):
    """The user or the customer is suspended."""

    code = ErrorCode.ACCOUNT_SUSPENDED
    default_hint = "Ask your administrator."


class PasswordChangeRequired(Forbidden):
    """The account has a one-time password; nothing else is allowed before it is changed."""

    code = ErrorCode.PASSWORD_CHANGE_REQUIRED
    default_hint = "Set a password of your own with `remotegpu password`, or on the hub's password page."


class PasswordResetInvalid(BadRequest):
    """The reset link is unknown, was used before, or is too old."""

    code = ErrorCode.PASSWORD_RESET_INVALID
    default_hint = "Ask for a new one."


class NotFound(ApiError):
    """There is no such thing, or it is not the caller's to see."""

    code = ErrorCode.NOT_FOUND
    status = 404


class Conflict(ApiError):
    """The request does not fit the present state."""

    code = ErrorCode.CONFLICT
    status = 409


class NameTaken(Conflict):
    """The name is in use in this scope."""

    code = ErrorCode.NAME_TAKEN


class StateConflict(Conflict):
    """The thing is in a state that does not allow this."""

    code = ErrorCode.STATE_CONFLICT


class InUse(Conflict):
    """Something live still depends on it."""

    code = ErrorCode.IN_USE


class QuotaExceeded(Conflict):
    """A limit would be passed. ``data`` holds resource, limit, used, requested and the subject it binds."""

    code = ErrorCode.QUOTA_EXCEEDED


class EpochStale(Conflict):
    """A newer agent session of this host exists; this agent must stop writing."""

    code = ErrorCode.EPOCH_STALE


class GenerationStale(Conflict):
    """The report is about an older start of the workload, or one that is not this host's any more."""

    code = ErrorCode.GENERATION_STALE


class AttemptMismatch(Conflict):
    """The attempt is not this host's."""

    code = ErrorCode.ATTEMPT_MISMATCH


class AttemptFinal(Conflict):
    """The attempt has ended, and not as the request says; the agent ends what it still runs of it."""

    code = ErrorCode.ATTEMPT_FINAL


class IdempotencyMismatch(Conflict):
    """The idempotency key was used for another request."""

    code = ErrorCode.IDEMPOTENCY_MISMATCH


class LeaseExpired(ApiError):
    """The attempt was given up, because its host was silent for too long; another one may be on its way."""

    code = ErrorCode.LEASE_EXPIRED
    status = 410


class EnrollmentTokenUsed(ApiError):
    """The enrolment token was used before, or is too old."""

    code = ErrorCode.ENROLLMENT_TOKEN_USED
    status = 410
    default_hint = "Make a new one with `remotegpu host add`."


class PayloadTooLarge(ApiError):
    """The body is larger than the server takes."""

    code = ErrorCode.PAYLOAD_TOO_LARGE
    status = 413


class Invalid(ApiError):
    """A field has a wrong value; ``data["errors"]`` lists them."""

    code = ErrorCode.INVALID
    status = 422


class ImageNotAllowed(Invalid):
    """The image is not on the allow-list, or was withdrawn."""

    code = ErrorCode.IMAGE_NOT_ALLOWED
    default_hint = "`remotegpu image list` shows what may run."


class Unsatisfiable(Invalid):
    """No host, even an empty one, could ever run this request."""

    code = ErrorCode.UNSATISFIABLE


class RateLimited(ApiError):
    """Too many requests; ``retry_after_s`` says when to come back."""

    code = ErrorCode.RATE_LIMITED
    status = 429


class ServerError(ApiError):
    """The server failed; its log has the request id."""

    code = ErrorCode.SERVER_ERROR
    status = 500


class NoCapacity(ApiError):
    """Nothing that fits is free now, and the request did not want to wait."""

    code = ErrorCode.NO_CAPACITY
    status = 503


class Unavailable(ApiError):
    """The server or its database is not there for the moment."""

    code = ErrorCode.UNAVAILABLE
    status = 503
    default_hint = "Try again in a few seconds."


class ClientError(RemoteGPUError):
    """The request got no answer, or could not be made."""


class ConnectionFailed(ClientError):
    """The server could not be reached."""


class RequestTimeout(ClientError):
    """The server did not answer in time; the request may or may not have taken effect."""


class NotConfigured(ClientError):
    """No server address or no token is known."""


class UnexpectedAnswer(ClientError):
    """Something answered, but not a RemoteGPU server of a version that this client understands."""


class MissingExtra(ClientError, ImportError):
    """This needs a package that only an extra of ours installs; the message says which."""


class NotTransferable(ClientError):
    """A function, a variable or a result cannot travel between here and a task."""

    def __init__(self, detail: str, *, variable: str | None = None) -> None:
        super().__init__(detail)
        self.variable = variable
        """Its name, where one is the cause."""


class RemoteMismatch(ClientError):
    """Both sides of a call differ too much: Python's version, a missing package; nothing was run."""


class ResultTooLarge(ClientError):
    """A call returned, but more than is kept of a task's files, or these are gone."""


class RemoteFailed(ClientError):
    """A call raised an exception that cannot be made here; the cause is its traceback."""


class WaitFailed(ClientError):
    """What was waited for cannot happen any more: the environment failed, was stopped or was deleted."""

    def __init__(self, detail: str, *, reason: str | None = None, log_tail: str | None = None) -> None:
        super().__init__(detail)
        self.reason = reason
        self.log_tail = log_tail
        """The last lines of the container's output, where the host kept them."""


class WaitTimeout(ClientError):
    """What was waited for did not happen in time; it goes on."""


def _tree(cls: type[ApiError]) -> list[type[ApiError]]:
    return [cls, *(found for child in cls.__subclasses__() for found in _tree(child))]


BY_CODE: dict[str, type[ApiError]] = {str(cls.code): cls for cls in _tree(ApiError) if cls.code is not None}
"""The class for a code; a code that this version does not know becomes a plain :class:`ApiError`."""
