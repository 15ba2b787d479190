"""What the page shows, asked of the server on behalf of whoever looks."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from remotegpu import AsyncClient
from remotegpu.types.environments import Environment
from remotegpu.types.hosts import Capacity, Gpu, Host
from remotegpu.types.quotas import QuotaLine

LONGEST_LIST = 200
"""GPUs and hosts on one page; with more, one host is looked at."""


@dataclass(frozen=True)
class View:
    """Everything on the page."""

    system_name: str
    capacity: Capacity
    quota: list[QuotaLine]
    environments: list[Environment]
    hosts: list[Host] = field(default_factory=list)
    gpus: list[Gpu] = field(default_factory=list)
    more_gpus: bool = False

    @property
    def simulated(self) -> bool:
        """Whether any GPU here is simulated."""
        return any(model.simulated for model in self.capacity.gpu_models)


async def load(client: AsyncClient, *, username: str, admin: bool, host: str | None) -> View:
    """`client` acts for `username`. :raises RemoteGPUError: the server refuses, or does not answer."""
    system_name, capacity, quota, environments = await asyncio.gather(
        client.settings.get("system.name"),
        client.capacity.get(),
        client.quotas.mine(),
        client.environments.list(owner=username, limit=LONGEST_LIST),
    )
    own = [one for one in environments.items if one.owner == username]
    if not admin:
        return View(str(system_name.value), capacity, quota.lines, own)
    hosts, gpus = await asyncio.gather(
        client.hosts.list(limit=LONGEST_LIST), client.gpus.list(host=host, limit=LONGEST_LIST)
    )
    return View(
        str(system_name.value),
        capacity,
        quota.lines,
        own,
        hosts.items,
        gpus.items,
        gpus.next_cursor is not None,
    )
