"""Attempts as process trees: for hosts without a container engine.

A tree is everything in the attempt's control groups, everything that carries its marker in the environment,
and everything in its session. The shell around it outlives the agent and leaves the exit code in a file.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from remotegpu.types.agent import ClaimedAttempt
from remotegpu.types.environments import Reason
from remotegpu_agent import container_spec, fault_points, processes
from remotegpu_agent.homes import prepare_home
from remotegpu_agent.inventory import boot_id
from remotegpu_agent.runtime import StartRefused, StillThere
from remotegpu_agent.settings import Settings
from remotegpu_agent.tasks import cgroups, shim
from remotegpu_agent.tasks.environment import environment
from remotegpu_agent.tasks.folders import Folder, stored
from remotegpu_agent.tasks.runtime import End, Life

KILL_WAIT_S = 5.0
_POLL_S = 0.02
_INHERITED = ("LANG", "LC_ALL", "TZ", "TMPDIR")


class ProcessTasks:
    """Attempts of one host, each a session of its own."""

    def __init__(self, settings: Settings, host_id: str) -> None:
        self._settings = settings
        self._host_id = host_id
        self._groups = cgroups.Groups()
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    guarded = True

    @property
    def limits(self) -> str:
        if self._groups.problem is None:
            return f"tasks have limits for memory, CPU and {cgroups.PIDS_LIMIT} processes"
        return f"tasks without all limits ({self._groups.problem})"

    async def prepare(self, spec: ClaimedAttempt, epoch: int, say: Callable[[str], Awaitable[None]]) -> None:
        """Processes have no image: the command runs from this machine's own programs."""

    async def start(self, spec: ClaimedAttempt, folder: Folder, epoch: int) -> None:
        command = shim.command_of(spec, str(folder.script))
        if command is None:
            raise StartRefused(
                Reason.START_FAILED, "This host runs processes, and the task names no command."
            )
        home = await asyncio.to_thread(prepare_home, self._settings, spec.home, owner=None)
        if spec.working_dir and not await asyncio.to_thread(os.path.isdir, spec.working_dir):
            raise StartRefused(
                Reason.START_FAILED, f"The working directory {spec.working_dir} does not exist on this host."
            )
        groups = self._groups.create(
            f"{self._host_id}-{spec.id}", memory_bytes=spec.memory_bytes, cpus=spec.cpus
        )
        facts = {"boot_id": boot_id(), "groups": [str(group) for group in groups]}
        folder.put_process(pid=None, ticks=None, **facts)
        try:
            child = self._spawn(spec, folder, command, groups, home)
        except (OSError, ValueError) as error:
            cgroups.remove(groups)
            raise StartRefused(Reason.START_FAILED, f"It could not be started: {error}") from error
        fault_points.hit(fault_points.TASK_SPAWNED)
        self._children[spec.id] = child
        folder.put_process(pid=child.pid, ticks=processes.start_ticks(child.pid), **facts)

    def _spawn(
        self, spec: ClaimedAttempt, folder: Folder, command: list[str], groups: list[Path], home: Path
    ) -> subprocess.Popen[bytes]:
        read, write = os.pipe()
        try:
            return subprocess.Popen(
                ["/bin/sh", "-c", shim.PROCESS, "sh", str(folder.path), str(shim.blocks(spec.log_cap_bytes)),
                 shim.CAT, " ".join(map(str, groups)), *command],
                stdin=read,
                stdout=write,
                stderr=write,
                cwd=spec.working_dir or home,
                env=self._environment(spec, folder, home),
                start_new_session=True,
            )  # fmt: skip
        finally:
            os.close(read)
            os.close(write)

    def where(self, folder: Folder) -> str:
        return ""

    async def look(self, folder: Folder) -> Life:
        facts = self._facts(folder)
        if facts is None:
            return Life.NOTHING
        self._reap(folder)
        if _alive(facts):
            return Life.RUNNING
        if facts["pid"] is None and folder.exit_code() is None:
            return Life.CREATED if folder.started() is None else Life.NOTHING
        return Life.ENDED

    async def wait_end(self, folder: Folder) -> None:
        facts = self._facts(folder)
        if facts is None or not _alive(facts):
            return
        try:
            handle = os.pidfd_open(facts["pid"])
        except OSError:
            return
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[None] = loop.create_future()
        loop.add_reader(handle, _resolve, ended)
        try:
            if _alive(facts):  # the number may have been given to another process before it was opened
                await ended
        finally:
            loop.remove_reader(handle)
            os.close(handle)
        self._reap(folder)

    async def terminate(self, folder: Folder) -> None:
        facts = self._facts(folder)
        if facts is not None and _alive(facts):
            processes.signal_group(facts["pid"], signal.SIGTERM)
        for pid in await self._tree(folder, facts):
            if facts is None or os_session(pid) != facts["pid"]:
                processes.send(pid, signal.SIGTERM)

    async def kill(self, folder: Folder) -> None:
        """The shell is spared at first, so that it can tell the exit code, and the pump until all is read."""
        await self._kill(folder, everywhere=False)

    async def _kill(self, folder: Folder, *, everywhere: bool) -> None:
        facts = self._facts(folder)
        give_up_at = time.monotonic() + KILL_WAIT_S
        cgroups.forbid_forks(_groups(facts))
        while left := await self._tree(folder, facts, everywhere=everywhere):
            for pid in left:
                processes.send(pid, signal.SIGKILL)
            await self._pause(give_up_at, folder, left)
        if facts is not None and _alive(facts):
            with suppress(TimeoutError):
                async with asyncio.timeout(1):
                    await self.wait_end(folder)
            if _alive(facts):
                processes.send(facts["pid"], signal.SIGKILL)
        while left := self._pump(folder, facts):
            if time.monotonic() > give_up_at - KILL_WAIT_S / 2:
                for pid in left:  # something that is not ours holds the pipe: the rest of the output is lost
                    processes.send(pid, signal.SIGKILL)
            await self._pause(give_up_at, folder, left)
        self._reap(folder)

    async def end_of(self, folder: Folder) -> End | None:
        groups = _groups(self._facts(folder))
        return End(
            exit_code=folder.exit_code(),
            out_of_memory=cgroups.out_of_memory(groups),
            peak_memory_bytes=cgroups.peak_bytes(groups),
            search_path=(spec.env if (spec := folder.load()) is not None else {}).get("PATH", _path()),
        )

    async def remove(self, folder: Folder) -> None:
        await self._kill(folder, everywhere=True)
        groups = _groups(self._facts(folder))
        give_up_at = time.monotonic() + KILL_WAIT_S
        while groups := cgroups.remove(groups):
            await self._pause(give_up_at, folder, sorted(cgroups.processes_in(groups)))
        if (child := self._children.pop(folder.attempt_id, None)) is not None:
            child.poll()

    async def strays(self) -> list[str]:
        """There is nothing that has no folder: it is made before anything else."""
        return [folder.attempt_id for folder in stored(self._settings.state_dir / "attempts")]

    async def memory(self, folder: Folder) -> int | None:
        facts = self._facts(folder)
        if (peak := cgroups.peak_bytes(_groups(facts))) is not None:
            return peak
        used = 0
        for pid in await self._tree(folder, facts):
            with suppress(psutil.Error):
                used += psutil.Process(pid).memory_info().rss
        return used or None

    def note_lease(self, folder: Folder, *, fence_at: float, grace_s: float) -> None:
        facts = self._facts(folder) or {}
        how = {
            "marker": f"{processes.MARKER}={self._marker(folder.attempt_id)}",
            "session": facts.get("pid"),
            "ticks": facts.get("ticks"),
            "groups": facts.get("groups", []),
        }
        folder.put_lease({"fence_at": fence_at, "grace_s": grace_s, **how})

    def attempt_of_pid(self, pid: int) -> str | None:
        marker = processes.marker_of(pid)
        if marker is None or not marker.startswith(f"{self._host_id}/"):
            return None
        return marker.removeprefix(f"{self._host_id}/").split("/")[0]

    async def close(self) -> None:
        for child in self._children.values():
            # It outlives this agent on purpose; without a code Popen would warn that it still runs.
            if child.poll() is None:
                child.returncode = 0

    def _facts(self, folder: Folder) -> dict[str, Any] | None:
        """Its process; found by its marker where the agent died between the start and the record. Numbers of
        an earlier start of the machine mean nothing.
        """
        facts = folder.process()
        if facts is not None and facts["boot_id"] != boot_id():
            return None
        if facts is None or facts["pid"] is not None or folder.attempt_id in self._children:
            return facts
        for pid in processes.marked(self._marker(folder.attempt_id)):
            if os_session(pid) == pid:
                facts |= {"pid": pid, "ticks": processes.start_ticks(pid)}
                folder.put_process(**facts)
                break
        return facts

    async def _tree(
        self, folder: Folder, facts: dict[str, Any] | None, *, everywhere: bool = False
    ) -> list[int]:
        """All of it that runs, but for the shell and the pump. What is in control groups is found there at
        once; ``everywhere`` looks at every process of the machine besides.
        """
        self._reap(folder)
        groups = _groups(facts)
        found = {pid for pid in cgroups.processes_in(groups) if _runs(pid)}
        if everywhere or not groups:
            marker = self._marker(folder.attempt_id)
            found |= set(await asyncio.to_thread(processes.marked, marker, session=_session(facts)))
        leader = facts["pid"] if facts is not None and _alive(facts) else None
        return sorted(found - {leader, os.getpid()} - set(self._pump(folder, facts)))

    def _pump(self, folder: Folder, facts: dict[str, Any] | None) -> list[int]:
        try:
            first = int((folder.path / "pump").read_text())
        except (FileNotFoundError, ValueError):
            return []
        session = _session(facts)
        candidates = () if session is None else (first, *_children_of(first))
        return [pid for pid in candidates if os_session(pid) == session and _runs(pid)]

    def _reap(self, folder: Folder) -> None:
        if (child := self._children.get(folder.attempt_id)) is not None:
            child.poll()

    async def _pause(self, give_up_at: float, folder: Folder, left: list[int]) -> None:
        if time.monotonic() > give_up_at:
            raise StillThere(f"processes {left[:20]} of attempt {folder.attempt_id} survive SIGKILL")
        await asyncio.sleep(_POLL_S)

    def _environment(self, spec: ClaimedAttempt, folder: Folder, home: Path) -> dict[str, str]:
        own = {name: os.environ[name] for name in _INHERITED if name in os.environ}
        return {
            **own,
            "PATH": _path(),
            "HOME": str(home),
            **environment(
                spec,
                output=str(folder.output),
                progress=str(folder.progress),
                input_=str(folder.input),
            ),
            "CUDA_VISIBLE_DEVICES": ",".join(container_spec.real_gpus(spec.gpu_uuids)),
            processes.MARKER: self._marker(spec.id),
        }

    def _marker(self, attempt_id: str) -> str:
        return f"{self._host_id}/{attempt_id}/"


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def os_session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except OSError:
        return None


def _path() -> str:
    return os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", os.defpath)])


def _alive(facts: dict[str, Any]) -> bool:
    return facts["pid"] is not None and processes.start_ticks(facts["pid"]) == facts["ticks"]


def _session(facts: dict[str, Any] | None) -> int | None:
    """Its session; ``None`` where the number belongs to another process by now."""
    if facts is None or facts["pid"] is None:
        return None
    return facts["pid"] if processes.start_ticks(facts["pid"]) in (None, facts["ticks"]) else None


def _runs(pid: int) -> bool:
    """It is there, and not only waiting to be reaped."""
    return processes.start_ticks(pid) is not None


def _groups(facts: dict[str, Any] | None) -> list[Path]:
    return [Path(group) for group in (facts or {}).get("groups", [])]


def _children_of(pid: int) -> list[int]:
    try:
        told = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return []
    return [int(child) for child in told.split()]
