"""Workloads as supervised process groups, where no container engine is: for evaluation and CPU-only tests.

No isolation: they run as the agent's user. They outlive the agent, and a new agent finds them by a small
record with process id and start time, which no reused process id can match.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psutil

from remotegpu.types.agent import Workload
from remotegpu.types.environments import Reason
from remotegpu.types.hosts import RuntimeKind
from remotegpu.types.image_saves import ImageSaveReason
from remotegpu_agent import activity, container_spec, fault_points, processes
from remotegpu_agent.homes import prepare_home
from remotegpu_agent.runtime import (
    Actual,
    ActualState,
    BytesRead,
    Health,
    Progress,
    SaveFailed,
    StartRefused,
    StillThere,
    Usage,
)
from remotegpu_agent.settings import Settings, write_private

LOG_LIMIT_BYTES = 10 * 2**20
LOG_KEEP_BYTES = 5 * 2**20
KILL_WAIT_S = 5.0
_POLL_S = 0.05

# The shell stays the group's leader, survives the group's TERM, and leaves the exit code for whichever agent
# comes next. A trap with a command is reset in children, so they get the signal's default.
_SUPERVISE = 'trap : TERM INT; "$@"; code=$?; printf %s "$code" >"$0.new" && mv "$0.new" "$0"'


@dataclass(frozen=True)
class _Record:
    """What is on disk of one workload."""

    workload_id: str
    generation: int
    epoch: int
    ready_path: str
    gpu_uuids: tuple[str, ...]
    pid: int | None = None
    start_ticks: int | None = None
    port: int | None = None


class ProcessRuntime:
    """Process groups of one host, each with a folder under the state directory."""

    kind = RuntimeKind.PROCESS

    def __init__(self, settings: Settings, host_id: str) -> None:
        self._settings = settings
        self._host_id = host_id
        self._root = settings.state_dir / "processes"
        self._prepared: dict[str, Workload] = {}
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._watched: dict[int, int] = {}
        """Process id -> pidfd, readable when it ends."""
        self._changed = asyncio.Event()
        self._cpu_seen: dict[str, tuple[float, float]] = {}

    async def probe(self) -> Health:
        return Health(True, "processes without container isolation: for evaluation")

    async def find(self, workload_id: str | None = None) -> list[Actual]:
        names = [workload_id] if workload_id is not None else self._folders()
        found = (self._actual(record) for name in names if (record := self._read(name)) is not None)
        return [actual for actual in found if actual is not None]

    async def fetch_image(self, workload: Workload, progress: Progress) -> None:
        """Processes have no image: the command runs from this machine's own programs."""

    async def create(self, workload: Workload, epoch: int) -> str:
        if not workload.command:
            raise StartRefused(
                Reason.START_FAILED, "This host runs processes, and this image names no command."
            )
        await asyncio.to_thread(prepare_home, self._settings, workload.home, owner=None)
        folder = self._root / workload.id
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        (folder / "exit").unlink(missing_ok=True)
        (folder / "output.log").unlink(missing_ok=True)
        self._write(
            _Record(
                workload_id=workload.id,
                generation=workload.generation,
                epoch=epoch,
                ready_path=container_spec.ready_path(workload),
                gpu_uuids=tuple(workload.gpu_uuids),
            )
        )
        self._prepared[workload.id] = workload
        fault_points.hit(fault_points.CREATED)
        return workload.id

    async def start(self, key: str) -> Actual:
        record, workload = self._read(key), self._prepared.pop(key, None)
        if record is None or workload is None:
            raise StartRefused(Reason.START_FAILED, "Its record vanished before it was started.")
        port = _free_port(self._settings.address)
        home = await asyncio.to_thread(prepare_home, self._settings, workload.home, owner=None)
        try:
            child = self._spawn(workload, home, port)
        except (OSError, ValueError) as error:
            raise StartRefused(Reason.START_FAILED, f"It could not be started: {error}") from error
        fault_points.hit(fault_points.SPAWNED)
        self._children[key] = child
        self._cpu_seen[key] = (time.monotonic(), 0.0)  # so that its first reading has a beginning
        record = replace(record, pid=child.pid, start_ticks=processes.start_ticks(child.pid), port=port)
        self._write(record)
        self._watch(child.pid)
        actual = self._actual(record)
        if actual is None:
            raise StartRefused(Reason.START_FAILED, "Its record vanished while it was started.")
        return actual

    async def stop(self, actual: Actual, grace_s: float) -> None:
        record = self._read(actual.workload_id)
        if record is not None and record.pid is not None and self._alive(record):
            processes.signal_group(record.pid, signal.SIGTERM)
        await self._end_all(actual.workload_id, grace_s)

    async def remove(self, workload_id: str, generation: int) -> None:
        record = self._read(workload_id)
        if record is None or record.generation > generation:
            return
        await self._end_all(workload_id, 0)
        if (child := self._children.pop(workload_id, None)) is not None:
            child.poll()
        self._prepared.pop(workload_id, None)
        self._cpu_seen.pop(workload_id, None)
        await asyncio.to_thread(shutil.rmtree, self._root / workload_id, ignore_errors=False)

    def authorize(self, workload_id: str, keys: Sequence[str] | None) -> None:
        """Processes have no SSH server of their own, and say so in the access information."""

    async def logs(self, actual: Actual, tail_lines: int) -> tuple[str, bool]:
        path = self._root / actual.workload_id / "output.log"
        try:
            with path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - 1_000_000))
                text = file.read().decode(errors="replace")
        except FileNotFoundError:
            return "", False
        lines = text.splitlines(keepends=True)
        return "".join(lines[-tail_lines:]), len(lines) > tail_lines or size > 1_000_000

    async def save_image(self, actual: Actual, reference: str, max_bytes: int, progress: BytesRead) -> str:
        raise SaveFailed(ImageSaveReason.HOST_FAILED, "This host runs processes, which have no image.")

    async def discard_image(self, reference: str) -> None:
        """There are none."""

    async def wait_change(self) -> None:
        await self._changed.wait()
        self._changed.clear()

    async def usage(self) -> dict[str, Usage]:
        records = [record for name in self._folders() if (record := self._read(name)) is not None]
        return {
            record.workload_id: self._usage(record)
            for record in records
            if record.pid is not None and self._alive(record)
        }

    def workload_of_pid(self, pid: int) -> str | None:
        marker = processes.marker_of(pid)
        if marker is None or not marker.startswith(f"{self._host_id}/"):
            return None
        return marker.removeprefix(f"{self._host_id}/").split("/")[0]

    async def images(self) -> list[str]:
        return []

    async def close(self) -> None:
        for pidfd in self._watched.values():
            asyncio.get_running_loop().remove_reader(pidfd)
            os.close(pidfd)
        self._watched.clear()
        for child in self._children.values():
            # It outlives this agent on purpose; without a code Popen would warn that it still runs.
            if child.poll() is None:
                child.returncode = 0

    def _folders(self) -> list[str]:
        return sorted(os.listdir(self._root)) if self._root.is_dir() else []

    def _read(self, workload_id: str) -> _Record | None:
        try:
            fields = json.loads((self._root / workload_id / "record.json").read_text())
        except (FileNotFoundError, ValueError):
            return None
        return _Record(**{**fields, "gpu_uuids": tuple(fields["gpu_uuids"])})

    def _write(self, record: _Record) -> None:
        write_private(self._root / record.workload_id / "record.json", json.dumps(asdict(record)))

    def _actual(self, record: _Record) -> Actual | None:
        if record.pid is None and record.workload_id not in self._prepared:
            record = self._recover(record)
        if (child := self._children.get(record.workload_id)) is not None:
            child.poll()  # reaps it
        self._trim_log(record.workload_id)
        state, code = self._state(record)
        address = f"http://{self._settings.address}:{record.port}"
        return Actual(
            key=record.workload_id,
            name=container_spec.container_name(record.workload_id),
            workload_id=record.workload_id,
            generation=record.generation,
            state=state,
            address=address if state is ActualState.RUNNING and record.port else None,
            ready_path=record.ready_path,
            exit_code=code,
            gpu_uuids=record.gpu_uuids,
        )

    def _recover(self, record: _Record) -> _Record:
        """An agent died between spawn and record: its child carries a marker."""
        for pid in processes.marked(self._marker(record.workload_id)):
            if os.getsid(pid) == pid:
                port = processes.environment_of(pid).get("REMOTEGPU_PROCESS_PORT", "")
                ticks = processes.start_ticks(pid)
                record = replace(record, pid=pid, start_ticks=ticks, port=int(port) if port else None)
                self._write(record)
                break
        return record

    def _state(self, record: _Record) -> tuple[ActualState, int | None]:
        if record.pid is None:
            prepared = record.workload_id in self._prepared
            return (ActualState.CREATED if prepared else ActualState.REMNANT), None
        if self._alive(record):
            self._watch(record.pid)
            return ActualState.RUNNING, None
        try:
            code: int | None = int((self._root / record.workload_id / "exit").read_text())
        except (FileNotFoundError, ValueError):
            code = None  # killed together with its supervising shell, or the machine was restarted
        return ActualState.EXITED, code

    def _alive(self, record: _Record) -> bool:
        return record.pid is not None and processes.start_ticks(record.pid) == record.start_ticks

    def _spawn(self, workload: Workload, home: Path, port: int) -> subprocess.Popen[bytes]:
        folder = self._root / workload.id
        with (folder / "output.log").open("ab") as output:
            return subprocess.Popen(
                ["/bin/sh", "-c", _SUPERVISE, str(folder / "exit"), *(workload.command or [])],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=home,
                env=self._environment(workload, home, port),
                start_new_session=True,
            )

    def _environment(self, workload: Workload, home: Path, port: int) -> dict[str, str]:
        own = {name: os.environ[name] for name in ("LANG", "LC_ALL", "TZ", "TMPDIR") if name in os.environ}
        binaries = os.path.dirname(sys.executable)
        real = [uuid for uuid in workload.gpu_uuids if not uuid.startswith(container_spec.SIMULATED_PREFIX)]
        environment = {
            **own,
            "PATH": os.pathsep.join([binaries, os.environ.get("PATH", os.defpath)]),
            "HOME": str(home),
            **workload.env,
            **workload.secret_env,
            **container_spec.gpu_environment(workload.gpu_uuids),
            "CUDA_VISIBLE_DEVICES": ",".join(real),
            processes.MARKER: self._marker(workload.id),
            "REMOTEGPU_PROCESS_PORT": str(port),
        }
        if "JUPYTERHUB_SERVICE_URL" in environment:
            url = urlsplit(environment["JUPYTERHUB_SERVICE_URL"])
            environment["JUPYTERHUB_SERVICE_URL"] = urlunsplit(
                url._replace(netloc=f"{self._settings.address}:{port}")
            )
        return environment

    def _marker(self, workload_id: str) -> str:
        return f"{self._host_id}/{workload_id}/"

    async def _end_all(self, workload_id: str, grace_s: float) -> None:
        """Wait for the whole tree to end by itself, then KILL what is left of it."""
        kill_at = time.monotonic() + grace_s
        give_up_at = kill_at + KILL_WAIT_S
        while left := self._tree(workload_id):
            now = time.monotonic()
            if now >= give_up_at:
                raise StillThere(f"processes {left} of {workload_id} survive SIGKILL")
            if now >= kill_at:
                for pid in left:
                    processes.send(pid, signal.SIGKILL)
            await asyncio.sleep(_POLL_S)

    def _tree(self, workload_id: str) -> list[int]:
        if (child := self._children.get(workload_id)) is not None:
            child.poll()
        record = self._read(workload_id)
        leader = record.pid if record is not None and self._alive(record) else None
        return processes.marked(self._marker(workload_id), session=leader)

    def _watch(self, pid: int) -> None:
        if pid in self._watched:
            return
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:  # it ended just now; the listing sees it
            self._changed.set()
            return
        self._watched[pid] = pidfd
        asyncio.get_running_loop().add_reader(pidfd, self._ended, pid)

    def _ended(self, pid: int) -> None:
        pidfd = self._watched.pop(pid)
        asyncio.get_running_loop().remove_reader(pidfd)
        os.close(pidfd)
        self._changed.set()

    def _trim_log(self, workload_id: str) -> None:
        """The writer appends, so cutting the file to its newest part is safe; a few lines may be lost."""
        path = self._root / workload_id / "output.log"
        try:
            if path.stat().st_size <= LOG_LIMIT_BYTES:
                return
            with path.open("rb+") as file:
                file.seek(-LOG_KEEP_BYTES, os.SEEK_END)
                newest = file.read()
                file.truncate(0)
                file.seek(0)
                file.write(newest)
        except FileNotFoundError:
            return

    def _usage(self, record: _Record) -> Usage:
        seconds, memory = 0.0, 0
        try:
            leader = psutil.Process(record.pid)
            for process in [leader, *leader.children(recursive=True)]:
                times = process.cpu_times()
                seconds += times.user + times.system
                memory += process.memory_info().rss
        except psutil.Error:  # one of them ended while it was measured: no half numbers
            return Usage(None, None)
        now = time.monotonic()
        before = self._cpu_seen.get(record.workload_id)
        self._cpu_seen[record.workload_id] = (now, seconds)
        ports = () if record.port is None else (record.port,)
        connections = activity.open_connections("self", ports, loopback=True)
        if before is None or now <= before[0]:
            return Usage(None, memory, connections)
        return Usage(round(max(0.0, seconds - before[1]) * 100 / (now - before[0]), 1), memory, connections)


def _free_port(address: str) -> int:
    with socket.socket() as probe:
        try:
            probe.bind((address, 0))
        except OSError as error:
            raise StartRefused(
                Reason.START_FAILED, f"No port is free on {address}, which --address names: {error}"
            ) from error
        return int(probe.getsockname()[1])
