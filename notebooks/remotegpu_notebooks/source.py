"""What the server says about this environment: one reading, with every failure turned into a sentence."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol, TypeVar

from remotegpu import errors
from remotegpu_notebooks.formatting import Reading

if TYPE_CHECKING:
    from remotegpu import Client
    from remotegpu.types.environments import EnvironmentUsage
    from remotegpu.types.quotas import Quota

TIMEOUT_S = 5.0
ENVIRONMENT_ID = "REMOTEGPU_ENVIRONMENT_ID"

T = TypeVar("T")


class Source(Protocol):
    """Where readings come from."""

    def read(self) -> Reading:
        """One look. Answers a reading that carries the error instead of raising."""
        ...


class ServerSource:
    """Asks the server with the token of this environment; remembers the last answers."""

    def __init__(
        self,
        *,
        client: Client | None = None,
        environment_id: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._environment_id = environment_id or os.environ.get(ENVIRONMENT_ID) or None
        self._clock = clock
        self._usage: EnvironmentUsage | None = None
        self._quota: Quota | None = None
        self._answered_at: float | None = None
        self.retry_after_s: float | None = None

    def read(self) -> Reading:
        """One look at the server, two requests."""
        problems: list[str] = []
        self.retry_after_s = None
        client = self._connect(problems)
        if client is not None:
            if self._environment_id is not None:
                environment_id = self._environment_id
                self._usage = (
                    self._ask(lambda: client.environments.usage(environment_id), problems) or self._usage
                )
            if not problems:  # a server that did not answer is not asked a second time
                self._quota = self._ask(client.quotas.mine, problems) or self._quota
        if not problems:
            self._answered_at = self._clock()
        return self._reading(problems)

    def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            self._client.close()

    def _reading(self, problems: list[str]) -> Reading:
        reading = Reading(
            usage=self._usage, quota=self._quota, in_environment=self._environment_id is not None
        )
        age_s = None if self._answered_at is None else self._clock() - self._answered_at
        return replace(reading, error=problems[0] if problems else None, age_s=age_s)

    def _connect(self, problems: list[str]) -> Client | None:
        if self._client is None:
            from remotegpu import (
                Client,
            )  # here, because it brings httpx: the import of this package stays quick

            try:
                self._client = Client(timeout_s=TIMEOUT_S, max_retries=0)
            except errors.NotConfigured as error:
                problems.append(str(error))
        return self._client

    def _ask(self, question: Callable[[], T], problems: list[str]) -> T | None:
        try:
            return question()
        except errors.RemoteGPUError as error:
            if isinstance(error, errors.ApiError):
                self.retry_after_s = error.retry_after_s
            problems.append(sentence(error))
            return None


def sentence(error: errors.RemoteGPUError) -> str:
    """An error as a person without the address of the server needs it."""
    if isinstance(error, errors.RequestTimeout):
        return "The RemoteGPU server does not answer in time."
    if isinstance(error, errors.ConnectionFailed):
        return "The RemoteGPU server cannot be reached."
    if isinstance(error, errors.Unauthorized):
        return "The token of this environment is not valid any more."
    return str(error)
