"""Pure: workload or attempt -> Docker create payload. The one place where container options are decided."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from remotegpu.types.agent import ClaimedAttempt, Workload

LABEL = "org.remotegpu"
HOST = f"{LABEL}.host"
WORKLOAD = f"{LABEL}.workload"
ATTEMPT = f"{LABEL}.attempt"
TASK = f"{LABEL}.task"
GENERATION = f"{LABEL}.generation"
EPOCH = f"{LABEL}.epoch"
GPUS = f"{LABEL}.gpus"
PORT = f"{LABEL}.port"
READY_PATH = f"{LABEL}.ready-path"
ENDPOINTS = f"{LABEL}.endpoints"
"""What an image offers besides the notebook, as its label says: ``ssh=2222,desktop=6080``."""

HOME = "/home/jovyan"
UID = GID = 1000
PIDS_LIMIT = 1024
SSH = "ssh"
KEYS = "/run/remotegpu/ssh"
"""Where an image's SSH server finds ``authorized_keys``."""
MOST_ENDPOINTS = 8
_ENDPOINT = re.compile(r"^([a-z][a-z0-9-]{0,15})=([0-9]{4,5})$")
SIMULATED_PREFIX = "GPU-SIM-"
OUTPUT = "/output"
"""Where a task leaves what is to be kept."""
_CONTAINER_ID = re.compile(rb"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class Placement:
    """What the host adds to a workload."""

    host_id: str
    epoch: int
    image: str
    """What to run: pinned by digest where the image came from a registry."""
    image_user: str
    """The user that the image names."""
    home: str
    """Directory on the host."""
    publish_address: str
    keys: str = ""
    """Directory on the host with the workload's ``authorized_keys``."""
    endpoints: Mapping[str, int] = field(default_factory=dict)
    """Ports that the image offers besides the notebook, by name."""


@dataclass(frozen=True, kw_only=True)
class TaskPlacement:
    """What the host adds to an attempt."""

    host_id: str
    epoch: int
    image: str
    image_user: str
    entrypoint: list[str]
    command: list[str]
    environment: Mapping[str, str]
    publish_address: str
    home: str
    """Directory on the host."""
    mounts: list[tuple[str, str, bool]]
    """Besides the home: source, target, and whether it is read-only."""


def endpoints(image_labels: Mapping[str, str] | None, *, taken: int) -> dict[str, int]:
    """The endpoints of an image's label; what is not well-formed, or the notebook's port, is left out."""
    found: dict[str, int] = {}
    for entry in ((image_labels or {}).get(ENDPOINTS) or "").split(","):
        match = _ENDPOINT.match(entry.strip())
        if match is not None and 1024 <= int(match[2]) <= 65535 and int(match[2]) != taken:
            found[match[1]] = int(match[2])
    return dict(list(found.items())[:MOST_ENDPOINTS])


def container_name(workload_id: str) -> str:
    return f"rgpu-{workload_id}"


def bridge_name(workload_id: str) -> str:
    """Interface names end at 15 characters, and ids may share their first ones: hence a hash."""
    return f"rgpu{hashlib.sha256(workload_id.encode()).hexdigest()[:8]}"


def labels(workload: Workload, *, host_id: str, epoch: int) -> dict[str, str]:
    """The agent's only truth about what it finds. No secret may be here."""
    return {
        HOST: host_id,
        WORKLOAD: workload.id,
        GENERATION: str(workload.generation),
        EPOCH: str(epoch),
        GPUS: ",".join(workload.gpu_uuids),
        PORT: str(workload.port),
        READY_PATH: ready_path(workload),
    }


def ready_path(workload: Workload) -> str:
    """Where the server is asked whether it answers: any answer below 500 counts."""
    prefix = (workload.env | workload.secret_env).get("JUPYTERHUB_SERVICE_PREFIX")
    return f"{prefix.rstrip('/')}/api" if prefix else "/"


def gpu_environment(gpu_uuids: list[str]) -> dict[str, str]:
    """GPUs by UUID. ``void`` keeps the NVIDIA runtime from handing in all of them."""
    simulated = [uuid for uuid in gpu_uuids if uuid.startswith(SIMULATED_PREFIX)]
    if simulated:
        return {"NVIDIA_VISIBLE_DEVICES": "void", "REMOTEGPU_SIMULATED_GPUS": ",".join(simulated)}
    return {"NVIDIA_VISIBLE_DEVICES": ",".join(gpu_uuids) or "void"}


def real_gpus(gpu_uuids: list[str]) -> list[str]:
    return [uuid for uuid in gpu_uuids if not uuid.startswith(SIMULATED_PREFIX)]


def container_spec(workload: Workload, placement: Placement) -> dict[str, Any]:
    """The whole create payload."""
    ports = [f"{workload.port}/tcp", *(f"{port}/tcp" for port in placement.endpoints.values())]
    environment = workload.env | workload.secret_env | gpu_environment(workload.gpu_uuids)
    spec: dict[str, Any] = {
        "Image": placement.image,
        "Hostname": workload.name[:63],
        "Env": sorted(f"{name}={value}" for name, value in environment.items()),
        "Labels": {
            **labels(workload, host_id=placement.host_id, epoch=placement.epoch),
            ENDPOINTS: ",".join(f"{name}={port}" for name, port in placement.endpoints.items()),
        },
        "ExposedPorts": {port: {} for port in ports},
        "StopSignal": "SIGTERM",
        "HostConfig": _host_config(workload, placement, ports),
    }
    if workload.command is not None:
        spec["Cmd"] = workload.command
    if _is_root(placement.image_user):
        spec["User"] = f"{UID}:{GID}"
    return spec


def _host_config(workload: Workload, placement: Placement, ports: list[str]) -> dict[str, Any]:
    return {
        **_confined(workload),
        "PortBindings": {port: [{"HostIp": placement.publish_address, "HostPort": ""}] for port in ports},
        "Mounts": _mounts(placement),
        "LogConfig": {"Type": "json-file", "Config": {"max-size": "10m", "max-file": "2"}},
    }


def _confined(owner: Workload | ClaimedAttempt) -> dict[str, Any]:
    """What holds in every container of a tenant, whatever runs in it."""
    config: dict[str, Any] = {
        "NetworkMode": container_name(owner.id),
        "CapDrop": ["ALL"],
        "SecurityOpt": ["no-new-privileges"],
        "Privileged": False,
        "Init": True,
        "RestartPolicy": {"Name": "no"},
        "PidsLimit": PIDS_LIMIT,
        "Memory": owner.memory_bytes,
        "MemorySwap": owner.memory_bytes,
        "NanoCpus": round(owner.cpus * 1e9),
        # No nofile: an engine without CAP_SYS_RESOURCE refuses a limit above its own.
        "Ulimits": [{"Name": "core", "Soft": 0, "Hard": 0}],
        "IpcMode": "private",
        "ShmSize": max(64 * 2**20, owner.memory_bytes // 4),
    }
    if real := real_gpus(owner.gpu_uuids):
        config["DeviceRequests"] = [
            {
                "Driver": "nvidia",
                "Count": 0,
                "DeviceIDs": real,
                "Capabilities": [["gpu", "compute", "utility"]],
            }
        ]
    return config


def task_labels(attempt: ClaimedAttempt, *, host_id: str, epoch: int) -> dict[str, str]:
    """Of an attempt. It has no generation: its id is new for each try."""
    return {
        HOST: host_id,
        ATTEMPT: attempt.id,
        TASK: attempt.task_id,
        EPOCH: str(epoch),
        GPUS: ",".join(attempt.gpu_uuids),
    }


def task_spec(attempt: ClaimedAttempt, placement: TaskPlacement) -> dict[str, Any]:
    """The whole create payload of an attempt."""
    # The init of the container hands signals to the whole process group.
    environment = {"HOME": HOME} | dict(placement.environment) | {"TINI_KILL_PROCESS_GROUP": "1"}
    spec: dict[str, Any] = {
        "Image": placement.image,
        "Hostname": attempt.name[:63],
        "Env": sorted(f"{name}={value}" for name, value in environment.items()),
        "Labels": task_labels(attempt, host_id=placement.host_id, epoch=placement.epoch),
        "Entrypoint": placement.entrypoint,
        "Cmd": placement.command,
        "WorkingDir": attempt.working_dir or HOME,
        "StopSignal": "SIGTERM",
        "HostConfig": {
            **_confined(attempt),
            **_meeting_place(attempt, placement.publish_address),
            "Mounts": [
                {"Type": "bind", "Source": placement.home, "Target": HOME, "ReadOnly": False},
                *(
                    {"Type": "bind", "Source": source, "Target": target, "ReadOnly": read_only}
                    for source, target, read_only in placement.mounts
                ),
            ],
            "LogConfig": {"Type": "none", "Config": {}},
        },
    }
    if "PortBindings" in spec["HostConfig"]:
        spec["ExposedPorts"] = {port: {} for port in spec["HostConfig"]["PortBindings"]}
    if _is_root(placement.image_user):
        spec["User"] = f"{UID}:{GID}"
    return spec


def _meeting_place(attempt: ClaimedAttempt, address: str) -> dict[str, Any]:
    """Rank 0 of several is found at the port that the server chose, on this host as in its container."""
    if attempt.gang is None or attempt.rank != 0:
        return {}
    port = str(attempt.gang.port)
    return {"PortBindings": {f"{port}/tcp": [{"HostIp": address, "HostPort": port}]}}


def container_of_pid(pid: int) -> str | None:
    """The id of the container that a process of this machine belongs to."""
    try:
        found = _CONTAINER_ID.search(Path(f"/proc/{pid}/cgroup").read_bytes())
    except OSError:
        return None
    return None if found is None else found[0].decode()


def _mounts(placement: Placement) -> list[dict[str, Any]]:
    home = {"Type": "bind", "Source": placement.home, "Target": HOME, "ReadOnly": False}
    if SSH not in placement.endpoints:
        return [home]
    return [home, {"Type": "bind", "Source": placement.keys, "Target": KEYS, "ReadOnly": True}]


def _is_root(image_user: str) -> bool:
    return image_user.split(":")[0] in ("", "root", "0")


def network_config(owner_id: str, labels: Mapping[str, str], *, subnet: str) -> dict[str, Any]:
    """A bridge of its own: nothing else is on it."""
    return {
        "Name": container_name(owner_id),
        "Driver": "bridge",
        "CheckDuplicate": True,
        "IPAM": {"Driver": "default", "Config": [{"Subnet": subnet}]},
        "Options": {
            "com.docker.network.bridge.name": bridge_name(owner_id),
            "com.docker.network.bridge.enable_icc": "false",
        },
        "Labels": dict(labels),
    }
