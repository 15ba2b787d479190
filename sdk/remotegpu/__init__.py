"""RemoteGPU's client: every endpoint typed, in a blocking and an asyncio version.

    import remotegpu

    with remotegpu.Client() as client:
        environment = client.environments.create(name="work", image="base", gpus=1)
        client.environments.wait_ready(environment.id)

Importing this package imports nothing else: names are loaded when they are used (PEP 562).
"""

from __future__ import annotations

TYPE_CHECKING = False  # as type checkers know it; importing typing would take half of our import time

__version__ = "0.1.0"

if TYPE_CHECKING:
    from remotegpu import errors, types
    from remotegpu._async.client import AsyncClient
    from remotegpu._remote.functions import RemoteFunction, attach, function
    from remotegpu._remote.futures import RemoteFuture
    from remotegpu._report import report_progress
    from remotegpu._sync.client import Client
    from remotegpu.errors import (
        AccountSuspended,
        ApiError,
        AttemptFinal,
        AttemptMismatch,
        BadRequest,
        ClientError,
        Conflict,
        ConnectionFailed,
        EnrollmentTokenUsed,
        EpochStale,
        ErrorCode,
        Forbidden,
        GenerationStale,
        IdempotencyMismatch,
        ImageNotAllowed,
        InUse,
        Invalid,
        InvalidCredentials,
        LeaseExpired,
        MissingExtra,
        NameTaken,
        NoCapacity,
        NotConfigured,
        NotFound,
        NotTransferable,
        PasswordChangeRequired,
        PasswordResetInvalid,
        PayloadTooLarge,
        QuotaExceeded,
        RateLimited,
        RemoteFailed,
        RemoteGPUError,
        RemoteMismatch,
        RequestTimeout,
        ResultTooLarge,
        ServerError,
        StateConflict,
        TokenInvalid,
        Unauthorized,
        Unavailable,
        UnexpectedAnswer,
        Unsatisfiable,
        WaitFailed,
        WaitTimeout,
    )

_HOMES = {
    "AsyncClient": "remotegpu._async.client",
    "Client": "remotegpu._sync.client",
    "RemoteFunction": "remotegpu._remote.functions",
    "RemoteFuture": "remotegpu._remote.futures",
    "attach": "remotegpu._remote.functions",
    "function": "remotegpu._remote.functions",
    "report_progress": "remotegpu._report",
}
_MODULES = ("errors", "types")

__all__ = [
    "AccountSuspended",
    "ApiError",
    "AsyncClient",
    "AttemptFinal",
    "AttemptMismatch",
    "BadRequest",
    "Client",
    "ClientError",
    "Conflict",
    "ConnectionFailed",
    "EnrollmentTokenUsed",
    "EpochStale",
    "ErrorCode",
    "Forbidden",
    "GenerationStale",
    "IdempotencyMismatch",
    "ImageNotAllowed",
    "InUse",
    "Invalid",
    "InvalidCredentials",
    "LeaseExpired",
    "MissingExtra",
    "NameTaken",
    "NoCapacity",
    "NotConfigured",
    "NotFound",
    "NotTransferable",
    "PasswordChangeRequired",
    "PasswordResetInvalid",
    "PayloadTooLarge",
    "QuotaExceeded",
    "RateLimited",
    "RemoteFailed",
    "RemoteFunction",
    "RemoteFuture",
    "RemoteGPUError",
    "RemoteMismatch",
    "RequestTimeout",
    "ResultTooLarge",
    "ServerError",
    "StateConflict",
    "TokenInvalid",
    "Unauthorized",
    "Unavailable",
    "UnexpectedAnswer",
    "Unsatisfiable",
    "WaitFailed",
    "WaitTimeout",
    "__version__",
    "attach",
    "errors",
    "function",
    "report_progress",
    "types",
]


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return _load(f"{__name__}.{name}")
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(_load(_HOMES.get(name, f"{__name__}.errors")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__, *_MODULES])


def _load(module: str) -> object:
    from importlib import import_module

    return import_module(module)
