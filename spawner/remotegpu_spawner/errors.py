"""Refusals that a person can read wherever the hub shows them."""

from __future__ import annotations

from html import escape

from jupyterhub.spawner import SpawnException

from remotegpu import errors
from remotegpu.types.environments import Environment


class SpawnRefused(SpawnException):
    """A spawn that cannot go on, with the reason in plain words.

    The hub reads ``jupyterhub_message`` and ``jupyterhub_html_message`` on the form, the progress page and
    the page of a stopped server; a plain ``SpawnException`` shows its log text there, or nothing.
    """

    def __init__(self, message: str, *, reason: str, status_code: int = 400) -> None:
        super().__init__(message, reason=reason, status_code=status_code)
        self.jupyterhub_message = message
        self.jupyterhub_html_message = escape(message).replace("\n", "<br>\n")

    def __str__(self) -> str:
        return f"{self.reason}: {self.jupyterhub_message}"


# `error` and `timeout` are taken: the hub's error pages swap the text of those reasons for a stock one.
_REASONS: list[tuple[type[errors.RemoteGPUError], str, int]] = [
    (errors.QuotaExceeded, "quota", 403),
    (errors.NoCapacity, "capacity", 503),
    (errors.ImageNotAllowed, "image", 400),
    (errors.Unsatisfiable, "unsatisfiable", 400),
    (errors.Invalid, "invalid", 400),
    (errors.BadRequest, "invalid", 400),
    (errors.AccountSuspended, "suspended", 403),
    (errors.Forbidden, "forbidden", 403),
    (errors.NotFound, "unknown", 403),
    (errors.Conflict, "conflict", 409),
    (errors.RateLimited, "busy", 429),
]


def refusal(error: errors.RemoteGPUError) -> SpawnRefused:
    """The refusal for an error of the server."""
    if isinstance(error, errors.Unauthorized):
        return SpawnRefused(
            "The hub could not sign in to the RemoteGPU server. Ask your administrator to check "
            "the hub's token.",
            reason="setup",
            status_code=500,
        )
    for kind, reason, status in _REASONS:
        if isinstance(error, kind):
            return SpawnRefused(_plain(error), reason=reason, status_code=status)
    return SpawnRefused(
        "The RemoteGPU server does not answer at the moment, so nothing could be started. "
        f"Try again in a minute. ({error})",
        reason="unavailable",
        status_code=503,
    )


def _plain(error: errors.RemoteGPUError) -> str:
    """The server's words, and the fields that were wrong, which stand in ``data`` alone."""
    wrong = error.data.get("errors") if isinstance(error, errors.Invalid) else None
    if not isinstance(wrong, list):
        return str(error)
    fields = [f"{one.get('field')}: {one.get('message')}" for one in wrong if isinstance(one, dict)]
    return " ".join([str(error), f"({'; '.join(fields)})"]) if fields else str(error)


def failed(environment: Environment) -> SpawnRefused:
    """The refusal for an environment that failed while it started."""
    message = f"The server could not be started: {environment.message or environment.reason}"
    if environment.log_tail:
        last = "\n".join(environment.log_tail.splitlines()[-5:])
        message = f"{message}\nIts last lines:\n{last}"
    return SpawnRefused(message, reason=str(environment.reason), status_code=500)
