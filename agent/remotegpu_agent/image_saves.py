"""Saves of running workloads as images: one at a time, as long as the server wants them.

The server's list is desired state. A save that leaves it is cancelled; after a restart of the agent what is
on it begins anew.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

from remotegpu import errors
from remotegpu.types.agent import ImageSaveRequest
from remotegpu.types.image_saves import ImageSaveReason
from remotegpu_agent.runtime import ActualState, Runtime, RuntimeUnavailable, SaveFailed

log = logging.getLogger(__name__)

PROGRESS_EVERY_S = 2.0


@dataclass(frozen=True)
class Progress:
    """How far a save is, or how it ended."""

    read_bytes: int
    image_id: str | None = None
    reason: ImageSaveReason | None = None
    detail: str = ""


Deliver = Callable[[str, Progress], Awaitable[None]]
"""Returns when the server has it; raises ApiError where it never will."""


class ImageSaves:
    """What is to be saved, and what is being saved."""

    def __init__(self, runtime: Runtime, *, progress_every_s: float = PROGRESS_EVERY_S) -> None:
        self._runtime = runtime
        self._progress_every_s = progress_every_s
        self._wanted: dict[str, ImageSaveRequest] = {}
        self._settled: set[str] = set()
        """Wanted, and reported as done or failed: never begun twice by one agent."""
        self._current: tuple[str, asyncio.Task[str]] | None = None
        self._bytes = 0
        self._changed = asyncio.Event()

    def set_desired(self, requests: Iterable[ImageSaveRequest]) -> None:
        """Take over the full list."""
        self._wanted = {request.id: request for request in requests}
        self._settled &= self._wanted.keys()
        if self._current is not None and self._current[0] not in self._wanted:
            self._current[1].cancel()
        self._changed.set()

    async def run(self, deliver: Deliver) -> None:
        """Work the list off, the oldest first."""
        while True:
            self._changed.clear()
            request = next((one for one in self._wanted.values() if one.id not in self._settled), None)
            if request is None:
                await self._changed.wait()
                continue
            await self._one(request, deliver)
            self._settled.add(request.id)

    async def _one(self, request: ImageSaveRequest, deliver: Deliver) -> None:
        self._bytes = 0
        log.info("saving %s as %s", request.workload_id, request.reference)
        task = asyncio.create_task(self._save(request), name=f"save-{request.id}")
        self._current = (request.id, task)
        try:
            await self._follow(request, task, deliver)
            if task.cancelled():
                log.info("save %s is not wanted any more", request.id)
                await self._discard(request)  # the engine may have had all of it at that moment
                return
            await self._settle(request, task, deliver)
        finally:
            self._current = None
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _follow(self, request: ImageSaveRequest, task: asyncio.Task[str], deliver: Deliver) -> None:
        told = -1
        while not task.done():
            if told != self._bytes:
                told = self._bytes
                try:
                    await deliver(request.id, Progress(self._bytes))
                except errors.ApiError as error:
                    log.info("save %s: the server does not want it: %s", request.id, error)
                    task.cancel()
            await asyncio.wait({task}, timeout=self._progress_every_s)

    async def _settle(self, request: ImageSaveRequest, task: asyncio.Task[str], deliver: Deliver) -> None:
        error = task.exception()
        if error is None:
            end = Progress(self._bytes, image_id=task.result())
        elif isinstance(error, SaveFailed):
            end = Progress(self._bytes, reason=error.reason, detail=str(error))
        elif isinstance(error, RuntimeUnavailable):
            end = Progress(self._bytes, reason=ImageSaveReason.HOST_FAILED, detail=str(error))
        else:
            raise error
        log.info("save %s: %s", request.id, end.image_id or end.detail)
        try:
            await deliver(request.id, end)
        except errors.ApiError as refusal:
            log.warning("save %s: the server does not want it: %s", request.id, refusal)
            if end.image_id is not None:
                await self._discard(request)

    async def _discard(self, request: ImageSaveRequest) -> None:
        try:
            await self._runtime.discard_image(request.reference)
        except RuntimeUnavailable as error:
            log.warning("image %s is left on the host: %s", request.reference, error)

    async def _save(self, request: ImageSaveRequest) -> str:
        for actual in await self._runtime.find(request.workload_id):
            if actual.state is ActualState.RUNNING and actual.generation == request.generation:
                return await self._runtime.save_image(
                    actual, request.reference, request.max_bytes, self._read
                )
        raise SaveFailed(ImageSaveReason.HOST_FAILED, "It does not run on its host at the moment.")

    def _read(self, read_bytes: int) -> None:
        self._bytes = read_bytes
