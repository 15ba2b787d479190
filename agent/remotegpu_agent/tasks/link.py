"""Calls about one attempt: each with the present epoch, repeated until answered, and none after a refusal."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

from remotegpu import errors
from remotegpu.types.agent import (
    ArtifactReply,
    AttemptLease,
    AttemptLogs,
    AttemptLogsReply,
    AttemptProgress,
    AttemptRenewal,
    AttemptResult,
    AttemptStart,
    AttemptWrite,
    ClaimedAttempts,
    TaskClaim,
)
from remotegpu_agent.sync import Sync
from remotegpu_agent.tasks.folders import boottime

log = logging.getLogger(__name__)

LONGEST_PAUSE_S = 10.0
"""Between two tries of a call: much less than a lease."""
_GONE = frozenset({409, 410})

T = TypeVar("T")


class AttemptApi(Protocol):
    """The part of the client that tasks use (``client.agent``)."""

    async def claim_tasks(self, body: TaskClaim) -> ClaimedAttempts: ...

    async def accept_attempt(self, attempt_id: str, body: AttemptWrite) -> AttemptLease: ...

    async def start_attempt(self, attempt_id: str, body: AttemptStart) -> None: ...

    async def renew_attempt(self, attempt_id: str, body: AttemptRenewal) -> AttemptLease: ...

    async def report_progress(self, attempt_id: str, body: AttemptProgress) -> None: ...

    async def append_logs(self, attempt_id: str, body: AttemptLogs) -> AttemptLogsReply: ...

    async def read_attempt_input(self, attempt_id: str, *, epoch: int, offset: int) -> bytes: ...

    async def upload_artifact(
        self,
        attempt_id: str,
        *,
        epoch: int,
        path: str,
        size_bytes: int,
        sha256: str,
        offset: int,
        data: bytes,
    ) -> ArtifactReply: ...

    async def complete_attempt(self, attempt_id: str, body: AttemptResult) -> None: ...

    async def release_attempt(self, attempt_id: str, body: AttemptWrite) -> None: ...


class Refused(Exception):
    """The server does not know this attempt as this host's any more: what runs of it must end."""


class Link:
    """One attempt's connection to the server."""

    def __init__(self, api: AttemptApi, sync: Sync, attempt_id: str) -> None:
        self.api = api
        self._sync = sync
        self._id = attempt_id
        self.refused = asyncio.Event()
        """Set with the first refusal; from then on nothing is written but the release."""

    @property
    def epoch(self) -> int:
        return self._sync.epoch

    async def accept(self) -> tuple[AttemptLease, float]:
        """The lease, and when the request that it answers was sent."""
        return await self._lease(lambda: self.api.accept_attempt(self._id, AttemptWrite(epoch=self.epoch)))

    async def renew(self, *, ready: bool) -> tuple[AttemptLease, float]:
        """The same again. ``ready``: it could be started at once."""
        return await self._lease(
            lambda: self.api.renew_attempt(self._id, AttemptRenewal(epoch=self.epoch, ready=ready))
        )

    async def _lease(self, call: Callable[[], Awaitable[AttemptLease]]) -> tuple[AttemptLease, float]:
        sent_at = 0.0

        async def once() -> AttemptLease:
            nonlocal sent_at
            sent_at = boottime()
            return await call()

        return await self._write("lease", once), sent_at

    async def start(self, detail: str) -> None:
        await self._write(
            "start",
            lambda: self.api.start_attempt(self._id, AttemptStart(epoch=self.epoch, detail=detail[:256])),
        )

    async def progress(self, progress: float | None, message: str) -> None:
        await self._write(
            "progress",
            lambda: self.api.report_progress(
                self._id, AttemptProgress(epoch=self.epoch, progress=progress, message=message)
            ),
        )

    async def logs(self, sequence: int, data: str, *, truncated: bool) -> AttemptLogsReply:
        return await self._write(
            "output",
            lambda: self.api.append_logs(
                self._id,
                AttemptLogs(epoch=self.epoch, sequence=sequence, data=data, truncated=truncated),
            ),
        )

    async def artifact(
        self, *, path: str, size_bytes: int, sha256: str, offset: int, data: bytes
    ) -> ArtifactReply | None:
        """``None``: what the server has of this file is wrong, or is another one; the attempt goes on."""

        async def once() -> ArtifactReply | None:
            try:
                return await self.api.upload_artifact(
                    self._id,
                    epoch=self.epoch,
                    path=path,
                    size_bytes=size_bytes,
                    sha256=sha256,
                    offset=offset,
                    data=data,
                )
            except errors.StateConflict as error:
                log.warning("artifact %r of %s: %s", path, self._id, error)
                return None

        return await self._write("artifact", once)

    async def input(self, offset: int) -> bytes:
        """What follows there of the file that it reads; nothing at the end."""
        return await self._write(
            "input", lambda: self.api.read_attempt_input(self._id, epoch=self.epoch, offset=offset)
        )

    async def complete(self, result: AttemptResult) -> None:
        await self._write(
            "result",
            lambda: self.api.complete_attempt(self._id, result.model_copy(update={"epoch": self.epoch})),
        )

    async def release(self) -> None:
        """Nothing of it is left. A refusal says that the server does not need to know."""
        try:
            await self._sync.until_answered(
                f"release of {self._id}",
                lambda: self.api.release_attempt(self._id, AttemptWrite(epoch=self.epoch)),
                longest_pause_s=LONGEST_PAUSE_S,
            )
        except errors.ApiError as error:
            log.info("release of %s: %s", self._id, error)

    async def _write(self, what: str, call: Callable[[], Awaitable[T]]) -> T:
        """Raises Refused for good, and ApiError for what the server will never take but goes on without."""

        async def unless_refused() -> T:
            if self.refused.is_set():
                raise Refused(f"attempt {self._id} was refused before")
            return await call()

        try:
            return await self._sync.until_answered(
                f"{what} of {self._id}", unless_refused, longest_pause_s=LONGEST_PAUSE_S
            )
        except errors.ApiError as error:
            if error.http_status not in _GONE:
                raise
            log.warning("attempt %s: %s is refused: %s", self._id, what, error)
            self.refused.set()
            raise Refused(str(error)) from error
