"""Attempts as jobs of Slurm on one node: they wait in its queue, and begin by the agent's word."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from remotegpu.types.agent import AttemptOutcome, ClaimedAttempt
from remotegpu.types.environments import Reason
from remotegpu_agent import fault_points, processes
from remotegpu_agent.homes import prepare_home
from remotegpu_agent.runtime import RuntimeUnavailable, StartRefused, StillThere
from remotegpu_agent.settings import Settings
from remotegpu_agent.slurm import job as jobs
from remotegpu_agent.slurm.commands import Job, Refused, Slurm
from remotegpu_agent.slurm.nodes import NodeGpus
from remotegpu_agent.tasks import shim
from remotegpu_agent.tasks.environment import environment
from remotegpu_agent.tasks.folders import Folder, boottime
from remotegpu_agent.tasks.runtime import Cause, End, Life

log = logging.getLogger(__name__)

LOOK_EVERY_S = 0.5
SAY_AFTER_S = 3.0
"""A shorter wait in Slurm's queue is nobody's news."""
KILL_WAIT_S = 45.0
"""Slurm's own ``KillWait`` is 30 s unless the site says otherwise."""
TERM_S = 10.0
"""For Slurm to send TERM: with the controller away, its programs would try for longer than most graces."""
WATCH_KILL_S = 3.0
"""The job's own watch ends its whole tree first, so that all of its output arrives; then Slurm does."""
WATCH_LATE_S = 10.0
"""How late the job's watch may see the last renewal, and be done with its KILL."""
_UNHEARD = frozenset({"NODE_FAIL", "BOOT_FAIL"})
_LOST_UNBEGUN = _UNHEARD | {"PREEMPTED", "TIMEOUT"}
"""Ends of a job that was not told to begin for which its task can do nothing."""
ROOM_S = 120
"""Between a task's own end and that of ``--time``: Slurm counts in minutes."""
_NEVER = (
    "PartitionTimeLimit", "PartitionNodeLimit", "AccountNotAllowed", "QOSNotAllowed", "InvalidAccount",
    "InvalidQOS", "BadConstraints", "JobHeldAdmin", "JobHeldUser", "AssociationJobLimit",
)  # fmt: skip
"""Reasons to wait that no waiting cures."""
_MEMORY_WORDS = (b"exceeded memory limit", b"oom-kill", b"oom_kill")


class SlurmTasks:
    """Attempts of one node of a partition."""

    guarded = False
    """Jobs watch their lease themselves, on their node."""

    def __init__(
        self, settings: Settings, host_id: str, *, slurm: Slurm, node_name: str, gpus: NodeGpus
    ) -> None:
        self._settings = settings
        self._host_id = host_id
        self._slurm = slurm
        self._node_name = node_name
        self._gpus = gpus
        self._root = settings.state_dir / "attempts"

    @property
    def limits(self) -> str:
        return "tasks are jobs of Slurm, with the limits that it sets"

    async def prepare(self, spec: ClaimedAttempt, epoch: int, say: Callable[[str], Awaitable[None]]) -> None:
        """Return when its job has its place on the node and waits for the word to begin."""
        if spec.script is None and spec.command is None:
            raise StartRefused(
                Reason.START_FAILED, "This host runs jobs of Slurm, and the task names no command."
            )
        folder = Folder(self._root, spec.id)
        for name in ("there", "go", "alive"):
            _make(folder.path / name)
        if not await self._named(folder):
            await self._submit(spec, folder, epoch)
        said, since = "", time.monotonic()
        while True:
            job, alone = await self._only(folder)
            if job is None:
                raise StartRefused(Reason.START_FAILED, "Its job of Slurm vanished before it began.")
            if job.ended:
                raise StartRefused(*self._unbegun(folder, job))
            if job.state == "PENDING" and job.reason.startswith(_NEVER):
                await self._slurm.kill(job.id)
                raise StartRefused(Reason.START_FAILED, f"Slurm will never run it there: {job.reason}.")
            there = self._there(folder)
            if alone and there is not None and there.job_id == job.id:
                if said:
                    await say("")
                return
            waits = f"Waits in Slurm: {job.reason if job.state == 'PENDING' else job.state.lower()}."
            if time.monotonic() - since > SAY_AFTER_S and waits != said:
                said = waits
                await say(waits)
            await asyncio.sleep(LOOK_EVERY_S)

    async def _submit(self, spec: ClaimedAttempt, folder: Folder, epoch: int) -> None:
        """What becomes of it is looked up by its name: the answer may be lost, and the job be there."""
        longest_s = await self._slurm.longest_s()
        wanted_s = spec.timeout_s + spec.stop_grace_s + ROOM_S
        words = jobs.comment(host_id=self._host_id, attempt_id=spec.id, epoch=epoch, owner=spec.owner)
        options = [
            f"--job-name={jobs.name(spec.id)}",
            f"--comment={words}",
            f"--nodelist={self._node_name}",
            "--nodes=1",
            "--ntasks=1",
            f"--cpus-per-task={math.ceil(spec.cpus)}",
            f"--mem={math.ceil(spec.memory_bytes / 2**20)}M",
            f"--time={time_limit(wanted_s, longest_s, waits=spec.gang is not None)}",
            "--no-requeue",
            "--export=ALL",
            "--chdir=/",
            f"--output={_escaped(folder.path / 'slurm.out')}",
            "--open-mode=append",
        ]
        if spec.gpu_uuids:
            kind = self._gpus.type_of(spec.gpu_uuids)
            options.append(f"--gres=gpu:{kind + ':' if kind else ''}{len(spec.gpu_uuids)}")
        script = jobs.script(
            os.fspath(folder.path), marker=self._marker(spec.id), log_cap_bytes=spec.log_cap_bytes
        )
        try:
            number = await self._slurm.submit(options, script)
        except Refused as refused:
            raise StartRefused(Reason.START_FAILED, f"Slurm refuses it: {refused}"[:2000]) from refused
        log.info("attempt %s is job %s of Slurm", spec.id, number)
        fault_points.hit(fault_points.TASK_SUBMITTED)

    async def start(self, spec: ClaimedAttempt, folder: Folder, epoch: int) -> None:
        """Tell its job to begin. The job is written down first: no other one is ever told."""
        there = self._there(folder)
        if there is None:
            raise StartRefused(Reason.START_FAILED, "Its job of Slurm vanished before it began.")
        await self._look_before(folder, there.job_id)
        home = await asyncio.to_thread(prepare_home, self._settings, spec.home, owner=None)
        command = shim.command_of(spec, str(folder.script))
        assert command is not None, "it was prepared"
        folder.put_process(job=there.job_id, node=there.node, gpus=there.gpus, visible=there.visible)
        lease = folder.lease()
        if lease is not None:
            self.note_lease(folder, fence_at=lease["fence_at"], grace_s=lease["grace_s"])
        go = jobs.go(
            there.job_id,
            environment=self._environment(spec, folder, home),
            working_dir=spec.working_dir or os.fspath(home),
            command=command,
        )
        _write(folder.path / "go", go)
        fault_points.hit(fault_points.TASK_SPAWNED)

    async def _look_before(self, folder: Folder, number: str) -> None:
        """Those of other hosts may have kept it waiting for long. Raises StartRefused if its job has ended.

        The silence of Slurm means nothing here, too: the job is there to be told.
        """
        try:
            job = await self._job(folder, number)
        except RuntimeUnavailable as error:
            log.warning("attempt %s is started unseen: %s", folder.attempt_id, error)
            return
        if job is None:
            raise StartRefused(Reason.PROCESS_LOST, f"Its job {number} of Slurm vanished before it began.")
        if job.ended:
            raise StartRefused(*self._unbegun(folder, job))

    def where(self, folder: Folder) -> str:
        told = folder.process()
        if told is None:
            return ""
        gpus = f", GPUs {told['gpus']}" if told["gpus"] else ""
        return f"Job {told['job']} of Slurm on {told['node']}{gpus}."

    async def look(self, folder: Folder) -> Life:
        told = folder.process()
        if told is None:
            return Life.CREATED if await self._live(folder) else Life.NOTHING
        job = await self._job(folder, told["job"])
        if job is not None and not job.ended:
            return Life.RUNNING if self._may_begin(folder, told["job"]) else Life.CREATED
        return Life.ENDED

    async def wait_end(self, folder: Folder) -> None:
        """Only a job that Slurm says has ended, or does not know any more, has ended."""
        silent = False
        while True:
            try:
                told = folder.process()
                job = None if told is None else await self._job(folder, told["job"], fresh=False)
                if job is None or job.ended:
                    return
                silent = False
            except RuntimeUnavailable as error:
                if not silent:
                    log.warning("attempt %s: %s", folder.attempt_id, error)
                silent = True
            await asyncio.sleep(LOOK_EVERY_S)

    async def terminate(self, folder: Folder) -> None:
        """If Slurm can: the KILL that follows is not Slurm's alone. A suspended job hears nothing."""
        try:
            async with asyncio.timeout(TERM_S):
                for job in await self._live(folder):
                    if job.state != "SUSPENDED":
                        await self._slurm.terminate(job.id)
        except (RuntimeUnavailable, TimeoutError) as error:
            words = str(error) or f"Slurm did not answer within {TERM_S:.0f} s"
            log.warning("attempt %s: its job got no TERM: %s", folder.attempt_id, words)

    async def kill(self, folder: Folder) -> None:
        """Its lease is taken away, so that the job's own watch ends all of it; what is left, Slurm ends."""
        told = folder.process()
        if told is not None:
            told = self._take_lease_away(folder, told)
        began = time.monotonic()
        asked = False
        while live := await self._live(folder):
            waited = time.monotonic() - began
            if waited > KILL_WAIT_S:
                numbers = ", ".join(job.id for job in live)
                raise StillThere(f"Slurm has not ended job {numbers} of attempt {folder.attempt_id} yet")
            begun = told is not None and any(job.id == told["job"] for job in live)
            if not asked and (not begun or waited > WATCH_KILL_S):
                asked = True
                for job in live:
                    await self._slurm.kill(job.id)
            await asyncio.sleep(LOOK_EVERY_S / 2)
        if told is not None:
            await self._surely_ended(folder, told)
        with suppress(FileNotFoundError):
            folder.log.open("rb").close()  # opened anew: what another machine wrote last is seen then

    async def end_of(self, folder: Folder) -> End | None:
        told = folder.process()
        if told is None:
            return None
        job, there = await self._job(folder, told["job"]), self._there(folder)
        code = folder.exit_code()
        if job is None and code is None and not (there is not None and there.fenced):
            return None
        said = _read(folder.path / "slurm.out").lower().encode()
        memory = job is not None and job.state == "OUT_OF_MEMORY"
        if memory or (code != 0 and any(word in said for word in _MEMORY_WORDS)):
            return End(exit_code=code, out_of_memory=True)
        fenced = there is not None and there.fenced
        cause = _FENCED if fenced else None if job is None else cause_of(job)
        spec = folder.load()
        searched = (spec.env if spec is not None else {}).get("PATH", os.environ.get("PATH", os.defpath))
        return End(exit_code=code, search_path=searched, cause=cause)

    async def remove(self, folder: Folder) -> None:
        await self.kill(folder)

    async def strays(self) -> list[str]:
        found = await self._slurm.jobs(newer_than=time.monotonic())
        return [
            job.name.removeprefix(jobs.name(""))
            for job in found
            if not job.ended and jobs.is_of_host(job.comment, self._host_id)
        ]

    async def memory(self, folder: Folder) -> int | None:
        """Slurm tells it through its accounting alone, which not every site has."""
        return None

    def note_lease(self, folder: Folder, *, fence_at: float, grace_s: float) -> None:
        folder.put_lease({"fence_at": fence_at, "grace_s": grace_s})
        if "over_by" not in (folder.process() or {}):  # what was taken away, no renewal gives back
            line = jobs.alive(f"{fence_at:.3f}", left_s=fence_at - boottime(), grace_s=grace_s)
            self._say_alive(folder, line)

    def attempt_of_pid(self, pid: int) -> str | None:
        return None

    async def close(self) -> None:
        """Jobs run on."""

    def _say_alive(self, folder: Folder, line: str) -> None:
        """A full disk shortens the lease, and does not end the agent's own care."""
        try:
            _write(folder.path / "alive", line)
        except OSError as error:
            log.warning("attempt %s: its job cannot be told: %s", folder.attempt_id, error)

    def _take_lease_away(self, folder: Folder, told: dict[str, Any]) -> dict[str, Any]:
        """From now on its job hears of no renewal; answers ``over_by``, when the last one is surely over."""
        if "over_by" not in told:
            lease = folder.lease() or {"fence_at": boottime(), "grace_s": 0.0}
            told = told | {"over_by": lease["fence_at"] + lease["grace_s"] + WATCH_LATE_S}
            folder.put_process(**told)
        self._say_alive(folder, jobs.alive(jobs.OVER, left_s=0, grace_s=0))
        return told

    async def _surely_ended(self, folder: Folder, told: dict[str, Any]) -> None:
        """Slurm gives up a node that it does not hear; what runs there may run on, until its lease is over.

        A job that Slurm has forgotten, and of whose end nothing is known, is the same.
        """
        job = await self._job(folder, told["job"])
        if folder.exit_code() is not None or (job is not None and job.state not in _UNHEARD):
            return
        if (left_s := told["over_by"] - boottime()) > 0:
            log.warning("attempt %s: its node is silent; its lease ends in %.0f s", folder.attempt_id, left_s)
            await asyncio.sleep(left_s)

    async def _named(self, folder: Folder, *, fresh: bool = True) -> list[Job]:
        """Its jobs, the oldest first: one, unless an answer to a submission was lost."""
        found = await self._slurm.jobs(newer_than=time.monotonic() if fresh else None)
        own = (job for job in found if job.name == jobs.name(folder.attempt_id))
        return sorted(own, key=lambda job: int(job.id))

    async def _live(self, folder: Folder) -> list[Job]:
        return [job for job in await self._named(folder) if not job.ended]

    async def _only(self, folder: Folder) -> tuple[Job | None, bool]:
        """Its job, before one was told to begin, and whether it is the only one: others go."""
        found = await self._named(folder)
        live = [job for job in found if not job.ended]
        for other in live[1:]:
            log.warning("attempt %s: job %s is one too many", folder.attempt_id, other.id)
            await self._slurm.kill(other.id)
        return (live[0] if live else found[-1] if found else None), len(live) <= 1

    async def _job(self, folder: Folder, number: str, *, fresh: bool = True) -> Job | None:
        found = await self._named(folder, fresh=fresh)
        return next((job for job in found if job.id == number), None)

    def _there(self, folder: Folder) -> jobs.There | None:
        return jobs.there(_read(folder.path / "there"))

    def _may_begin(self, folder: Folder, number: str) -> bool:
        there = self._there(folder)
        return (there is not None and there.began) or jobs.may_begin(_read(folder.path / "go"), number)

    def _unbegun(self, folder: Folder, job: Job) -> tuple[Reason, str]:
        """Why an attempt whose job ended before it was told to begin cannot start."""
        if job.state == "CANCELLED":
            return Reason.CANCELLED, f"Its job {job.id} was cancelled in Slurm before it began."
        said = _read(folder.path / "slurm.out").strip()[-500:]
        shared = "" if self._there(folder) else f" Is {self._settings.state_dir} the same place on the node?"
        words = f"Its job {job.id} ended in Slurm before it began: {job.state} ({job.reason}). {said}{shared}"
        return Reason.PROCESS_LOST if job.state in _LOST_UNBEGUN else Reason.START_FAILED, words

    def _environment(self, spec: ClaimedAttempt, folder: Folder, home: Path) -> dict[str, str]:
        told = environment(
            spec, output=str(folder.output), progress=str(folder.progress), input_=str(folder.input)
        )
        if spec.gpu_uuids:  # what Slurm gives it; the identities here are not the driver's
            told.pop("NVIDIA_VISIBLE_DEVICES")
        else:
            told["CUDA_VISIBLE_DEVICES"] = ""
        return {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": os.fspath(home),
            **told,
            processes.MARKER: self._marker(spec.id),
        }

    def _marker(self, attempt_id: str) -> str:
        return f"{self._host_id}/{attempt_id}/"


def time_limit(wanted_s: float, longest_s: float | None, *, waits: bool) -> str:
    """``--time``, in minutes. Slurm counts from the place, so what waits there for others has all."""
    if waits:
        return "UNLIMITED" if longest_s is None else str(math.floor(longest_s / 60))
    return str(math.ceil(min(wanted_s, longest_s or wanted_s) / 60))


_FENCED = Cause(
    AttemptOutcome.LOST,
    Reason.LEASE_LOST,
    "Its agent was silent for longer than its fence, and its job ended itself.",
)


def cause_of(job: Job) -> Cause | None:
    """How Slurm ended it; ``None``: it ended by itself."""
    lost, process = AttemptOutcome.LOST, Reason.PROCESS_LOST
    match job.state:
        case "COMPLETED" | "FAILED":
            return None
        case "TIMEOUT" | "DEADLINE":
            words = f"Slurm ended its job {job.id} at its time limit."
            return Cause(AttemptOutcome.TIMED_OUT, Reason.TIMEOUT, words)
        case "CANCELLED":
            words = f"Its job {job.id} was cancelled in Slurm, and not by RemoteGPU."
            return Cause(AttemptOutcome.FAILED, Reason.CANCELLED, words)
        case "PREEMPTED":
            return Cause(lost, process, f"Slurm preempted its job {job.id}.")
        case _:
            return Cause(lost, process, f"Slurm gave up its job {job.id}: {job.state} ({job.reason}).")


def _make(path: Path) -> None:
    """An empty file of the agent's user, unless it is there."""
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))


def _write(path: Path, text: str) -> None:
    """In place: who opens it anew on another machine sees it. Raises OSError."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        os.pwrite(handle, text.encode(), 0)
    finally:
        os.close(handle)


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except FileNotFoundError:
        return ""


def _escaped(path: Path) -> str:
    """``sbatch`` replaces what follows a percent sign."""
    return os.fspath(path).replace("%", "%%")
