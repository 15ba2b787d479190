"""How workloads run on this machine: Docker where an engine answers, else processes."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from remotegpu_server.standalone.failure import StepFailed

_DEFAULT_SOCKET = "unix:///var/run/docker.sock"
_DEFAULT_SIMULATED = "2xA100-80GB"
_COUNT_GPUS = "import pynvml; pynvml.nvmlInit(); print(pynvml.nvmlDeviceGetCount())"
_SIOCGIFADDR = 0x8915
"""linux/sockios.h: the IPv4 address of an interface."""
EVALUATION = "notebooks are processes of this machine, not isolated from it: for evaluation only"


@dataclass(frozen=True)
class Runtime:
    """What runs workloads here, and why."""

    kind: str
    detail: str
    bridge: str | None = None
    """This machine's address on Docker's bridge, where containers reach hub and server."""


def detect(environ: Mapping[str, str]) -> Runtime:
    """Obey ``REMOTEGPU_RUNTIME`` (docker, process), else look. Raises StepFailed."""
    wanted = environ.get("REMOTEGPU_RUNTIME", "auto")
    if wanted not in ("auto", "docker", "process"):
        raise StepFailed("runtime", f"REMOTEGPU_RUNTIME is {wanted!r}", "Use auto, docker or process.")
    if wanted == "process":
        return Runtime("process", f"as REMOTEGPU_RUNTIME says; {EVALUATION}")
    docker, problem = _docker(environ)
    if docker is not None:
        return docker
    if wanted == "docker":
        raise StepFailed(
            "runtime", problem, "Start Docker, or leave REMOTEGPU_RUNTIME out to run without it."
        )
    return Runtime("process", f"{problem}; {EVALUATION}")


def simulated_gpus(environ: Mapping[str, str]) -> str | None:
    """What the agent shall simulate: ``REMOTEGPU_SIMULATE_GPUS``, else something where NVML finds no GPU."""
    wanted = environ.get("REMOTEGPU_SIMULATE_GPUS")
    if wanted is not None:
        return None if wanted in ("", "none") else wanted
    return None if _real_gpus() else _DEFAULT_SIMULATED


def engine(environ: Mapping[str, str]) -> httpx.Client:
    """A client of the Docker Engine API; nothing is sent yet."""
    address = environ.get("DOCKER_HOST") or _DEFAULT_SOCKET
    scheme, _, rest = address.partition("://")
    if scheme == "unix":
        return httpx.Client(transport=httpx.HTTPTransport(uds=rest), base_url="http://docker", timeout=10)
    return httpx.Client(base_url=f"http://{rest}", timeout=10)


def remove_containers(environ: Mapping[str, str], host_id: str) -> int:
    """Remove what is left of a host's containers; answers how many there were."""
    with engine(environ) as docker:
        chosen = json.dumps({"label": [f"org.remotegpu.host={host_id}"]})
        left = (
            docker.get("/containers/json", params={"all": "true", "filters": chosen})
            .raise_for_status()
            .json()
        )
        for container in left:
            docker.delete(f"/containers/{container['Id']}", params={"force": "true", "v": "true"})
    return len(left)


def _docker(environ: Mapping[str, str]) -> tuple[Runtime | None, str]:
    try:
        with engine(environ) as docker:
            version = docker.get("/version").raise_for_status().json()["Version"]
            bridge = _gateway(docker.get("/networks/bridge").raise_for_status().json())
    except (httpx.HTTPError, ValueError, KeyError) as error:
        return None, f"no Docker engine answers ({error})"
    if bridge is None or not _is_here(bridge):
        return None, f"Docker {version} answers, but its bridge address {bridge} is not on this machine"
    return Runtime("docker", f"Docker {version}", bridge=bridge), ""


def _gateway(network: dict[str, Any]) -> str | None:
    """The bridge's own address; before its first container an engine leaves it out, the interface has it."""
    for entry in network["IPAM"]["Config"] or []:
        gateway = entry.get("Gateway", "")
        if "." in gateway:
            return str(gateway)
    return _interface_address((network.get("Options") or {}).get("com.docker.network.bridge.name", "docker0"))


def _interface_address(interface: str) -> str | None:
    request = struct.pack("256s", interface.encode()[:15])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, request)
        except OSError:
            return None
    return socket.inet_ntoa(answer[20:24])


def _is_here(address: str) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True


def _real_gpus() -> int:
    """Ask in a process of its own: a broken driver may crash whoever loads it."""
    answer = subprocess.run(
        [sys.executable, "-c", _COUNT_GPUS], capture_output=True, text=True, check=False, env=dict(os.environ)
    )
    return int(answer.stdout) if answer.returncode == 0 else 0
