"""What a registration says of this machine."""

from __future__ import annotations

import ipaddress
import os
import platform
import socket
from dataclasses import dataclass
from pathlib import Path

import psutil

from remotegpu.types.agent import Inventory
from remotegpu_agent.gpus import GpuInventory
from remotegpu_agent.runtime import Health, Runtime, RuntimeUnavailable
from remotegpu_agent.settings import Settings


def machine_id() -> str:
    """``/etc/machine-id``, or the host name on systems without one."""
    for path in ("/etc/machine-id", "/var/lib/dbus/machine-id"):
        try:
            return Path(path).read_text().strip() or socket.gethostname()
        except OSError:
            continue
    return socket.gethostname()


def boot_id() -> str:
    """Changes with every start of the machine: proof that nothing of the last one runs."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What a host is made of, GPUs apart."""

    hostname: str
    os: str
    kernel: str
    cpus: int
    memory_bytes: int
    boot_id: str
    """Another one is proof that nothing of before runs any more."""


def this_machine() -> Machine:
    return Machine(
        hostname=socket.gethostname(),
        os=_os_name(),
        kernel=platform.release(),
        cpus=os.cpu_count() or 1,
        memory_bytes=psutil.virtual_memory().total,
        boot_id=boot_id(),
    )


async def take_inventory(
    settings: Settings, *, machine: Machine, runtime: Runtime, health: Health, gpus: GpuInventory
) -> Inventory:
    try:
        images = await runtime.images() if health.healthy else []
    except RuntimeUnavailable:
        images = []
    detail = health.detail if gpus.reason is None else f"{health.detail}; no GPUs: {gpus.reason}"
    return Inventory(
        hostname=machine.hostname,
        os=machine.os,
        kernel=machine.kernel,
        cpus=machine.cpus,
        memory_bytes=machine.memory_bytes,
        disk_total_bytes=psutil.disk_usage(str(settings.home_root)).total,
        gpus=gpus.gpus,
        driver_version=gpus.driver_version,
        cuda_version=gpus.cuda_version,
        runtime=runtime.kind,
        runtime_healthy=health.healthy,
        runtime_detail=detail[:256],
        images=images,
        address=settings.address,
        shared_home=settings.shared_home_name,
        metrics_address=_metrics_address(settings),
    )


def _metrics_address(settings: Settings) -> str | None:
    if settings.metrics_listen is None:
        return None
    host, port = settings.metrics_listen
    # Listening everywhere says nothing of where others find it: they use the host's own address.
    if ipaddress.ip_address(host).is_unspecified:
        host = settings.address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _os_name() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return platform.system()
