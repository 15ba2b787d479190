"""Attempts as containers: found by labels, named after the attempt, each with a network of its own.

This host's own shell goes in as the entrypoint (:mod:`shim`), so images need none, and output goes to a file
as with processes. The engine's logs are not used: they break binary output and long lines into pieces, and
cannot be taken up again at a byte after a restart.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

from remotegpu.types.agent import ClaimedAttempt
from remotegpu.types.environments import Reason
from remotegpu_agent import container_spec, fault_points
from remotegpu_agent.docker_client import JSON, EngineError
from remotegpu_agent.docker_runtime import DockerRuntime, start_refused
from remotegpu_agent.homes import prepare_home
from remotegpu_agent.runtime import RuntimeUnavailable, StartRefused, StillThere
from remotegpu_agent.settings import Settings
from remotegpu_agent.tasks import shim
from remotegpu_agent.tasks.environment import environment
from remotegpu_agent.tasks.folders import Folder
from remotegpu_agent.tasks.runtime import End, Life

log = logging.getLogger(__name__)

TERM = "SIGTERM"
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
KILL_WAIT_S = 10.0
ASK_AGAIN_S = 1.0
"""After an engine that did not answer, or not sensibly."""


class DockerTasks:
    """Attempts of one host, as containers of the engine that runs its environments."""

    def __init__(self, settings: Settings, host_id: str, docker: DockerRuntime) -> None:
        self._settings = settings
        self._host_id = host_id
        self._docker = docker
        self._engine = docker.engine
        self._shim: Path | None = None
        self._of_container: dict[str, str] = {}
        """Container id -> attempt id, of what this agent started or found."""

    guarded = True

    @property
    def limits(self) -> str:
        """Containers have them all."""
        return ""

    async def prepare(self, spec: ClaimedAttempt, epoch: int, say: Callable[[str], Awaitable[None]]) -> None:
        await self._docker.fetch_image(spec, lambda _: None)

    async def start(self, spec: ClaimedAttempt, folder: Folder, epoch: int) -> None:
        if spec.gang is not None and spec.gang.address in _LOOPBACK:
            raise StartRefused(
                Reason.START_FAILED,
                f"The host of rank 0 has the address {spec.gang.address}, which no container reaches. "
                "Give its agent one that other hosts reach, with --address.",
            )
        home = await asyncio.to_thread(prepare_home, self._settings, spec.home, owner=container_spec.UID)
        image = await self._docker.local_image(spec)
        if image is None:
            raise StartRefused(Reason.IMAGE_NOT_FOUND, f"{spec.image_reference} is not on this host.")
        placement = container_spec.TaskPlacement(
            host_id=self._host_id,
            epoch=epoch,
            image=self._docker.pinned(spec, image),
            image_user=(image.get("Config") or {}).get("User") or "",
            entrypoint=shim.entrypoint(spec.log_cap_bytes),
            command=_command(spec, image),
            environment=environment(
                spec,
                output=container_spec.OUTPUT,
                progress=f"{shim.SAID}/{folder.progress.name}",
                input_=shim.INPUT,
            ),
            publish_address=self._settings.address,
            home=os.fspath(home.absolute()),
            mounts=await self._mounts(spec, folder),
        )
        try:
            await self._create_and_start(spec, placement)
        except EngineError as error:
            await self._undo(folder)
            raise start_refused(error) from error
        except StartRefused:
            await self._undo(folder)
            raise

    async def _create_and_start(self, spec: ClaimedAttempt, placement: container_spec.TaskPlacement) -> None:
        labels = container_spec.task_labels(spec, host_id=self._host_id, epoch=placement.epoch)
        name = container_spec.container_name(spec.id)
        created, network = await asyncio.gather(
            self._engine.create_container(name, container_spec.task_spec(spec, placement)),
            self._docker.networks.create(spec, labels),
            return_exceptions=True,
        )
        for outcome in (created, network):
            if isinstance(outcome, BaseException):
                raise outcome
        self._of_container[str(created)] = spec.id
        await self._engine.start_container(str(created))
        fault_points.hit(fault_points.TASK_SPAWNED)

    async def _mounts(self, spec: ClaimedAttempt, folder: Folder) -> list[tuple[str, str, bool]]:
        """Source, target and whether it is read-only."""
        if self._shim is None:
            try:
                self._shim = await asyncio.to_thread(shim.bundle, self._settings.state_dir)
            except shim.NoShell as error:
                raise StartRefused(Reason.START_FAILED, str(error)) from error
        mounts = [
            (str(self._shim), shim.SHIM, True),
            (str(folder.log), shim.LOG, False),
            (str(folder.said), shim.SAID, False),
            (str(folder.output), container_spec.OUTPUT, False),
        ]
        if spec.script is not None:
            mounts.append((str(folder.script), shim.SCRIPT, True))
        if spec.input is not None:
            mounts.append((str(folder.input), shim.INPUT, True))
        return mounts

    def where(self, folder: Folder) -> str:
        return ""

    async def look(self, folder: Folder) -> Life:
        found = await self._details(folder)
        if found is None:
            return Life.NOTHING
        state = found["State"]
        if state["Status"] == "created":
            return Life.CREATED
        return Life.RUNNING if state["Running"] else Life.ENDED

    async def wait_end(self, folder: Folder) -> None:
        """Only a container that is gone, or seen not to run, has ended; else it is asked again."""
        while True:
            try:
                await self._wait(folder)
                if await self.look(folder) is not Life.RUNNING:
                    return
            except RuntimeUnavailable:
                await asyncio.sleep(ASK_AGAIN_S)

    async def _wait(self, folder: Folder) -> None:
        try:
            await self._engine.wait_container(container_spec.container_name(folder.attempt_id))
        except EngineError as error:
            if error.status != 404:
                log.warning("attempt %s: the engine does not wait: %s", folder.attempt_id, error.message)
                await asyncio.sleep(ASK_AGAIN_S)

    async def terminate(self, folder: Folder) -> None:
        """The container's init hands it to the whole process group."""
        await self._signal(folder, TERM)

    async def kill(self, folder: Folder) -> None:
        deadline = asyncio.get_running_loop().time() + KILL_WAIT_S
        while await self.look(folder) is Life.RUNNING:
            await self._signal(folder, "SIGKILL")
            if asyncio.get_running_loop().time() > deadline:
                raise StillThere(f"the container of attempt {folder.attempt_id} survives SIGKILL")
            await asyncio.sleep(0.05)

    async def _signal(self, folder: Folder, name: str) -> None:
        try:
            await self._engine.signal_container(container_spec.container_name(folder.attempt_id), name)
        except EngineError as error:
            if error.status not in (404, 409):  # it is gone, or has just ended
                raise StillThere(f"{name} to attempt {folder.attempt_id}: {error.message}") from error

    async def end_of(self, folder: Folder) -> End | None:
        found = await self._details(folder)
        if found is None:
            return None
        state = found["State"]
        code = int(state["ExitCode"])
        told = dict(pair.partition("=")[::2] for pair in found["Config"].get("Env") or [])
        out_of_memory = bool(state["OOMKilled"]) and code != 0
        return End(
            exit_code=code,
            out_of_memory=out_of_memory,
            # Nobody may have looked in its last moment, but then it has reached its limit.
            peak_memory_bytes=found["HostConfig"]["Memory"] if out_of_memory else None,
            search_path=told.get("PATH"),
        )

    async def remove(self, folder: Folder) -> None:
        labels = [*self._own(), f"{container_spec.ATTEMPT}={folder.attempt_id}"]
        try:
            for container in await self._engine.containers(labels):
                await self._engine.remove_container(container["Id"])
                self._of_container.pop(container["Id"], None)
            for network in await self._engine.networks(labels):
                await self._docker.networks.remove(network)
            left = await self._engine.containers(labels)
        except EngineError as error:
            raise StillThere(f"attempt {folder.attempt_id} cannot be removed: {error.message}") from error
        if left:
            raise StillThere(f"the container of attempt {folder.attempt_id} is still there")

    async def strays(self) -> list[str]:
        labels = [*self._own(), container_spec.ATTEMPT]
        try:
            containers, networks = await asyncio.gather(
                self._engine.containers(labels), self._engine.networks(labels)
            )
        except EngineError as error:
            raise RuntimeUnavailable(error.message) from error
        for one in containers:
            self._of_container[one["Id"]] = one["Labels"][container_spec.ATTEMPT]
        return sorted({one["Labels"][container_spec.ATTEMPT] for one in [*containers, *networks]})

    async def memory(self, folder: Folder) -> int | None:
        try:
            stats = await self._engine.container_stats(container_spec.container_name(folder.attempt_id))
        except EngineError:  # it has ended
            return None
        memory = (stats or {}).get("memory_stats") or {}
        used = memory.get("max_usage", memory.get("usage"))
        return None if used is None else int(used)

    def note_lease(self, folder: Folder, *, fence_at: float, grace_s: float) -> None:
        container = container_spec.container_name(folder.attempt_id)
        folder.put_lease({"fence_at": fence_at, "grace_s": grace_s, "container": container})

    def attempt_of_pid(self, pid: int) -> str | None:
        container_id = container_spec.container_of_pid(pid)
        return None if container_id is None else self._of_container.get(container_id)

    async def close(self) -> None:
        """The engine's connection is the runtime's."""

    async def _details(self, folder: Folder) -> JSON | None:
        try:
            return await self._engine.inspect_container(container_spec.container_name(folder.attempt_id))
        except EngineError as error:
            if error.status == 404:
                return None
            raise RuntimeUnavailable(error.message) from error

    async def _undo(self, folder: Folder) -> None:
        try:
            await self.remove(folder)
        except (RuntimeUnavailable, StillThere):
            return  # the attempt's own removal says it again

    def _own(self) -> list[str]:
        return [f"{container_spec.HOST}={self._host_id}"]


def _command(spec: ClaimedAttempt, image: JSON) -> list[str]:
    """As it is, without the image's entrypoint; or the image's own, if the task names none."""
    command = shim.command_of(spec, shim.SCRIPT)
    if command is None:
        config = image.get("Config") or {}
        command = [*(config.get("Entrypoint") or []), *(config.get("Cmd") or [])]
    if not command:
        raise StartRefused(Reason.START_FAILED, "Neither the task nor its image names a command.")
    return command
