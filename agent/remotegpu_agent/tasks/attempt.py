"""The life of one attempt, owned by one coroutine: accept, prepare, start, watch, end, remove, tell, release.

Every step looks at what is there and at the folder first, so it can be begun again after any failure, of the
engine, the server or the agent itself. Nothing is started twice: a start is noted before it is made.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from remotegpu import errors
from remotegpu.types.agent import AttemptLease, AttemptResult, ClaimedAttempt
from remotegpu_agent import fault_points
from remotegpu_agent.runtime import RuntimeUnavailable, StartRefused, StillThere
from remotegpu_agent.sync import Refused as HostRefused
from remotegpu_agent.sync import Superseded
from remotegpu_agent.tasks import artifacts, inputs, results
from remotegpu_agent.tasks.folders import Folder, Started, Stop, boottime
from remotegpu_agent.tasks.link import Link, Refused
from remotegpu_agent.tasks.output import Shipper, follow_progress, read_progress
from remotegpu_agent.tasks.runtime import Life, TaskRuntime

log = logging.getLogger(__name__)

PAUSE_S = (0.5, 30.0)
"""First and longest pause after a step that the engine, or a process that will not die, refused."""
LOOK_EVERY_S = 1.0
"""How late a deadline may be noticed: the loop's own clock stands still while the machine sleeps."""
OUTPUT_S = 600.0
"""For the rest of its output, once it has ended: its cap is small, so more means a server that takes none."""
FILES_S = 1800.0
"""For its files: 10 GiB, the cap unless an admin says otherwise, at 6 MB/s. Its GPUs are held meanwhile."""
STOPPED_S = 60.0
"""For either, once it is to be stopped: somebody waits for its place."""


class Attempt:
    """One attempt of this host."""

    def __init__(
        self,
        spec: ClaimedAttempt,
        folder: Folder,
        *,
        runtime: TaskRuntime,
        link: Link,
        on_removed: Callable[[], None],
    ) -> None:
        """``on_removed`` is called when its place is free for another one."""
        self.spec = spec
        self._on_removed = on_removed
        self.removed = False
        """Nothing of it runs or will run; what is left is to tell the server."""
        self.started: Started | None = folder.started()
        self.peak_memory_bytes: int | None = None
        self.peak_gpu_memory_bytes: int | None = None
        self._folder = folder
        self._runtime = runtime
        self._link = link
        self._shipper = Shipper(folder, link, cap_bytes=spec.log_cap_bytes)
        self._fence_at: float | None = (folder.lease() or {}).get("fence_at")
        self._fence_grace_s = spec.stop_grace_s
        self._renew_at = 0.0
        self._ask_now = asyncio.Event()
        self._ready = False
        self._go = asyncio.Event()
        """Of a task on several hosts: all are ready."""
        self._stop_asked: str | None = None
        self._stop_now = False
        self._wake = asyncio.Event()
        self._told_start: asyncio.Task[None] | None = None
        self._telling: asyncio.Task[None] | None = None
        self._kept: AttemptResult | None = None
        if self.started is not None:
            self._ask_now.set()

    @property
    def running(self) -> bool:
        return self.started is not None and not self.removed

    def measured(self, *, memory_bytes: int = 0, gpu_bytes: int = 0) -> None:
        """Keep the highest of each."""
        if memory_bytes:
            self.peak_memory_bytes = max(memory_bytes, self.peak_memory_bytes or 0)
        if gpu_bytes:
            self.peak_gpu_memory_bytes = max(gpu_bytes, self.peak_gpu_memory_bytes or 0)

    def look_again(self) -> None:
        """The server's list does not name it any more, or wants it stopped: ask at once."""
        self._ask_now.set()

    async def run(self) -> None:
        """Until it is released. Raises what ends the whole agent, and nothing else."""
        sides = [asyncio.create_task(self._renew(), name=f"renew-{self.spec.id}")]
        pause = PAUSE_S[0]
        try:
            while True:
                try:
                    await self._once(sides)
                    return
                except (Superseded, HostRefused):
                    raise
                except (RuntimeUnavailable, StillThere) as error:
                    log.warning("attempt %s: %s", self.spec.id, error)
                except Exception:  # one poisoned attempt must not stop the others; it is loud and paced
                    log.exception("attempt %s: unexpected failure", self.spec.id)
                await asyncio.sleep(pause)
                pause = min(PAUSE_S[1], pause * 2)
        finally:
            await _cancel(*sides, self._told_start, self._telling)

    async def _once(self, sides: list[asyncio.Task[None]]) -> None:
        result = self._kept or self._folder.result()
        if result is None:
            result = await self._to_its_end()
        if (broken := self._telling) is not None and broken.done() and broken.exception() is not None:
            self._telling = None
            await broken  # raises; the next round tells anew
        if self._telling is None:  # what does not go away holds its place, not the word of how it ended
            self._telling = asyncio.create_task(self._tell(result), name=f"result-{self.spec.id}")
        await self._runtime.remove(self._folder)
        self.removed = True
        self._on_removed()
        telling, self._telling = self._telling, None
        await telling
        await _cancel(*sides, self._told_start)
        fault_points.hit(fault_points.TASK_COMPLETED)
        await self._link.release()
        await asyncio.to_thread(self._folder.remove)

    async def _to_its_end(self) -> AttemptResult | None:
        """Its result, on disk. ``None``: the server does not want it any more, and there is none."""
        try:
            return await self._result()
        except Refused:
            await self._runtime.kill(self._folder)
            return None

    async def _result(self) -> AttemptResult | None:
        if self.started is None:
            await self._accept()
            try:
                stop = self._why() or await self._prepare() or await self._meet() or await self._start()
                if stop is not None:
                    return self._kept_away(stop)
            except StartRefused as refused:
                log.warning("attempt %s cannot start: %s", self.spec.id, refused.message)
                return self._keep(results.of_refusal(refused))
        assert self.started is not None, "it was started just now or before"
        if not self.started.this_boot:
            return self._keep(results.of_lost(rebooted=True))
        life = await self._runtime.look(self._folder)
        if life in (Life.NOTHING, Life.CREATED):
            return self._keep(results.of_lost(rebooted=False))
        if self._told_start is None:
            self._told_start = asyncio.create_task(self._tell_start(), name=f"start-{self.spec.id}")
        stop = await self._watch(life)
        return await self._collect(stop)

    def _kept_away(self, stop: Stop) -> AttemptResult:
        """It must end before it has begun. Raises Refused."""
        if stop.why == "refused":
            raise Refused("it was refused before it was started")
        return self._keep(results.of_stop(stop, None))

    async def _accept(self) -> None:
        self._take(*await self._link.accept())
        fault_points.hit(fault_points.TASK_ACCEPTED)

    async def _prepare(self) -> Stop | None:
        """Its input, and the image or the place; a stop meanwhile ends the wait."""
        preparing = asyncio.create_task(self._fetch())
        try:
            while not preparing.done() and (stop := self._why()) is None:
                await self._pause(preparing)
            if preparing.done():
                await preparing
                return None
            return stop
        finally:
            await _cancel(preparing)

    async def _fetch(self) -> None:
        await inputs.fetch(self.spec.input, self._folder.input, self._link)
        await self._runtime.prepare(self.spec, self._link.epoch, partial(self._say, None))

    async def _meet(self) -> Stop | None:
        """Everything is here: wait until that is so on all hosts of the task."""
        if self.spec.gang is None:
            return None
        self._ready = True
        self._ask_now.set()
        fault_points.hit(fault_points.TASK_READY)
        while (stop := self._why()) is None and not self._go.is_set():
            waiting = asyncio.create_task(self._wait_for_go())
            try:
                await self._pause(waiting)
            finally:
                await _cancel(waiting)
        return stop

    async def _wait_for_go(self) -> None:
        await self._go.wait()

    async def _start(self) -> Stop | None:
        """Answers why it must not be started after all: this agent may have been frozen meanwhile."""
        self._folder.prepare(self.spec)
        if (stop := self._why()) is not None:
            return stop
        self.started = self._folder.mark_started()
        await self._runtime.start(self.spec, self._folder, self._link.epoch)
        fault_points.hit(fault_points.TASK_STARTED)
        return None

    async def _tell_start(self) -> None:
        try:
            await self._link.start(self._runtime.where(self._folder))
        except (Refused, errors.ApiError) as error:
            log.info("attempt %s: its start was not wanted: %s", self.spec.id, error)

    async def _watch(self, life: Life) -> Stop | None:
        """Until its main process has ended; by itself (``None``), or because it was made to.

        One that ended while nobody looked keeps its own end, however late that is found.
        """
        ended = asyncio.create_task(self._runtime.wait_end(self._folder))
        shipping = asyncio.create_task(self._side_work(), name=f"output-{self.spec.id}")
        try:
            self._write_lease()
            self._folder.forget_secrets(self.spec)
            stop = self._folder.stop() or (self._why() if life is Life.RUNNING else None)
            while not ended.done() and stop is None:
                await self._pause(ended)
                stop = None if ended.done() else self._why()
            if stop is not None:
                await self._end(stop, ended)
            await ended
            return stop or self._folder.stop()
        finally:
            await _cancel(ended, shipping)

    async def _side_work(self) -> None:
        """Output and progress while it runs; the end sends what is left."""
        both = [
            asyncio.create_task(self._shipper.run()),
            asyncio.create_task(follow_progress(self._folder, self._link)),
        ]
        try:
            await asyncio.gather(*both)
        except Refused:
            self._wake.set()
        except (Superseded, HostRefused):
            raise
        except Exception:  # the task runs on; its end sends what is left
            log.exception("attempt %s: its output is not sent any more while it runs", self.spec.id)
        finally:
            await _cancel(*both)

    async def _end(self, stop: Stop, ended: asyncio.Task[None]) -> None:
        """TERM, grace, KILL. A refusal or the fence meanwhile shortens the grace."""
        if self._folder.stop() is None:
            self._folder.put_stop(stop)
        log.info("attempt %s is ended: %s", self.spec.id, stop.why)
        if stop.grace_s > 0:
            await self._runtime.terminate(self._folder)
        while not ended.done() and boottime() < self._kill_at(stop):
            await self._pause(ended, until=self._kill_at(stop))
        if not ended.done():
            await self._runtime.kill(self._folder)

    def _kill_at(self, stop: Stop) -> float:
        if self._link.refused.is_set():
            return 0.0
        at = stop.at_s + stop.grace_s
        return at if self._fence_at is None else min(at, max(self._fence_at + self._fence_grace_s, stop.at_s))

    async def _collect(self, stop: Stop | None) -> AttemptResult | None:
        """What is left of it is killed, then its end is read and kept."""
        try:
            await self._runtime.kill(self._folder)
        except StillThere:
            # A child that hangs in the kernel holds the place until `remove` sees it gone, not the word of
            # how the task ended.
            if stop is not None or await self._runtime.look(self._folder) is not Life.ENDED:
                raise
        end = await self._runtime.end_of(self._folder)
        fault_points.hit(fault_points.TASK_ENDED)
        if self._link.refused.is_set():
            return None
        if stop is not None:
            return self._keep(results.of_stop(stop, end))
        if end is None:
            return self._keep(results.of_lost(rebooted=False))
        places = {"/output": self._folder.output}
        return self._keep(results.of_end(self.spec, end, full=results.full_place(places)))

    def _keep(self, result: AttemptResult) -> AttemptResult:
        peaks = [peak for peak in (self.peak_memory_bytes, result.peak_memory_bytes) if peak is not None]
        measured = {
            "peak_memory_bytes": max(peaks, default=None),
            "peak_gpu_memory_bytes": self.peak_gpu_memory_bytes,
        }
        kept = result.model_copy(update=measured)
        try:
            self._folder.put_result(kept)
        except OSError as error:  # its own output may fill the disk until it is released
            log.error("attempt %s: its result is kept in memory only: %s", self.spec.id, error)
        self._kept = kept
        fault_points.hit(fault_points.TASK_KEPT)
        return kept

    async def _tell(self, result: AttemptResult | None) -> None:
        """In order: that it started, its output, its last words, its result.

        Nothing of it runs any more or will soon; ``folder.output`` is whole, and stays until the release.
        """
        if result is None:
            return
        try:
            told_start, self._told_start = self._told_start, None
            if told_start is not None:
                await told_start
            await self._in_time("output", self._rest_of_output(), OUTPUT_S)
            files = artifacts.upload(self._folder.output, self._link, max_bytes=self.spec.artifacts_max_bytes)
            await self._in_time("files", files, FILES_S)  # whoever sees its end finds its files
            await self._link.complete(result)
        except Refused:
            log.info("attempt %s: the server does not want its result %s", self.spec.id, result.status)
        except errors.ApiError as error:
            log.error("attempt %s: the server does not take its result: %s", self.spec.id, error)

    async def _in_time(self, what: str, work: Coroutine[Any, Any, None], limit_s: float) -> None:
        """Its result and its place do not wait for ever. Raises what the work raises."""
        doing = asyncio.create_task(work, name=f"{what}-{self.spec.id}")
        give_up_at = boottime() + limit_s
        try:
            while not doing.done() and boottime() < give_up_at:
                if self._stop_now:
                    give_up_at = min(give_up_at, boottime() + STOPPED_S)
                await self._pause(doing, until=give_up_at)
            if doing.done():
                await doing
            else:
                log.error("attempt %s: the rest of its %s is not kept: it took too long", self.spec.id, what)
        finally:
            await _cancel(doing)

    async def _rest_of_output(self) -> None:
        self._shipper.complete()
        await self._shipper.run()
        if (said := read_progress(self._folder)) is not None:
            await self._say(*said)

    async def _say(self, progress: float | None, message: str) -> None:
        try:
            await self._link.progress(progress, message)
        except errors.ApiError as error:
            log.warning("progress of %s: %s", self.spec.id, error)

    async def _renew(self) -> None:
        """Keep the lease from its acceptance to its result, and whenever there is a doubt.

        Whatever goes wrong here is tried again; the fence ends the attempt when it stays wrong.
        """
        while True:
            pause = max(0.05, self._renew_at - boottime()) if self._renew_at else LOOK_EVERY_S
            try:
                async with asyncio.timeout(min(pause, LOOK_EVERY_S)):
                    await self._ask_now.wait()
            except TimeoutError:
                if not self._renew_at or boottime() < self._renew_at:  # not accepted yet, or not due
                    continue
            self._ask_now.clear()
            try:
                self._take(*await self._link.renew(ready=self._ready))
            except Refused:
                self._wake.set()
                return
            except errors.ApiError as error:
                log.warning("renewal of %s: %s", self.spec.id, error)
                self._renew_at = boottime() + PAUSE_S[1]
            except (Superseded, HostRefused):
                raise
            except Exception:  # one that ended here in silence would cost a healthy task its life
                log.exception("attempt %s: its lease was not renewed", self.spec.id)
                self._renew_at = boottime() + PAUSE_S[1]

    def _take(self, lease: AttemptLease, sent_at: float) -> None:
        self._fence_at = sent_at + lease.fence_s
        self._fence_grace_s = lease.fence_grace_s
        self._renew_at = sent_at + lease.renew_in_s
        self._write_lease()
        if lease.go:
            self._go.set()
        if lease.stop:
            self._stop_now, self._stop_asked = True, lease.stop_reason
            self._wake.set()

    def _write_lease(self) -> None:
        """For who ends it when this agent cannot."""
        if self._fence_at is None or self.removed or self._kept is not None:
            return
        self._runtime.note_lease(self._folder, fence_at=self._fence_at, grace_s=self._fence_grace_s)

    def _why(self) -> Stop | None:
        """Why it must end, if it must; the gravest first."""
        now = boottime()
        if self._link.refused.is_set():
            return self._stopping("refused", 0)
        if self._fence_at is not None and now >= self._fence_at:
            return self._stopping("fenced", self._fence_grace_s)
        if self._stop_now:
            return self._stopping("cancelled", self.spec.stop_grace_s)
        if self.started is not None and now >= self.started.at_s + self.spec.timeout_s:
            return self._stopping("timeout", self.spec.stop_grace_s)
        return None

    def _stopping(self, why: str, grace_s: float) -> Stop:
        return Stop(why=why, reason=self._stop_asked, at_s=boottime(), grace_s=grace_s)

    async def _pause(self, work: asyncio.Task[None], *, until: float | None = None) -> None:
        """Until the work is done, something has changed, or a deadline may have come."""
        timeout = LOOK_EVERY_S
        for deadline in (until, self._fence_at, self._times_out_at()):
            if deadline is not None and deadline > boottime():
                timeout = min(timeout, deadline - boottime())
        wake = asyncio.create_task(self._wake.wait())
        try:
            await asyncio.wait({work, wake}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await _cancel(wake)
        self._wake.clear()

    def _times_out_at(self) -> float | None:
        return None if self.started is None else self.started.at_s + self.spec.timeout_s


async def _cancel(*tasks: asyncio.Task[Any] | None) -> None:
    """Cancel and await, and raise what ends the whole agent."""
    found = [task for task in tasks if task is not None]
    for task in found:
        task.cancel()
    for outcome in await asyncio.gather(*found, return_exceptions=True):
        if isinstance(outcome, (Superseded, HostRefused)):
            raise outcome


__all__ = ["Attempt"]
