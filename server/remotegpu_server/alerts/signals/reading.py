"""A reading of a signal, what signals look at, and how one is declared."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from remotegpu_server.db import tables
from remotegpu_server.db.samples import Sample, newest
from remotegpu_server.settings import Settings

_host, _gpu = tables.Host, tables.Gpu
UNEXPECTED = ("maintenance", "retired")
"""Hosts of which nothing is expected."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """The value of a signal for one object now."""

    object_id: str
    name: str
    value: float | None
    detail: str = ""
    """Said in brackets behind the value."""
    host_labels: dict[str, Any] = field(default_factory=dict)
    user_id: str | None = None
    """Whose it is: they see the alert, and are told where the signal says so."""
    customer_id: str | None = None
    workspace_id: str | None = None


@dataclass(frozen=True, slots=True)
class GpuNow:
    """A GPU, its host, and what its newest sample says; ``None``: nothing at all."""

    gpu: tables.Gpu
    host: tables.Host
    sample: dict[str, Any] | None

    def reading(self, value: float | None, detail: str = "") -> Reading:
        name = f"GPU {self.gpu.index} of {self.host.name}"
        return Reading(
            object_id=self.gpu.id,
            name=f"{name} (simulated)" if self.gpu.simulated else name,
            host_labels=self.host.labels,
            value=value,
            detail=detail,
        )


class View:
    """What the signals of one pass look at; what several of them need is read once."""

    def __init__(self, db: AsyncSession, settings: Settings) -> None:
        self.db = db
        self.settings = settings
        self._hosts: list[tables.Host] | None = None
        self._samples: dict[str, Sample] | None = None
        self._gpus: list[GpuNow] | None = None

    async def hosts(self) -> list[tables.Host]:
        """Those of which something is expected."""
        if self._hosts is None:
            found = await self.db.scalars(select(_host).where(_host.operational.not_in(UNEXPECTED)))
            self._hosts = list(found)
        return self._hosts

    async def samples(self) -> dict[str, Sample]:
        """The newest of each of these hosts, by its id; none of a silent one."""
        if self._samples is None:
            ids = [host.id for host in await self.hosts()]
            self._samples = await newest(self.db, host_ids=ids)
        return self._samples

    async def gpus(self) -> list[GpuNow]:
        """Of these hosts."""
        if self._gpus is None:
            hosts = {host.id: host for host in await self.hosts()}
            samples = await self.samples()
            rows = await self.db.scalars(select(_gpu).where(_gpu.host_id.in_(hosts)))
            self._gpus = [
                GpuNow(
                    gpu,
                    hosts[gpu.host_id],
                    samples[gpu.host_id].gpus.get(gpu.uuid) if gpu.host_id in samples else None,
                )
                for gpu in rows
            ]
        return self._gpus


Read = Callable[[View], Awaitable[Sequence[Reading]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Signal:
    """Something that rules can be about."""

    name: str
    object_type: str
    unit: str
    description: str
    advice: str
    read: Read
    maximum: float
    minimum: float = 0.0
    every_s: float = 5.0
    tells_user: bool = False
    """Whether the object's user is told, besides admins."""


SIGNALS: dict[str, Signal] = {}


def signal(**given: Any) -> Callable[[Read], Read]:
    """Declare what the decorated function reads."""

    def declare(read: Read) -> Read:
        SIGNALS[given["name"]] = Signal(read=read, **given)
        return read

    return declare


def percent(part: Any, whole: Any) -> float | None:
    """``None`` where one of them is not known."""
    return 100.0 * float(part) / float(whole) if part is not None and whole else None
