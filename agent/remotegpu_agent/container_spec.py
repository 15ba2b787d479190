"""Pure: workload -> Docker create payload. The one place where container options are decided."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from remotegpu.types.agent import Workload

LABEL = "org.remotegpu"
HOST = f"{LABEL}.host"
WORKLOAD = f"{LABEL}.workload"
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
    config: dict[str, Any] = {
        "NetworkMode": container_name(workload.id),
        "PortBindings": {port: [{"HostIp": placement.publish_address, "HostPort": ""}] for port in ports},
        "Mounts": _mounts(placement),
        "CapDrop": ["ALL"],
        "SecurityOpt": ["no-new-privileges"],
        "Privileged": False,
        "Init": True,
        "RestartPolicy": {"Name": "no"},
        "PidsLimit": PIDS_LIMIT,
        "Memory": workload.memory_bytes,
        "MemorySwap": workload.memory_bytes,
        "NanoCpus": round(workload.cpus * 1e9),
        # No nofile: an engine without CAP_SYS_RESOURCE refuses a limit above its own.
        "Ulimits": [{"Name": "core", "Soft": 0, "Hard": 0}],
        "LogConfig": {"Type": "json-file", "Config": {"max-size": "10m", "max-file": "2"}},
        "IpcMode": "private",
        "ShmSize": max(64 * 2**20, workload.memory_bytes // 4),
    }
    real = [uuid for uuid in workload.gpu_uuids if not uuid.startswith(SIMULATED_PREFIX)]
    if real:
        config["DeviceRequests"] = [
            {
                "Driver": "nvidia",
                "Count": 0,
                "DeviceIDs": real,
                "Capabilities": [["gpu", "compute", "utility"]],
            }
        ]
    return config


def _mounts(placement: Placement) -> list[dict[str, Any]]:
    home = {"Type": "bind", "Source": placement.home, "Target": HOME, "ReadOnly": False}
    if SSH not in placement.endpoints:
        return [home]
    return [home, {"Type": "bind", "Source": placement.keys, "Target": KEYS, "ReadOnly": True}]


def _is_root(image_user: str) -> bool:
    return image_user.split(":")[0] in ("", "root", "0")


def network_config(workload: Workload, *, host_id: str, epoch: int, subnet: str) -> dict[str, Any]:
    """A bridge of its own: nothing else is on it."""
    return {
        "Name": container_name(workload.id),
        "Driver": "bridge",
        "CheckDuplicate": True,
        "IPAM": {"Driver": "default", "Config": [{"Subnet": subnet}]},
        "Options": {
            "com.docker.network.bridge.name": bridge_name(workload.id),
            "com.docker.network.bridge.enable_icc": "false",
        },
        "Labels": labels(workload, host_id=host_id, epoch=epoch),
    }
