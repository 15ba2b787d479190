"""Claims attempts that were placed on this host, never more than can run, and looks after each of them."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Callable, Iterable
from contextlib import suppress

from remotegpu import errors
from remotegpu.types.agent import ClaimedAttempt, ClaimedAttempts, GrantedAttempt, TaskClaim, WorkloadMetrics
from remotegpu_agent import fault_points
from remotegpu_agent.runtime import RuntimeUnavailable, StillThere
from remotegpu_agent.sampling import WorkloadGpus
from remotegpu_agent.settings import Settings, write_private
from remotegpu_agent.sync import Sync
from remotegpu_agent.tasks.attempt import Attempt
from remotegpu_agent.tasks.folders import Folder, remove_leftovers, stored
from remotegpu_agent.tasks.guarding import Guard
from remotegpu_agent.tasks.link import AttemptApi, Link
from remotegpu_agent.tasks.runtime import TaskRuntime

log = logging.getLogger(__name__)

REFUSED_PAUSE_S = 30.0
"""After a claim that the server will not answer: it knows no tasks, or has no place for this host."""
MEASURE_EVERY_S = 2.0
MOST_AT_ONCE = 100

GpuMemory = Callable[[Callable[[int], str | None]], dict[str, dict[str, int]]]


class Tasks:
    """The attempts of one host."""

    def __init__(
        self,
        *,
        api: AttemptApi,
        sync: Sync,
        runtime: TaskRuntime,
        settings: Settings,
        gpu_memory: GpuMemory,
    ) -> None:
        self._api = api
        self._sync = sync
        self._runtime = runtime
        self._root = settings.state_dir / "attempts"
        self._request_file = settings.state_dir / "claim"
        self._max_tasks = settings.max_tasks
        self._wait_s = settings.poll_wait_s
        self._gpu_memory = gpu_memory
        self._guard = Guard(settings.state_dir, engine=settings.docker_host)
        self._attempts: dict[str, Attempt] = {}
        self._owners: dict[str, asyncio.Task[None]] = {}
        self._claiming = False
        self._freed = asyncio.Event()
        self._broken: asyncio.Future[None] | None = None
        self._granted: set[str] = set()
        self._unexplained: set[str] = set()
        """Granted, and not known here; perhaps in the answer to the claim that is under way."""

    async def run(self) -> None:
        """Take up what an earlier agent left, then claim. Ends only with what ends the whole agent."""
        self._broken = asyncio.get_running_loop().create_future()
        self._adopt()
        work = [
            asyncio.ensure_future(coroutine)
            for coroutine in (
                self._claim_forever(),
                self._measure(),
                self._keep_guard(),
                self._remove_strays(),
                self._remove_leftovers(),
            )
        ]
        endless = work[:3]
        try:
            await asyncio.wait({self._broken, *endless}, return_when=asyncio.FIRST_COMPLETED)
            for task in (self._broken, *endless):
                if task.done():
                    await task
        finally:
            for task in (*work, *self._owners.values()):
                task.cancel()
            await asyncio.gather(*work, *self._owners.values(), return_exceptions=True)
            self._broken.cancel()

    @property
    def limits(self) -> str:
        return self._runtime.limits

    async def close(self) -> None:
        """Attempts run on, and so does their guard."""
        self._guard.leave()
        await self._runtime.close()

    def set_granted(self, granted: Iterable[GrantedAttempt]) -> None:
        """The server's list is a level: whoever differs from it asks at once what it is to do."""
        wanted = {one.id: one for one in granted}
        for attempt_id, attempt in self._attempts.items():
            if attempt_id not in wanted or wanted[attempt_id].stop:
                attempt.look_again()
        self._granted = set(wanted)
        self._unexplained |= self._granted - self._attempts.keys()
        if not self._claiming:
            self._explain()

    def held_gpus(self) -> frozenset[str]:
        running = (attempt for attempt in self._attempts.values() if attempt.running)
        return frozenset(uuid for attempt in running for uuid in attempt.spec.gpu_uuids)

    def homes_in_use(self) -> frozenset[str]:
        live = (attempt for attempt in self._attempts.values() if not attempt.removed)
        return frozenset(attempt.spec.home.volume_id for attempt in live)

    def states(self) -> list[dict[str, object]]:
        """For the status file."""
        return [
            {"id": one.spec.id, "task_id": one.spec.task_id, "running": one.running}
            for one in self._attempts.values()
        ]

    def _adopt(self) -> None:
        for folder in stored(self._root):
            try:
                if (spec := folder.load()) is not None:
                    self._own(spec, folder)
                else:
                    log.error("%s holds no attempt and is removed", folder.path)
                    folder.remove()
            except OSError as error:  # one bad folder must not hold up the others
                log.error("%s is left as it is: %s", folder.path, error)

    def _own(self, spec: ClaimedAttempt, folder: Folder) -> None:
        attempt = Attempt(
            spec,
            folder,
            runtime=self._runtime,
            link=Link(self._api, self._sync, spec.id),
            on_removed=self._freed.set,
        )
        self._attempts[spec.id] = attempt
        owner = asyncio.create_task(attempt.run(), name=f"attempt-{spec.id}")
        self._owners[spec.id] = owner
        owner.add_done_callback(lambda done: self._disowned(spec.id, done))

    def _disowned(self, attempt_id: str, owner: asyncio.Task[None]) -> None:
        self._attempts.pop(attempt_id, None)
        self._owners.pop(attempt_id, None)
        self._freed.set()
        if owner.cancelled() or (error := owner.exception()) is None:
            return
        if self._broken is not None and not self._broken.done():
            self._broken.set_exception(error)

    def _free(self) -> int:
        taken = sum(not attempt.removed for attempt in self._attempts.values())
        return min(MOST_AT_ONCE, self._max_tasks - taken)

    async def _claim_forever(self) -> None:
        request_id = self._last_request()
        while True:
            self._freed.clear()
            if (free := self._free()) <= 0:
                await self._freed.wait()
                continue
            answer = await self._claim(request_id, free)
            if answer is None:
                await asyncio.sleep(REFUSED_PAUSE_S)
                continue
            fault_points.hit(fault_points.TASK_CLAIMED)
            self._take(answer.attempts)
            request_id = self._new_request()
            self._explain()
            await asyncio.sleep(max(0.0, answer.next_in_s))

    async def _claim(self, request_id: str, free: int) -> ClaimedAttempts | None:
        def once() -> asyncio.Future[ClaimedAttempts]:
            body = TaskClaim(
                epoch=self._sync.epoch, request_id=request_id, max_attempts=free, wait_s=self._wait_s
            )
            return asyncio.ensure_future(self._api.claim_tasks(body))

        self._claiming = True
        try:
            return await self._sync.until_answered("claim", once)
        except errors.ApiError as error:
            log.error("the server refuses claims: %s", error)
            return None
        finally:
            self._claiming = False

    def _take(self, claimed: list[ClaimedAttempt]) -> None:
        """On disk first, then to its owner. One that cannot be stored is not started; its lease runs out."""
        for spec in claimed:
            if spec.id in self._attempts:
                continue
            try:
                folder = Folder(self._root, spec.id)
                folder.store(spec)
            except (OSError, ValueError) as error:
                log.error("attempt %s cannot be taken: %s", spec.id, error)
                self._unexplained.add(spec.id)
                continue
            fault_points.hit(fault_points.TASK_STORED)
            self._own(spec, folder)

    def _last_request(self) -> str:
        """Of a claim whose answer may have been lost with an earlier agent: it is asked again."""
        with suppress(OSError):
            if request_id := self._request_file.read_text().strip():
                return request_id
        return self._new_request()

    def _new_request(self) -> str:
        request_id = str(uuid.uuid4())
        try:
            write_private(self._request_file, request_id, durable=False)
        except OSError as error:  # it matters only if this agent dies before the answer
            log.warning("the claim cannot be noted: %s", error)
        return request_id

    def _explain(self) -> None:
        """Say of what is granted, and not here, that there is nothing of it."""
        lost = (self._unexplained & self._granted) - self._attempts.keys()
        self._unexplained.clear()
        for attempt_id in lost:
            log.warning("attempt %s is granted, and this host knows nothing of it", attempt_id)
            self._release(attempt_id)

    def _release(self, attempt_id: str) -> None:
        name = f"release-{attempt_id}"
        if name in self._owners:
            return
        task = asyncio.create_task(self._prove_absence(attempt_id), name=name)
        self._owners[name] = task
        task.add_done_callback(lambda done: self._disowned(name, done))

    async def _prove_absence(self, attempt_id: str) -> None:
        try:
            folder = Folder(self._root, attempt_id)
        except ValueError:
            return
        while True:
            try:
                await self._runtime.remove(folder)
                break
            except (RuntimeUnavailable, StillThere) as error:
                log.warning("attempt %s: %s", attempt_id, error)
                await asyncio.sleep(REFUSED_PAUSE_S / 6)
        await Link(self._api, self._sync, attempt_id).release()

    async def _remove_strays(self) -> None:
        """What runs here without a folder cannot be led to its end any more: it is removed and released."""
        while True:
            try:
                strays = set(await self._runtime.strays())
                break
            except RuntimeUnavailable as error:
                log.warning("attempts cannot be listed: %s", error)
                await asyncio.sleep(REFUSED_PAUSE_S / 6)
            except Exception:  # what is known here goes on; the next start looks again
                log.exception("attempts cannot be listed: what runs without a record stays")
                return
        for attempt_id in strays - self._attempts.keys():
            if not (self._root / attempt_id).exists():
                log.warning("attempt %s: there is something of it, and no record", attempt_id)
                self._release(attempt_id)

    async def _remove_leftovers(self) -> None:
        try:
            await asyncio.to_thread(remove_leftovers, self._root)
        except OSError as error:
            log.error("leftovers of released attempts stay: %s", error)

    def metrics(
        self, gpus_of: Callable[[Callable[[int], str | None]], dict[str, WorkloadGpus]]
    ) -> list[WorkloadMetrics]:
        """What the running attempts use. Of memory only the highest since the start is measured."""
        running = [attempt for attempt in self._attempts.values() if attempt.running]
        gpus = gpus_of(self._runtime.attempt_of_pid) if running else {}
        return [
            WorkloadMetrics(
                workload_id=attempt.spec.id,
                cpu_percent=None,
                memory_used_bytes=None,
                gpu_memory_bytes=gpus.get(attempt.spec.id, WorkloadGpus()).memory_bytes,
                gpu_utilization_percent=gpus.get(attempt.spec.id, WorkloadGpus()).utilization_percent,
                peak_memory_bytes=attempt.peak_memory_bytes,
                peak_gpu_memory_bytes=attempt.peak_gpu_memory_bytes,
            )
            for attempt in running
        ]

    async def _measure(self) -> None:
        """Keep the peaks of memory and GPU memory, where somebody tells."""
        while True:
            await asyncio.sleep(MEASURE_EVERY_S)
            running = [attempt for attempt in self._attempts.values() if attempt.running]
            if not running:
                continue
            gpu_memory = self._gpu_memory(self._runtime.attempt_of_pid)
            for attempt in running:
                gpus = gpu_memory.get(attempt.spec.id)
                if gpus:
                    attempt.measured(gpu_bytes=sum(gpus.values()))
                try:
                    used = await self._runtime.memory(Folder(self._root, attempt.spec.id))
                except RuntimeUnavailable:
                    break
                if used is not None:
                    attempt.measured(memory_bytes=used)

    async def _keep_guard(self) -> None:
        """One guard while anything runs."""
        while True:
            if self._runtime.guarded and any(attempt.running for attempt in self._attempts.values()):
                self._guard.ensure()
            await asyncio.sleep(0.5)
