"""The agent's side of the protocol: the only user of the RemoteGPU client.

Everything here may be slow or fail without touching a workload. Two answers end the agent: a stale epoch
(another agent took over) and a refused credential. In both cases the workloads run on.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Protocol, TypeVar

from remotegpu import errors
from remotegpu.types.agent import (
    DesiredWorkloads,
    GpuCheckAnswer,
    GpuCheckRequest,
    GrantedAttempt,
    Heartbeat,
    HeartbeatReply,
    HomeVolume,
    ImageSaveReport,
    ImageSaveRequest,
    LogAnswer,
    LogRequest,
    Observation,
    ObservedWorkload,
    Session,
    SessionCreate,
    VolumeRemoval,
    VolumeRemovalAnswer,
    VolumeSize,
    Workload,
)
from remotegpu_agent.image_saves import Progress
from remotegpu_agent.runtime import RuntimeUnavailable

log = logging.getLogger(__name__)

BACKOFF_S = (1.0, 60.0)
JITTER = 0.2
LOG_CHARACTERS = 1_000_000

T = TypeVar("T")


class Superseded(Exception):
    """A newer agent session of this host exists: this agent must not write any more."""


class Refused(Exception):
    """The server does not accept this host's credential."""


class AgentApi(Protocol):
    """The part of ``remotegpu.AsyncClient`` that agents use (``client.agent``)."""

    async def create_session(self, body: SessionCreate) -> Session: ...

    async def heartbeat(self, body: Heartbeat) -> HeartbeatReply: ...

    async def workloads(self, *, epoch: int, since: int | None, wait_s: float) -> DesiredWorkloads: ...

    async def observe(self, workload_id: str, body: Observation) -> None: ...

    async def answer_logs(self, request_id: str, body: LogAnswer) -> None: ...

    async def answer_gpu_check(self, check_id: str, body: GpuCheckAnswer) -> None: ...

    async def answer_volume_removal(self, removal_id: str, body: VolumeRemovalAnswer) -> None: ...

    async def report_volume_size(self, volume_id: str, body: VolumeSize) -> None: ...

    async def report_image_save(self, save_id: str, body: ImageSaveReport) -> None: ...


class Backoff:
    """Full jitter: 0 to a bound that doubles from 1 to 60 s. ``Retry-After`` wins."""

    def __init__(self, first_s: float = BACKOFF_S[0], longest_s: float = BACKOFF_S[1]) -> None:
        self._first_s, self._longest_s = first_s, longest_s
        self._failures = 0

    def reset(self) -> None:
        self._failures = 0

    def next_s(self, error: Exception) -> float:
        bound = min(self._longest_s, self._first_s * 2 ** min(self._failures, 16))
        self._failures += 1
        asked = getattr(error, "retry_after_s", None)
        return float(asked) if asked is not None else random.uniform(0.0, bound)  # noqa: S311


class Sync:
    """One session with the server."""

    def __init__(self, api: AgentApi, *, poll_wait_s: float) -> None:
        self._api = api
        self._poll_wait_s = poll_wait_s
        self._outbox: dict[str, ObservedWorkload] = {}
        self._acknowledged: dict[str, ObservedWorkload] = {}
        self._to_send = asyncio.Event()
        self._answered = asyncio.Event()
        self._fetch = asyncio.Event()
        self._log_requests: asyncio.Queue[LogRequest] = asyncio.Queue()
        self._logs_seen: set[str] = set()
        self._checks: asyncio.Queue[GpuCheckRequest] = asyncio.Queue()
        self._checks_seen: set[str] = set()
        self._removals: asyncio.Queue[VolumeRemoval] = asyncio.Queue()
        self._removals_seen: set[str] = set()
        self._measurements: asyncio.Queue[HomeVolume] = asyncio.Queue()
        self._measurements_seen: set[str] = set()
        self._revision: int | None = None
        self._next_in_s = 10.0
        self.epoch = 0
        self.last_contact: float | None = None
        """Unix time of the last answer."""
        self.trouble: str | None = "not registered yet"

    async def register(self, build: Callable[[], Awaitable[SessionCreate]]) -> Session:
        """Register until it works. What runs is looked at anew for every try."""

        async def attempt() -> Session:
            return await self._api.create_session(await build())

        session = await self.until_answered("registration", attempt)
        self.epoch, self._next_in_s = session.epoch, session.next_in_s
        log.info("registered: host %s, epoch %s", session.host_id, session.epoch)
        return session

    def report(self, state: ObservedWorkload) -> None:
        """Send this state; a newer one of the same workload takes its place. Kept until acknowledged."""
        if state.workload_id not in self._outbox and self._acknowledged.get(state.workload_id) == state:
            return
        self._outbox[state.workload_id] = state
        self._to_send.set()

    async def send_heartbeats(self, build: Callable[[], Awaitable[Heartbeat]]) -> None:
        """At the server's pace, give or take a fifth, so that hosts do not march in step."""
        while True:
            await asyncio.sleep(self._next_in_s * random.uniform(1 - JITTER, 1 + JITTER))  # noqa: S311

            async def attempt() -> HeartbeatReply:
                return await self._api.heartbeat(await build())

            try:
                reply = await self.until_answered("heartbeat", attempt)
            except errors.ApiError as error:
                log.error("the server refuses heartbeats: %s", error)
                continue
            self._next_in_s = max(0.05, reply.next_in_s)
            if reply.revision != self._revision:
                self._fetch.set()

    async def follow_desired(
        self,
        apply: Callable[[Iterable[Workload]], None],
        apply_saves: Callable[[Iterable[ImageSaveRequest]], None],
        apply_attempts: Callable[[Iterable[GrantedAttempt]], None],
    ) -> None:
        """Long-poll the desired set; a heartbeat that names another revision fetches at once."""
        while True:
            try:
                answer = await self.until_answered("long poll", self._poll)
            except errors.ApiError as error:
                log.error("the server refuses the long poll: %s", error)
                await asyncio.sleep(BACKOFF_S[1])
                continue
            if answer is None:
                continue
            self._revision = answer.revision
            apply(answer.workloads)
            self._queue_logs(answer.log_requests)
            self._queue_checks(answer.gpu_checks)
            self._queue_removals(answer.volume_removals)
            self._queue_measurements(answer.volume_measurements)
            apply_saves(answer.image_saves)
            apply_attempts(answer.attempts)

    async def push(self) -> None:
        """Deliver reports one by one, the oldest first."""
        while True:
            await self._to_send.wait()
            if not self._outbox:
                self._to_send.clear()
                continue
            state = next(iter(self._outbox.values()))
            await self._deliver(state)
            if self._outbox.get(state.workload_id) is state:
                del self._outbox[state.workload_id]

    async def answer_logs(self, read: Callable[[str, int], Awaitable[tuple[str, bool]]]) -> None:
        while True:
            request = await self._log_requests.get()
            try:
                text, truncated = await read(request.workload_id, request.tail_lines)
            except RuntimeUnavailable as error:
                text, truncated = f"(the host cannot read the log now: {error})", False
            answer = LogAnswer(
                epoch=self.epoch,
                text=text[-LOG_CHARACTERS:],
                truncated=truncated or len(text) > LOG_CHARACTERS,
            )
            await self._until_accepted("log answer", partial(self._api.answer_logs, request.id, answer))

    async def answer_gpu_checks(self, check: Callable[[str], Awaitable[str | None]]) -> None:
        while True:
            request = await self._checks.get()
            failure = await check(request.gpu_uuid)
            log.info("check of GPU %s: %s", request.gpu_uuid, failure or "passed")
            answer = GpuCheckAnswer(epoch=self.epoch, passed=failure is None, detail=failure or "")
            await self._until_accepted("GPU check", partial(self._api.answer_gpu_check, request.id, answer))

    async def answer_volume_removals(self, remove: Callable[[HomeVolume], Awaitable[str | None]]) -> None:
        while True:
            request = await self._removals.get()
            failure = await remove(HomeVolume(volume_id=request.volume_id, shared=request.shared))
            log.info("removal of home %s: %s", request.volume_id, failure or "done")
            answer = VolumeRemovalAnswer(
                epoch=self.epoch, removed=failure is None, detail=(failure or "")[:1024]
            )
            if failure is not None:
                self._removals_seen.discard(request.id)  # the server asks again, a bounded number of times
            await self._until_accepted(
                "volume removal", partial(self._api.answer_volume_removal, request.id, answer)
            )

    async def answer_volume_measurements(self, measure: Callable[[HomeVolume], Awaitable[int | str]]) -> None:
        """One home after the other, so that a large one delays others and nothing else."""
        while True:
            volume = await self._measurements.get()
            if volume.volume_id not in self._measurements_seen:
                continue  # not wanted any more
            found = await measure(volume)
            if isinstance(found, int):
                answer = VolumeSize(epoch=self.epoch, size_bytes=found)
            else:
                log.warning("home %s was not measured: %s", volume.volume_id, found)
                answer = VolumeSize(epoch=self.epoch, size_bytes=None, detail=found[:1024])
            await self._until_accepted(
                "volume size", partial(self._api.report_volume_size, volume.volume_id, answer)
            )
            self._measurements_seen.discard(volume.volume_id)  # it may be asked for again

    async def report_save(self, save_id: str, progress: Progress) -> None:
        """Repeats until the server has it; raises ApiError where it has given the save up."""
        body = ImageSaveReport(
            epoch=self.epoch,
            progress_bytes=progress.read_bytes,
            image_id=progress.image_id,
            reason=None if progress.reason is None else str(progress.reason),
            detail=progress.detail[:1024],
        )
        await self.until_answered("image save", partial(self._api.report_image_save, save_id, body))

    def _queue_removals(self, requests: list[VolumeRemoval]) -> None:
        self._removals_seen &= {request.id for request in requests}
        for request in requests:
            if request.id not in self._removals_seen:
                self._removals_seen.add(request.id)
                self._removals.put_nowait(request)

    def _queue_measurements(self, volumes: list[HomeVolume]) -> None:
        self._measurements_seen &= {volume.volume_id for volume in volumes}
        for volume in volumes:
            if volume.volume_id not in self._measurements_seen:
                self._measurements_seen.add(volume.volume_id)
                self._measurements.put_nowait(volume)

    def _queue_checks(self, requests: list[GpuCheckRequest]) -> None:
        self._checks_seen &= {request.id for request in requests}
        for request in requests:
            if request.id not in self._checks_seen:
                self._checks_seen.add(request.id)
                self._checks.put_nowait(request)

    async def _poll(self) -> DesiredWorkloads | None:
        """``None``: a heartbeat asked for a fresh look."""
        self._fetch.clear()
        poll = asyncio.create_task(
            self._api.workloads(epoch=self.epoch, since=self._revision, wait_s=self._poll_wait_s)
        )
        hurry = asyncio.create_task(self._fetch.wait())
        try:
            await asyncio.wait({poll, hurry}, return_when=asyncio.FIRST_COMPLETED)
            return await poll if poll.done() else None
        finally:
            for task in (poll, hurry):
                task.cancel()
            await asyncio.gather(poll, hurry, return_exceptions=True)

    def _queue_logs(self, requests: list[LogRequest]) -> None:
        self._logs_seen &= {request.id for request in requests}
        for request in requests:
            if request.id not in self._logs_seen:
                self._logs_seen.add(request.id)
                self._log_requests.put_nowait(request)

    async def _deliver(self, state: ObservedWorkload) -> None:
        body = Observation(epoch=self.epoch, **dict(state))
        await self._until_accepted(
            f"report {state.observed} of {state.workload_id}",
            lambda: self._api.observe(state.workload_id, body),
        )
        self._acknowledged[state.workload_id] = state

    async def _until_accepted(self, what: str, call: Callable[[], Awaitable[None]]) -> None:
        """Repeat until the server has it, or says that it never will."""
        try:
            await self.until_answered(what, call)
        except errors.ApiError as error:
            log.warning("%s: the server does not want it: %s", what, error)

    async def until_answered(
        self, what: str, call: Callable[[], Awaitable[T]], *, longest_pause_s: float = BACKOFF_S[1]
    ) -> T:
        """The answer. Repeats on trouble; raises what the server will always refuse as ApiError."""
        backoff = Backoff(longest_s=longest_pause_s)
        while True:
            try:
                answer = await call()
            except errors.EpochStale as error:
                raise Superseded(
                    "Another agent session of this host is newer (epoch_stale). Two agents of one host? "
                    "Workloads run on; this agent ends."
                ) from error
            except (errors.Unauthorized, errors.Forbidden) as error:
                raise Refused(
                    f"The server refuses this host's credential ({error.detail}). Workloads run on. "
                    "Enrol the host again with a new token."
                ) from error
            except errors.RemoteGPUError as error:
                if _final(error):
                    self._heard()
                    raise
                await self._pause(what, error, backoff)
            else:
                self._heard()
                return answer

    async def _pause(self, what: str, error: errors.RemoteGPUError, backoff: Backoff) -> None:
        """Wait; any answer that another call gets ends the wait, since the server is back."""
        self.trouble = f"{what}: {error}"
        pause = backoff.next_s(error)
        log.warning("%s failed, again in %.1f s: %s", what, pause, error)
        self._answered.clear()
        try:
            async with asyncio.timeout(pause):
                await self._answered.wait()
        except TimeoutError:
            return

    def _heard(self) -> None:
        self.last_contact, self.trouble = time.time(), None
        self._answered.set()


def _final(error: errors.RemoteGPUError) -> bool:
    """Whether the same request would be refused for ever: 4xx, except those that pass."""
    if not isinstance(error, errors.ApiError):
        return False
    return 400 <= error.http_status < 500 and error.http_status not in (408, 423, 425, 429)
