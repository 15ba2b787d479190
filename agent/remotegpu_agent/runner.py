"""The agent's life: set up, register, guarded tasks, and one order of ending."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from enum import IntEnum
from typing import Protocol

import remotegpu
from remotegpu import errors, exposition
from remotegpu.types.agent import Enroll, Heartbeat, HomeVolume, InventoryGpu, SessionCreate, WorkloadMetrics
from remotegpu.types.hosts import RuntimeKind
from remotegpu_agent import __version__, home_sizes, homes, inventory, status
from remotegpu_agent.activity import Kernels
from remotegpu_agent.converge import Converger
from remotegpu_agent.gpus import GpuProvider
from remotegpu_agent.image_saves import ImageSaves
from remotegpu_agent.journal import Journal
from remotegpu_agent.runtime import Health, Runtime, RuntimeUnavailable
from remotegpu_agent.sampling import HostMeter, Meter, Sampler, WorkloadGpus
from remotegpu_agent.scrapes import Scrapes
from remotegpu_agent.settings import Credential, Settings
from remotegpu_agent.sync import AgentApi, Refused, Superseded, Sync
from remotegpu_agent.tasks.claims import Tasks
from remotegpu_agent.tasks.link import AttemptApi
from remotegpu_agent.tasks.runtime import TaskRuntime

log = logging.getLogger(__name__)


class Exit(IntEnum):
    """How ``remotegpu-agent run`` ends."""

    STOPPED = 0
    FAILED = 1
    SUPERSEDED = 3
    """A newer agent of this host took over: do not restart this one."""
    REFUSED = 4
    """The credential is not accepted: enrol again."""


async def run(settings: Settings, credential: Credential) -> Exit:
    """Serve until SIGTERM or SIGINT, or until a task of the agent ends."""
    for folder in (settings.state_dir, settings.home_root):
        folder.mkdir(parents=True, exist_ok=True, mode=0o755)
    runtime = await choose_runtime(settings, credential.host_id)
    parts = Parts(
        runtime=runtime,
        tasks=choose_task_runtime(settings, credential.host_id, runtime),
        gpus=choose_gpus(settings, credential.host_id),
        meter=HostMeter(settings.home_root),
        machine=inventory.this_machine(),
    )
    async with remotegpu.AsyncClient(url=settings.url, token=credential.secret, max_retries=0) as client:
        return await Agent(settings, credential, api=client.agent, parts=parts).serve(until_told_to_stop())


def until_told_to_stop() -> asyncio.Event:
    """Set by SIGTERM and SIGINT."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    return stopping


async def enroll(url: str, token: str) -> Credential:
    """Turn a one-time token into this host's credential."""
    async with remotegpu.AsyncClient(url=url, token=token) as client:
        joined = await client.agent.enroll(
            Enroll(hostname=os.uname().nodename, machine_id=inventory.machine_id(), agent_version=__version__)
        )
    return Credential(url=url, host_id=joined.host_id, host_name=joined.host_name, secret=joined.credential)


async def choose_runtime(settings: Settings, host_id: str) -> Runtime:
    """``auto`` takes Docker where an engine answers, and stays with what it took before.

    The memory matters while the engine is down: a Docker host must not turn into a process host.
    """
    chosen = settings.runtime
    memory = settings.state_dir / "runtime"
    if chosen == "auto" and memory.exists():
        chosen = memory.read_text().strip()
    if chosen in ("docker", "auto"):
        # Imported here: aiodocker and aiohttp are 15 MB that a process host does not need.
        from remotegpu_agent.docker_runtime import DockerRuntime

        docker = DockerRuntime(settings, host_id)
        if chosen == "docker" or (await docker.probe()).healthy:
            memory.write_text("docker\n")
            return docker
        await docker.close()
    from remotegpu_agent.process_runtime import ProcessRuntime

    if settings.runtime == "process":
        memory.write_text("process\n")
    return ProcessRuntime(settings, host_id)


def choose_task_runtime(settings: Settings, host_id: str, runtime: Runtime) -> TaskRuntime:
    """Tasks run in what environments run in."""
    if runtime.kind is RuntimeKind.DOCKER:
        from remotegpu_agent.docker_runtime import DockerRuntime
        from remotegpu_agent.tasks.docker_tasks import DockerTasks

        assert isinstance(runtime, DockerRuntime), "there is one Docker runtime"
        return DockerTasks(settings, host_id, runtime)
    from remotegpu_agent.tasks.process_tasks import ProcessTasks

    return ProcessTasks(settings, host_id)


def choose_gpus(settings: Settings, host_id: str) -> GpuProvider:
    if settings.simulate_gpus is not None:
        from remotegpu_agent.simulated_gpus import SimulatedGpus

        failures = settings.state_dir / "simulated-gpu-failures"
        return SimulatedGpus(settings.simulate_gpus, host_id=host_id, failures=failures)
    from remotegpu_agent.nvml import Nvml  # a host with simulated GPUs needs no NVML

    return Nvml()


class ServerApi(AgentApi, AttemptApi, Protocol):
    """All of the protocol (``client.agent``)."""


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What makes the agent of one kind of host differ from another's."""

    runtime: Runtime
    tasks: TaskRuntime
    gpus: GpuProvider
    meter: Meter
    machine: inventory.Machine


class Agent:
    """The agent of one host."""

    def __init__(self, settings: Settings, credential: Credential, *, api: ServerApi, parts: Parts) -> None:
        self._settings = settings
        self._credential = credential
        self._runtime = runtime = parts.runtime
        self._machine = parts.machine
        self._health = Health(False, "not asked yet")
        self._sync = Sync(api, poll_wait_s=settings.poll_wait_s)
        self._converger = Converger(
            runtime=runtime,
            journal=Journal(settings.state_dir / "journal.json"),
            report=self._sync.report,
            observe_every_s=settings.observe_every_s,
        )
        self._saves = ImageSaves(runtime)
        self._sampler = Sampler(
            parts.gpus,
            every_s=settings.sample_every_s,
            held=lambda: self._converger.held_gpus() | self._tasks.held_gpus(),
        )
        self._tasks = Tasks(
            api=api,
            sync=self._sync,
            runtime=parts.tasks,
            settings=settings,
            gpu_memory=self._sampler.gpu_memory_of,
        )
        self._host = parts.meter
        self._gpus: list[InventoryGpu] = []
        self._heartbeats = 0
        self._gpu_peaks: dict[str, int] = {}
        self._kernels = Kernels()
        epoch = status.read(settings.state_dir).get("epoch")
        self._previous_epoch = epoch if isinstance(epoch, int) else None

    async def serve(self, stopping: asyncio.Event) -> Exit:
        """Returns when it is told to stop or when a task ended; workloads run on in every case."""
        work = asyncio.create_task(self._work(), name="agent")
        stop = asyncio.create_task(stopping.wait(), name="stop")
        try:
            await asyncio.wait({work, stop}, return_when=asyncio.FIRST_COMPLETED)
            result = Exit.STOPPED if stop.done() and not work.done() else _result(work)
        finally:
            await self._end(work, stop)
        self._write_status(state="ended", exit_code=int(result))
        log.info("agent ends with %s; workloads run on", result.name.lower())
        return result

    async def _work(self) -> None:
        self._write_status(state="registering")
        session = await self._sync.register(self._registration)
        self._converger.epoch = session.epoch
        self._write_status()
        tasks: dict[str, Coroutine[None, None, None]] = {
            "sampler": self._sampler.run(),
            "host-meter": self._host.run(),
            "heartbeats": self._sync.send_heartbeats(self._heartbeat),
            "desired": self._sync.follow_desired(
                self._converger.set_desired, self._saves.set_desired, self._tasks.set_granted
            ),
            "tasks": self._tasks.run(),
            "reports": self._sync.push(),
            "logs": self._sync.answer_logs(self._converger.log_of),
            "gpu-checks": self._sync.answer_gpu_checks(self._sampler.check),
            "image-saves": self._saves.run(self._sync.report_save),
            "volume-removals": self._sync.answer_volume_removals(self._remove_home),
            "volume-sizes": self._sync.answer_volume_measurements(self._measure_home),
            "observer": self._converger.run(),
        }
        if (listen := self._settings.metrics_listen) is not None:
            scrapes = Scrapes(*listen, token=self._settings.metrics_token, tell=self._exposed)
            tasks["scrapes"] = scrapes.run()
        await _guard(tasks)

    async def _end(self, *tasks: asyncio.Task[object]) -> None:
        """Stop talking first, then working, then measuring."""
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._converger.close()
        await self._tasks.close()
        self._sampler.close()
        await self._runtime.close()

    async def _remove_home(self, volume: HomeVolume) -> str | None:
        """``None`` when it is gone; a home that a workload may use stays."""
        if volume.volume_id in self._converger.homes_in_use() | self._tasks.homes_in_use():
            return "A workload of this host still uses it."
        return await asyncio.to_thread(homes.remove_home, self._settings, volume)

    async def _measure_home(self, volume: HomeVolume) -> int | str:
        """Its bytes on disk, or why they are not known."""
        home = homes.place_of(self._settings, volume)
        return home if isinstance(home, str) else await home_sizes.measure(home)

    async def _registration(self) -> SessionCreate:
        self._health = await self._probe()
        if not self._health.healthy:
            log.warning("%s", self._health.detail)
        gpus = await self._sampler.inventory()
        self._gpus = gpus.gpus
        return SessionCreate(
            boot_id=self._machine.boot_id,
            agent_version=__version__,
            previous_epoch=self._previous_epoch,
            labels=self._settings.labels,
            inventory=await inventory.take_inventory(
                self._settings,
                machine=self._machine,
                runtime=self._runtime,
                health=self._health,
                gpus=gpus,
            ),
            workloads=await self._converger.adopt(),
        )

    async def _probe(self) -> Health:
        health = await self._runtime.probe()
        if not health.healthy or not (limits := self._tasks.limits):
            return health
        return Health(True, f"{health.detail}; {limits}"[:256])

    async def _heartbeat(self) -> Heartbeat:
        before, self._health = self._health, await self._probe()
        if before.healthy != self._health.healthy:
            log.warning("runtime: %s", self._health.detail)
        reading = self._host.read()
        self._heartbeats += 1
        body = Heartbeat(
            epoch=self._sync.epoch,
            sequence=self._heartbeats,
            sampled_at=datetime.now(UTC),
            runtime_healthy=self._health.healthy,
            runtime_detail=self._health.detail,
            host=reading.metrics,
            host_mean=reading.mean,
            host_highest=reading.highest,
            gpus=self._sampler.take(),
            workloads=await self._workload_metrics(),
            observed=self._converger.states(),
            quarantined=self._converger.quarantined(),
        )
        self._write_status()
        return body

    async def _workload_metrics(self) -> list[WorkloadMetrics]:
        return [*await self._environment_metrics(), *self._tasks.metrics(self._sampler.workloads)]

    async def _environment_metrics(self) -> list[WorkloadMetrics]:
        try:
            usage = await self._runtime.usage() if self._health.healthy else {}
        except RuntimeUnavailable:
            return []
        gpus = self._sampler.workloads(self._runtime.workload_of_pid)
        idle_s = await self._kernels.idle_s(self._converger.servers())
        found = []
        for workload_id, used in usage.items():
            mine = gpus.get(workload_id, WorkloadGpus())
            if mine.memory_bytes:
                peak = max(sum(mine.memory_bytes.values()), self._gpu_peaks.get(workload_id, 0))
                self._gpu_peaks[workload_id] = peak
            found.append(
                WorkloadMetrics(
                    workload_id=workload_id,
                    cpu_percent=used.cpu_percent,
                    memory_used_bytes=used.memory_used_bytes,
                    gpu_memory_bytes=mine.memory_bytes,
                    gpu_utilization_percent=mine.utilization_percent,
                    peak_gpu_memory_bytes=self._gpu_peaks.get(workload_id),
                    connections=used.connections,
                    kernel_idle_s=idle_s.get(workload_id),
                )
            )
        self._gpu_peaks = {key: peak for key, peak in self._gpu_peaks.items() if key in usage}
        return found

    def _exposed(self) -> str:
        """What was measured last, for Prometheus."""
        rows = []
        for gpu in self._gpus:
            where = exposition.gpu_labels(
                index=gpu.index,
                uuid=gpu.uuid,
                product=gpu.product,
                hostname=socket.gethostname(),
                simulated=gpu.simulated,
            )
            if (sample := self._sampler.newest.get(gpu.uuid)) is not None:
                rows.append((where, asdict(sample)))
        heard = self._sync.last_contact
        own = (
            ("remotegpu_agent_heartbeats", "counter", "Heartbeats built in this session.", self._heartbeats),
            ("remotegpu_agent_last_contact_seconds", "gauge", "Unix time of the last answer.", heard),
            ("remotegpu_agent_runtime_healthy", "gauge", "1: containers run.", self._health.healthy),
        )
        lines = [
            line
            for name, kind, text, value in own
            for line in exposition.family(name, kind, text, [("", value)])
        ]
        return "".join([*lines, *exposition.gpus(rows)])

    def _write_status(self, *, state: str = "running", exit_code: int | None = None) -> None:
        try:
            status.write(self._settings.state_dir, self._status(state, exit_code))
        except OSError as error:  # a full disk must not end the agent
            log.warning("the status file cannot be written: %s", error)

    def _status(self, state: str, exit_code: int | None) -> dict[str, object]:
        return {
            "state": state,
            "exit_code": exit_code,
            "pid": os.getpid(),
            "version": __version__,
            "url": self._settings.url,
            "host_id": self._credential.host_id,
            "host_name": self._credential.host_name,
            "epoch": self._sync.epoch,
            "last_contact": self._sync.last_contact,
            "trouble": self._sync.trouble,
            "runtime": str(self._runtime.kind),
            "runtime_healthy": self._health.healthy,
            "runtime_detail": self._health.detail,
            "simulated_gpus": self._settings.simulate_gpus,
            "workloads": [
                {
                    "id": it.workload_id,
                    "generation": it.generation,
                    "observed": str(it.observed),
                    "address": it.address,
                }
                for it in self._converger.states()
            ],
            "attempts": self._tasks.states(),
            "quarantined": self._converger.quarantined(),
        }


async def _guard(work: dict[str, Coroutine[None, None, None]]) -> None:
    """Run endless tasks by name; the first that ends, for whatever reason, ends them all."""
    tasks = [asyncio.create_task(coroutine, name=name) for name, coroutine in work.items()]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            await task
            raise RuntimeError(f"the agent's task {task.get_name()!r} ended, which it never should")
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _result(work: asyncio.Task[None]) -> Exit:
    with suppress(asyncio.CancelledError):
        error = work.exception()
        if isinstance(error, Superseded):
            log.error("%s", error)
            return Exit.SUPERSEDED
        if isinstance(error, Refused):
            log.error("%s", error)
            return Exit.REFUSED
        if isinstance(error, errors.RemoteGPUError):
            log.error("the server does not take this host in: %s", error)
        else:
            log.error("the agent failed", exc_info=error)
    return Exit.FAILED


__all__ = ["Agent", "Exit", "Parts", "choose_gpus", "choose_runtime", "enroll", "run"]
