"""Makes the runtime match the desired set: one task for each workload, so a slow one blocks nobody."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable, Iterator
from dataclasses import dataclass, field

from remotegpu.types.agent import DesiredState, Observed, ObservedWorkload, Workload
from remotegpu.types.environments import Reason
from remotegpu_agent import container_spec, fault_points, readiness, reconcile
from remotegpu_agent.journal import Entry, Journal
from remotegpu_agent.runtime import (
    Actual,
    ActualState,
    Runtime,
    RuntimeUnavailable,
    StartRefused,
    StillThere,
)

log = logging.getLogger(__name__)

LOG_TAIL_LINES = 100
LOG_TAIL_BYTES = 16_000
RETRY_S = (1.0, 30.0)
"""First and longest pause after a step that an engine, or a process that will not die, refused."""
AFTER_HINT_S = (0.3, 1.0)
"""Further looks soon after an event: Docker tells of an end before its listing shows it."""
ADOPTION_PROBE_S = 1.5
"""How long a registration waits for the servers of adopted workloads."""

Report = Callable[[ObservedWorkload], None]


@dataclass
class _Case:
    """One workload of this host."""

    desired: Workload | None = None
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None
    failure: ObservedWorkload | None = None
    """Why the desired generation was given up."""
    deadline: float | None = None
    """When a server that never answered is given up; loop time."""


class Converger:
    """The workloads of one host and what is known of each."""

    def __init__(
        self,
        *,
        runtime: Runtime,
        journal: Journal,
        report: Report,
        observe_every_s: float,
        no_answer_pause_s: tuple[float, float] = RETRY_S,
    ) -> None:
        self._runtime = runtime
        self._journal = journal
        self._report = report
        self._observe_every_s = observe_every_s
        self._pause_s = no_answer_pause_s
        self._cases: dict[str, _Case] = {}
        self._states: dict[str, ObservedWorkload] = {}
        self._quarantined: dict[str, list[str]] = {}
        self._seen: dict[str, frozenset[tuple[str, ActualState]]] = {}
        self._desired_known = False
        self.epoch = 0

    async def adopt(self) -> list[ObservedWorkload]:
        """What runs at the moment, for the registration. Nothing is started, stopped or judged.

        Where the engine is silent, the workloads of the journal are ``unknown``, never gone.
        """
        try:
            found = await self._runtime.find()
        except RuntimeUnavailable as error:
            log.warning("cannot see what runs: %s", error)
            return [
                ObservedWorkload(
                    workload_id=workload_id,
                    generation=entry.generation,
                    observed=Observed.UNKNOWN,
                    message="The container engine of this host does not answer.",
                    gpu_uuids=list(entry.gpu_uuids),
                )
                for workload_id, entry in self._journal.entries().items()
            ]
        newest: dict[str, Actual] = {}
        for actual in found:
            known = newest.get(actual.workload_id)
            if known is None or known.generation < actual.generation:
                newest[actual.workload_id] = actual
        states = await asyncio.gather(*(self._first_look(actual) for actual in newest.values()))
        self._states = {state.workload_id: state for state in states}
        return list(states)

    def set_desired(self, workloads: Iterable[Workload]) -> None:
        """Take over a full desired set. Workloads that it does not name are looked at as well."""
        self._desired_known = True
        wanted = {workload.id: workload for workload in workloads}
        for workload_id in wanted.keys() | self._cases.keys() | self._states.keys():
            case = self._cases.setdefault(workload_id, _Case())
            before, now = case.desired, wanted.get(workload_id)
            self._authorize(now)
            if _same(before, now) and case.task is not None and before is not None:
                continue
            if now is None or before is None or before.generation != now.generation:
                case.failure, case.deadline = None, None
            case.desired = now
            self._wake(workload_id)

    def _authorize(self, workload: Workload | None) -> None:
        """Keys follow every desired set, within one generation too; what is to be removed opens at once no
        more. A disk that is full must not stop the agent: the next set tries again.
        """
        if workload is None:
            return
        keys = workload.authorized_keys if workload.desired is DesiredState.RUNNING else []
        self._write_keys(workload.id, keys)

    def _write_keys(self, workload_id: str, keys: list[str] | None) -> None:
        try:
            self._runtime.authorize(workload_id, keys)
        except (OSError, ValueError) as error:
            log.error("workload %s: its SSH keys could not be written: %s", workload_id, error)

    def servers(self) -> dict[str, tuple[str, str]]:
        """Address and ready path of every workload whose server answers."""
        return {
            workload_id: (state.address, container_spec.ready_path(case.desired))
            for workload_id, state in self._states.items()
            if state.observed is Observed.RUNNING
            and state.address is not None
            and (case := self._cases.get(workload_id)) is not None
            and case.desired is not None
        }

    async def run(self) -> None:
        """Watch the runtime: at once on its events, at a pace without them."""
        hint: asyncio.Task[None] | None = None
        soon: Iterator[float] = iter(())
        try:
            while True:
                if hint is None:
                    hint = asyncio.create_task(self._runtime.wait_change(), name="runtime-events")
                await self.observe()
                await asyncio.wait({hint}, timeout=next(soon, self._observe_every_s))
                if hint.done():
                    await hint
                    hint = None
                    soon = iter(AFTER_HINT_S)
        finally:
            if hint is not None:
                hint.cancel()
                await asyncio.gather(hint, return_exceptions=True)

    async def observe(self) -> None:
        """Wake every workload whose instances are not those that it saw last."""
        if not self._desired_known:
            return  # until the server has spoken, nothing can be called unexplained
        try:
            found = await self._runtime.find()
        except RuntimeUnavailable as error:
            log.warning("the runtime cannot be observed: %s", error)
            return
        seen: dict[str, set[tuple[str, ActualState]]] = {}
        for actual in found:
            seen.setdefault(actual.workload_id, set()).add((actual.key, actual.state))
        now = {workload_id: frozenset(instances) for workload_id, instances in seen.items()}
        changed = {wid for wid in now.keys() | self._seen.keys() if now.get(wid) != self._seen.get(wid)}
        self._seen = now
        for workload_id in changed:
            self._wake(workload_id)

    def states(self) -> list[ObservedWorkload]:
        return list(self._states.values())

    def quarantined(self) -> list[str]:
        return sorted(name for names in self._quarantined.values() for name in names)

    def held_gpus(self) -> frozenset[str]:
        """GPUs that a workload of this host has at the moment."""
        ended = (Observed.ABSENT, Observed.EXITED, Observed.FAILED)
        states = [state for state in self._states.values() if state.observed not in ended]
        return frozenset(uuid for state in states for uuid in state.gpu_uuids)

    def homes_in_use(self) -> frozenset[str]:
        """Volume ids of every workload that is wanted, or whose absence is not proven."""
        gone = {wid for wid, state in self._states.items() if state.observed is Observed.ABSENT}
        wanted = [(wid, case.desired) for wid, case in self._cases.items() if case.desired is not None]
        return frozenset(
            workload.home.volume_id
            for workload_id, workload in wanted
            if workload.desired is DesiredState.RUNNING or workload_id not in gone
        )

    async def log_of(self, workload_id: str, tail_lines: int) -> tuple[str, bool]:
        found = await self._runtime.find(workload_id)
        for actual in sorted(found, key=lambda it: it.generation, reverse=True):
            if actual.state is not ActualState.REMNANT:
                return await self._runtime.logs(actual, tail_lines)
        return "", False

    async def close(self) -> None:
        """Stop working. Workloads are left as they are."""
        tasks = [case.task for case in self._cases.values() if case.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _wake(self, workload_id: str) -> None:
        case = self._cases.setdefault(workload_id, _Case())
        case.wake.set()
        if case.task is None:
            case.task = asyncio.create_task(self._drive(workload_id, case), name=f"workload-{workload_id}")

    async def _drive(self, workload_id: str, case: _Case) -> None:
        """Pass after pass until what is there is what is wanted, then wait to be woken."""
        pause, longest = self._pause_s
        while True:
            case.wake.clear()
            try:
                await self._one_pass(workload_id, case)
                pause = self._pause_s[0]
                delay: float | None = None
            except (RuntimeUnavailable, StillThere) as error:
                log.warning("workload %s: %s", workload_id, error)
                delay, pause = pause, min(longest, pause * 2)
            except Exception:  # one poisoned workload must not stop the others; it is loud and paced
                log.exception("workload %s: unexpected failure", workload_id)
                delay, pause = pause, min(longest, pause * 2)
            if delay is None and case.desired is None and workload_id not in self._quarantined:
                if not case.wake.is_set():
                    self._forget(workload_id)
                    return
            elif delay is not None or not case.wake.is_set():
                await _woken(case.wake, delay)

    def _forget(self, workload_id: str) -> None:
        self._cases.pop(workload_id, None)
        self._states.pop(workload_id, None)

    async def _one_pass(self, workload_id: str, case: _Case) -> None:
        desired = case.desired
        actual = await self._runtime.find(workload_id)
        entry = self._journal.get(workload_id, desired.generation) if desired else None
        past = reconcile.Past(launched=entry is not None, failed=case.failure is not None)
        if desired is not None or not actual:
            self._quarantined.pop(workload_id, None)
        for step in reconcile.plan(desired, actual, past):
            try:
                await self._perform(step, case)
            except StartRefused as refused:
                if case.desired is desired:
                    await self._give_up(case, refused)
                return
            if case.wake.is_set():
                return  # something changed meanwhile: look again before going on

    async def _perform(self, step: reconcile.Step, case: _Case) -> None:
        match step:
            case reconcile.Quarantine(actual):
                self._quarantine(actual)
            case reconcile.Pull(workload):
                await self._until_superseded(case, self._pull(workload))
            case reconcile.Create(workload):
                await self._launch(workload, case)
            case reconcile.Adopt(actual):
                await self._follow(actual, case)
            case reconcile.Stop(actual, grace_s):
                await self._stop(actual, grace_s, case)
            case reconcile.Remove(workload_id, generation):
                await self._runtime.remove(workload_id, generation)
                fault_points.hit(fault_points.REMOVED)
            case reconcile.ReportExited(actual):
                await self._report_exited(actual)
            case reconcile.ReportFailed():
                if case.failure is not None:
                    self._tell(case.failure)
            case reconcile.ReportVanished():
                self._report_vanished(case)
            case reconcile.ReportAbsent(generation):
                await self._report_absent(case, generation)

    async def _pull(self, workload: Workload) -> None:
        def progress(percent: int | None) -> None:
            self._tell(_state(workload, Observed.PULLING, Reason.PULLING, progress_percent=percent))

        await self._runtime.fetch_image(workload, progress)

    async def _launch(self, workload: Workload, case: _Case) -> None:
        if case.desired is not workload:
            return
        self._tell(_state(workload, Observed.CREATING, Reason.CREATING))
        key = await self._runtime.create(workload, self.epoch)
        await self._start_key(key, workload, case)

    async def _start_key(self, key: str, workload: Workload, case: _Case) -> None:
        actual = await self._runtime.start(key)
        fault_points.hit(fault_points.STARTED)
        self._journal.put(
            workload.id,
            Entry(generation=workload.generation, gpu_uuids=tuple(workload.gpu_uuids), ready=False),
        )
        await self._follow(actual, case)

    async def _follow(self, actual: Actual, case: _Case) -> None:
        """Until its server answers, it ends, or something else is wanted."""
        desired = case.desired
        entry = self._journal.get(actual.workload_id, actual.generation)
        if entry is None:
            entry = Entry(generation=actual.generation, gpu_uuids=actual.gpu_uuids, ready=False)
            self._journal.put(actual.workload_id, entry)
        known = self._states.get(actual.workload_id)
        if known == (running := _running(actual)):
            self._tell(running)
            return
        self._tell(_seen(actual, Observed.STARTING, reason=Reason.WAITING_FOR_SERVER))
        if actual.address is None or desired is None:
            return
        answered = await self._await_server(actual, case, desired, bounded=not entry.ready)
        if answered:
            self._journal.put(
                actual.workload_id,
                Entry(generation=entry.generation, gpu_uuids=entry.gpu_uuids, ready=True),
            )
            self._tell(running)

    async def _await_server(self, actual: Actual, case: _Case, desired: Workload, *, bounded: bool) -> bool:
        """Whether it answers. One that answered before an agent's restart is never given up."""
        address = actual.address or ""
        loop = asyncio.get_running_loop()
        if case.deadline is None:
            case.deadline = loop.time() + desired.start_timeout_s
        try:
            async with asyncio.timeout_at(case.deadline if bounded else None):
                return await self._until_superseded(case, readiness.wait_ready(address, actual.ready_path))
        except TimeoutError:
            raise StartRefused(
                Reason.START_TIMEOUT,
                f"The notebook server did not answer within {desired.start_timeout_s:.0f} s of its start.",
            ) from None

    async def _until_superseded(self, case: _Case, work: Coroutine[None, None, None]) -> bool:
        """Do slow work that may be dropped: false when the case was woken first."""
        task = asyncio.create_task(work)
        woken = asyncio.create_task(case.wake.wait())
        try:
            await asyncio.wait({task, woken}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                await task
                return True
            return False
        finally:
            for pending in (task, woken):
                pending.cancel()
            await asyncio.gather(task, woken, return_exceptions=True)

    async def _stop(self, actual: Actual, grace_s: float, case: _Case) -> None:
        desired = case.desired
        if desired is not None and desired.desired is DesiredState.ABSENT:
            self._tell(_seen(actual, Observed.STOPPING, generation=desired.generation))
        await self._runtime.stop(actual, grace_s)
        fault_points.hit(fault_points.STOPPED)

    async def _give_up(self, case: _Case, refused: StartRefused) -> None:
        """Nothing of it may be left when ``failed`` is reported."""
        workload = case.desired
        if workload is None:
            return
        log.warning("workload %s cannot start: %s", workload.id, refused.message)
        tail, code = None, None
        for actual in await self._runtime.find(workload.id):
            if actual.state is not ActualState.REMNANT:
                tail, code = await self._tail(actual), actual.exit_code
            if actual.state is ActualState.RUNNING:
                await self._runtime.stop(actual, workload.stop_grace_s)
        await self._runtime.remove(workload.id, workload.generation)
        case.failure = _state(
            workload,
            Observed.FAILED,
            refused.reason,
            message=refused.message[:2048],
            log_tail=tail,
            exit_code=code,
        )
        self._tell(case.failure)

    async def _report_exited(self, actual: Actual) -> None:
        known = self._states.get(actual.workload_id)
        if (
            known is not None
            and known.generation == actual.generation
            and known.observed is Observed.EXITED
            and known.log_tail is not None
        ):
            return
        self._tell(_ended(actual, await self._tail(actual)))

    def _report_vanished(self, case: _Case) -> None:
        if case.desired is not None:
            message = "Its container is not on this host any more; somebody removed it."
            case.failure = _state(case.desired, Observed.FAILED, Reason.WORKLOAD_VANISHED, message=message)
            self._tell(case.failure)

    async def _report_absent(self, case: _Case, generation: int) -> None:
        workload = case.desired
        if workload is None:
            return
        if left := await self._runtime.find(workload.id):
            raise StillThere(f"{', '.join(it.name for it in left)} is still there after its removal")
        self._journal.forget(workload.id)
        self._write_keys(workload.id, None)
        self._tell(ObservedWorkload(workload_id=workload.id, generation=generation, observed=Observed.ABSENT))

    def _quarantine(self, actual: Actual) -> None:
        names = self._quarantined.setdefault(actual.workload_id, [])
        if actual.name not in names:
            log.warning("%s: no desired workload explains it; it is left alone and reported", actual.name)
            names.append(actual.name)
        self._states.pop(actual.workload_id, None)

    async def _first_look(self, actual: Actual) -> ObservedWorkload:
        """The state of an adopted instance; its server gets a moment to answer."""
        if actual.state is ActualState.EXITED:
            try:
                return _ended(actual, await self._tail(actual))
            except RuntimeUnavailable:
                return _ended(actual, None)  # the next look has the output
        if actual.state is not ActualState.RUNNING or actual.address is None:
            return _seen(actual, Observed.CREATING)
        try:
            async with asyncio.timeout(ADOPTION_PROBE_S):
                await readiness.wait_ready(actual.address, actual.ready_path)
        except TimeoutError:
            return _seen(actual, Observed.STARTING)
        return _running(actual)

    async def _tail(self, actual: Actual) -> str:
        text, _ = await self._runtime.logs(actual, LOG_TAIL_LINES)
        return text.encode()[-LOG_TAIL_BYTES:].decode(errors="replace")

    def _tell(self, state: ObservedWorkload) -> None:
        self._states[state.workload_id] = state
        self._report(state)


def _same(before: Workload | None, now: Workload | None) -> bool:
    """Whether nothing new is wanted. Secrets are wiped in later answers; that is no change."""
    if before is None or now is None:
        return before is now
    return (before.generation, before.desired) == (now.generation, now.desired)


def _state(workload: Workload, observed: Observed, reason: Reason, **more: object) -> ObservedWorkload:
    return ObservedWorkload.model_validate(
        {
            "workload_id": workload.id,
            "generation": workload.generation,
            "observed": observed,
            "reason": str(reason),
            "gpu_uuids": workload.gpu_uuids,
            **more,
        }
    )


def _seen(
    actual: Actual, observed: Observed, *, generation: int | None = None, **more: object
) -> ObservedWorkload:
    return ObservedWorkload.model_validate(
        {
            "workload_id": actual.workload_id,
            "generation": actual.generation if generation is None else generation,
            "observed": observed,
            "exit_code": actual.exit_code,
            "gpu_uuids": list(actual.gpu_uuids),
            "image_digest": actual.image_digest,
            **more,
        }
    )


def _running(actual: Actual) -> ObservedWorkload:
    return _seen(
        actual,
        Observed.RUNNING,
        reason=Reason.READY,
        address=actual.address,
        endpoints=dict(actual.endpoints),
    )


def _ended(actual: Actual, log_tail: str | None) -> ObservedWorkload:
    """The whole story of one that ended by itself: the first report decides what the user reads."""
    if actual.out_of_memory:
        reason, message = Reason.OUT_OF_MEMORY, "It used more memory than it was given and was ended."
    else:
        reason, message = Reason.EXITED, f"It ended by itself with exit code {actual.exit_code}."
    return _seen(actual, Observed.EXITED, reason=reason, message=message, log_tail=log_tail)


async def _woken(wake: asyncio.Event, timeout_s: float | None) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            await wake.wait()
    except TimeoutError:
        return
