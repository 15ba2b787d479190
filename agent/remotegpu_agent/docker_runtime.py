"""Workloads as containers of a Docker engine."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any, Protocol

from remotegpu.types.agent import Workload
from remotegpu.types.environments import Reason
from remotegpu.types.hosts import RuntimeKind
from remotegpu_agent import activity, container_spec, fault_points, image_export
from remotegpu_agent.authorized_keys import KeyFolders
from remotegpu_agent.docker_client import JSON, Engine, EngineError
from remotegpu_agent.docker_networks import Networks
from remotegpu_agent.firewall import Firewall
from remotegpu_agent.homes import prepare_home
from remotegpu_agent.image_pull import Puller, pull_refused
from remotegpu_agent.runtime import (
    Actual,
    ActualState,
    BytesRead,
    Health,
    Progress,
    RuntimeUnavailable,
    StartRefused,
    StillThere,
    Usage,
)
from remotegpu_agent.settings import Settings

log = logging.getLogger(__name__)

_STATES = {"created": ActualState.CREATED, "exited": ActualState.EXITED, "dead": ActualState.EXITED}
_BY_ID = "sha256:"
"""How a saved image is named: by the engine's id, which no registry knows."""
_RETRY_EVENTS_S = 2.0
_ENDED = frozenset({"die", "oom", "destroy"})


class Imaged(Protocol):
    """What names an image: a workload or an attempt."""

    @property
    def image_reference(self) -> str: ...

    @property
    def image_digest(self) -> str | None: ...


class DockerRuntime:
    """Containers of one host: those that carry its id in a label. Others are not seen and not touched."""

    kind = RuntimeKind.DOCKER

    def __init__(self, settings: Settings, host_id: str) -> None:
        self._settings = settings
        self._host_id = host_id
        self.engine = Engine(settings.docker_host)
        self._firewall = Firewall()
        self.networks = Networks(self.engine, self._firewall, pool=settings.network_pool)
        self._puller = Puller(self.engine, no_progress_s=settings.pull_silence_s)
        self._events: Any = None
        self._of_container: dict[str, str] = {}
        """Container id -> workload id, from the last full listing."""
        self._cpu_seen: dict[str, tuple[float, int]] = {}
        self._pids: dict[str, int] = {}
        """Container id -> process id of its init, on this machine."""
        self._keys = KeyFolders(settings.state_dir / "ssh")

    async def probe(self) -> Health:
        try:
            version = await self.engine.version()
        except RuntimeUnavailable as error:
            return Health(
                False, f"Docker does not answer: `systemctl start docker` starts it. ({error})"[:256]
            )
        except EngineError as error:
            return Health(False, f"Docker refuses to say its version: {error.message}"[:256])
        if self._firewall.problem is not None:
            await self._firewall.set_up()
        detail = f"Docker {version['Version']}"
        if self._firewall.problem:
            detail = f"{detail}; {self._firewall.problem}"
        return Health(True, detail[:256])

    async def find(self, workload_id: str | None = None) -> list[Actual]:
        try:
            containers, networks = await asyncio.gather(
                self.engine.containers(self._labels(workload_id)),
                self.engine.networks(self._labels(workload_id)),
            )
        except EngineError as error:
            raise RuntimeUnavailable(f"Docker could not list containers: {error.message}") from error
        if workload_id is None:
            self._of_container = {item["Id"]: item["Labels"][container_spec.WORKLOAD] for item in containers}
        found = [await self._actual(item) for item in containers]
        named = {(actual.workload_id, actual.generation) for actual in found}
        remnants = [_remnant(network) for network in networks]
        return found + [it for it in remnants if (it.workload_id, it.generation) not in named]

    async def fetch_image(self, workload: Imaged, progress: Progress) -> None:
        if await self.local_image(workload) is None:
            if workload.image_reference.startswith(_BY_ID):
                raise StartRefused(
                    Reason.IMAGE_NOT_FOUND, "The saved image is not on this host any more, and nowhere else."
                )
            await self._puller.pull(_reference_to_pull(workload), progress)

    async def create(self, workload: Workload, epoch: int) -> str:
        # A home in the wrong place or an odd image is found before anything exists.
        home = await asyncio.to_thread(prepare_home, self._settings, workload.home, owner=container_spec.UID)
        try:
            image = await self.local_image(workload)
            if image is None:
                raise StartRefused(Reason.IMAGE_NOT_FOUND, f"{workload.image_reference} is not on this host.")
            spec = container_spec.container_spec(workload, self._placement(workload, image, home, epoch))
            # At once: the engine looks for the network only when the container starts.
            key = await _both(
                self.networks.create(
                    workload, container_spec.labels(workload, host_id=self._host_id, epoch=epoch)
                ),
                self.engine.create_container(container_spec.container_name(workload.id), spec),
            )
        except EngineError as error:
            await self._undo_create(workload)
            message = f"Docker refused to create it: {error.message}"
            raise StartRefused(Reason.START_FAILED, message) from error
        except StartRefused:
            await self._undo_create(workload)
            raise
        fault_points.hit(fault_points.CREATED)
        return key

    async def start(self, key: str) -> Actual:
        try:
            await self.engine.start_container(key)
            self._cpu_seen[key] = (time.monotonic(), 0)  # so that its first reading has a beginning
            details = await self.engine.inspect_container(key)
        except EngineError as error:
            raise start_refused(error) from error
        return _from_details(details, self._settings.address)

    async def stop(self, actual: Actual, grace_s: float) -> None:
        try:
            await self.engine.stop_container(actual.key, grace_s)
        except EngineError as error:
            raise StillThere(f"Docker could not stop {actual.name}: {error.message}") from error

    async def remove(self, workload_id: str, generation: int) -> None:
        labels = self._labels(workload_id)
        try:
            for container in await self.engine.containers(labels):
                if _generation(container) <= generation:
                    await self.engine.remove_container(container["Id"])
                    self._cpu_seen.pop(container["Id"], None)
            for network in await self.engine.networks(labels):
                if _generation(network) <= generation:
                    await self.networks.remove(network)
        except EngineError as error:
            raise StillThere(f"Docker could not remove {workload_id}: {error.message}") from error

    def authorize(self, workload_id: str, keys: Sequence[str] | None) -> None:
        if keys is None:
            self._keys.forget(workload_id)
        else:
            self._keys.write(workload_id, keys)

    async def logs(self, actual: Actual, tail_lines: int) -> tuple[str, bool]:
        try:
            text = await self.engine.container_log(actual.key, tail_lines + 1)
        except EngineError as error:
            return f"(Docker has no log of {actual.name}: {error.message})", False
        lines = text.splitlines(keepends=True)
        return "".join(lines[-tail_lines:]), len(lines) > tail_lines

    async def wait_change(self) -> None:
        try:
            if self._events is None:
                self._events = self.engine.events(self._labels(None))
            async for event in self._events:
                if event.get("Action") in _ENDED:
                    return
        except (RuntimeUnavailable, EngineError) as error:
            log.info("Docker events: %s", error)
        except asyncio.CancelledError:
            await self._end_events()
            raise
        await self._end_events()
        await asyncio.sleep(_RETRY_EVENTS_S)

    async def usage(self) -> dict[str, Usage]:
        containers = await self._list_running()
        answers = await asyncio.gather(*(self._usage(container) for container in containers))
        running = {container["Id"] for container in containers}
        self._pids = {key: pid for key, pid in self._pids.items() if key in running}
        return {
            container["Labels"][container_spec.WORKLOAD]: answer
            for container, answer in zip(containers, answers, strict=True)
        }

    def workload_of_pid(self, pid: int) -> str | None:
        container_id = container_spec.container_of_pid(pid)
        return None if container_id is None else self._of_container.get(container_id)

    async def images(self) -> list[str]:
        try:
            found = await self.engine.images()
        except EngineError as error:
            raise RuntimeUnavailable(error.message) from error
        tags = [tag for image in found for tag in image.get("RepoTags") or [] if tag != "<none>:<none>"]
        return sorted(tags)[:1000]

    async def save_image(self, actual: Actual, reference: str, max_bytes: int, progress: BytesRead) -> str:
        return await image_export.save(self.engine, actual.key, reference, max_bytes, progress)

    async def discard_image(self, reference: str) -> None:
        try:
            await self.engine.remove_image(reference)
        except EngineError as error:
            log.warning("image %s stays: %s", reference, error.message)

    async def close(self) -> None:
        await self._end_events()
        await self.engine.close()

    async def _end_events(self) -> None:
        if self._events is not None:
            events, self._events = self._events, None
            with contextlib.suppress(RuntimeError):  # it is running in a task that is being cancelled
                await events.aclose()

    async def _list_running(self) -> list[JSON]:
        try:
            containers = await self.engine.containers(self._labels(None))
        except EngineError as error:
            raise RuntimeUnavailable(error.message) from error
        return [container for container in containers if container["State"] == "running"]

    async def _actual(self, item: JSON) -> Actual:
        """A container in a listing; only one that has ended is looked at closer."""
        state = _STATES.get(item["State"], ActualState.RUNNING)
        if state is not ActualState.EXITED:
            return _from_listing(item, state, self._settings.address)
        try:
            return _from_details(await self.engine.inspect_container(item["Id"]), self._settings.address)
        except EngineError:  # removed since it was listed
            return _from_listing(item, state, self._settings.address)

    async def local_image(self, workload: Imaged) -> JSON | None:
        """The image if it is here with the wanted content, whatever its tag means by now."""
        try:
            return await self.engine.image(_reference_to_pull(workload))
        except EngineError as error:
            raise pull_refused(workload.image_reference, error.message) from error

    def pinned(self, workload: Imaged, image: JSON) -> str:
        """The reference with its digest where the image came from a registry."""
        digest = _digest(image, workload.image_reference)
        return f"{_repository(workload.image_reference)}@{digest}" if digest else workload.image_reference

    def _placement(self, workload: Workload, image: JSON, home: Path, epoch: int) -> container_spec.Placement:
        return container_spec.Placement(
            host_id=self._host_id,
            epoch=epoch,
            image=self.pinned(workload, image),
            image_user=(image.get("Config") or {}).get("User") or "",
            home=os.fspath(home.absolute()),
            publish_address=self._settings.address,
            keys=os.fspath(self._keys.folder(workload.id).absolute()),
            endpoints=container_spec.endpoints(
                (image.get("Config") or {}).get("Labels"), taken=workload.port
            ),
        )

    async def _undo_create(self, workload: Workload) -> None:
        try:
            await self.remove(workload.id, workload.generation)
        except (RuntimeUnavailable, StillThere) as error:
            log.warning("what was begun of %s is left for the next pass: %s", workload.id, error)

    async def _usage(self, container: JSON) -> Usage:
        container_id = container["Id"]
        try:
            stats = await self.engine.container_stats(container_id)
        except EngineError:  # it ended since it was listed
            return Usage(None, None)
        if not stats:  # the engine's answer for one that ends at this moment
            return Usage(None, None)
        cpu = stats.get("cpu_stats", {}).get("cpu_usage", {}).get("total_usage")
        memory = stats.get("memory_stats") or {}
        details = memory.get("stats") or {}
        cache = details.get("inactive_file", details.get("total_inactive_file", 0))
        used = memory.get("usage")
        return Usage(
            self._cpu_percent(container_id, cpu),
            None if used is None else max(0, used - cache),
            await self._connections(container),
        )

    async def _connections(self, container: JSON) -> int | None:
        """``None`` where the engine's processes are not this machine's, or may not be looked at."""
        container_id, labels = container["Id"], container["Labels"]
        try:
            if container_id not in self._pids:
                details = await self.engine.inspect_container(container_id)
                self._pids[container_id] = int(details["State"]["Pid"])
        except EngineError:  # it ended since it was listed
            return None
        pid = self._pids[container_id]
        if self.workload_of_pid(pid) != labels[container_spec.WORKLOAD]:
            return None
        ports = {int(labels.get(container_spec.PORT, 0)), *_endpoint_ports(labels).values()}
        return activity.open_connections(pid, ports, loopback=False)

    def _cpu_percent(self, container_id: str, total_ns: int | None) -> float | None:
        if total_ns is None:
            return None
        now = time.monotonic()
        before = self._cpu_seen.get(container_id)
        self._cpu_seen[container_id] = (now, total_ns)
        if before is None or now <= before[0]:
            return None
        return round(max(0, total_ns - before[1]) / 1e7 / (now - before[0]), 1)

    def _labels(self, workload_id: str | None) -> list[str]:
        """Those of environments; attempts of tasks are another's."""
        named = container_spec.WORKLOAD if workload_id is None else f"{container_spec.WORKLOAD}={workload_id}"
        return [f"{container_spec.HOST}={self._host_id}", named]


async def _both(first: Coroutine[Any, Any, None], second: Coroutine[Any, Any, str]) -> str:
    """Both to their end before an error is raised, so that what they made can be undone."""
    results = await asyncio.gather(first, second, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return str(results[1])


def _generation(item: JSON) -> int:
    return int(item["Labels"][container_spec.GENERATION])


def _known(labels: JSON) -> dict[str, Any]:
    """What labels say of an instance."""
    return {
        "workload_id": labels[container_spec.WORKLOAD],
        "generation": int(labels[container_spec.GENERATION]),
        "gpu_uuids": tuple(filter(None, labels.get(container_spec.GPUS, "").split(","))),
        "ready_path": labels.get(container_spec.READY_PATH, "/"),
    }


def _endpoint_ports(labels: JSON) -> dict[str, int]:
    return container_spec.endpoints(labels, taken=int(labels.get(container_spec.PORT, 0)))


def _from_listing(item: JSON, state: ActualState, address: str) -> Actual:
    port = int(item["Labels"].get(container_spec.PORT, 0))
    published = {
        entry.get("PrivatePort"): entry["PublicPort"]
        for entry in item.get("Ports") or []
        if entry.get("PublicPort")
    }
    return Actual(
        key=item["Id"],
        name=item["Names"][0].lstrip("/"),
        state=state,
        address=f"http://{address}:{published[port]}" if port in published else None,
        endpoints={
            name: f"{address}:{published[private]}"
            for name, private in _endpoint_ports(item["Labels"]).items()
            if private in published
        },
        image_digest=_digest_of(item.get("Image", "")),
        **_known(item["Labels"]),
    )


def _from_details(details: JSON, address: str) -> Actual:
    labels, state = details["Config"]["Labels"], details["State"]
    bindings = details["NetworkSettings"]["Ports"]
    ports = bindings.get(f"{labels.get(container_spec.PORT)}/tcp") or []
    offered = {name: bindings.get(f"{port}/tcp") for name, port in _endpoint_ports(labels).items()}
    running = bool(state["Running"])
    return Actual(
        key=details["Id"],
        name=details["Name"].lstrip("/"),
        state=ActualState.RUNNING if running else ActualState.EXITED,
        address=f"http://{address}:{ports[0]['HostPort']}" if running and ports else None,
        endpoints={
            name: f"{address}:{bound[0]['HostPort']}" for name, bound in offered.items() if bound and running
        },
        exit_code=None if running else state["ExitCode"],
        out_of_memory=bool(state["OOMKilled"]),
        image_digest=_digest_of(details["Config"]["Image"]),
        **_known(labels),
    )


def _remnant(network: JSON) -> Actual:
    return Actual(
        key=network["Id"],
        name=network["Name"],
        state=ActualState.REMNANT,
        **_known(network["Labels"]),
    )


def _repository(reference: str) -> str:
    """``registry:5000/lab:1.0`` -> ``registry:5000/lab``."""
    name = reference.partition("@")[0]
    head, slash, tail = name.rpartition("/")
    return head + slash + tail.partition(":")[0]


def _reference_to_pull(workload: Imaged) -> str:
    if workload.image_digest is None:
        return workload.image_reference
    return f"{_repository(workload.image_reference)}@{workload.image_digest}"


def _digest(image: JSON, reference: str) -> str | None:
    """The registry's digest of the image under this name; one built here has none."""
    for pinned in image.get("RepoDigests") or []:
        name, _, digest = pinned.partition("@")
        if name == _repository(reference):
            return str(digest)
    return None


def _digest_of(image: str) -> str | None:
    return image.partition("@")[2] or None


def start_refused(error: EngineError) -> StartRefused:
    if "could not select device driver" in error.message and "nvidia" in error.message:
        return StartRefused(
            Reason.START_FAILED,
            "This host has no nvidia-container-toolkit, so containers cannot get its GPUs. "
            "An admin must install it and restart Docker.",
        )
    return StartRefused(Reason.START_FAILED, f"Docker refused to start it: {error.message}")
