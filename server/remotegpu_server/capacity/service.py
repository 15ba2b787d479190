"""The inventory of all hosts, as placement and the capacity page see it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased

from remotegpu.types.hosts import Capacity, MigCapacity, ModelCapacity
from remotegpu_server.capacity import fleets
from remotegpu_server.db import tables
from remotegpu_server.placement import Fleet, GpuInventory, HostInventory

_ALL = 2**50
"""More than the memory of any GPU: what a whole allocation takes of it."""


def not_ready_reason(host: tables.Host, *, returning: bool) -> str | None:
    """Why the host takes no new work, or ``None``: the only place that decides it.

    ``returning``: it comes back from a dedication that has ended, see :func:`returns`.
    """
    if host.connection == "never" or host.inventory is None:
        return "no agent has joined yet"
    if host.connection in ("unreachable", "lost"):
        return "the host is silent"
    if host.connection == "suspect":
        return "heartbeats are missing"
    if host.operational != "available":
        return _OPERATIONAL[host.operational]
    if not host.runtime_healthy:
        return f"the {host.runtime} runtime is not healthy: {host.runtime_detail or 'no detail'}"
    if host.health == "faulty":
        return f"the host is faulty: {host.health_reason}"
    if returning:
        return "its dedication has ended and it is being cleaned up"
    return None


_OPERATIONAL = {
    "pending": "not in service yet",
    "cordoned": "cordoned by an admin",
    "draining": "being emptied by an admin",
    "maintenance": "in maintenance",
    "retired": "retired",
}


def returns() -> ColumnElement[bool]:
    """Whether the host's dedication is in its grace or being cleaned up after."""
    row = tables.Dedication
    return (
        select(row.id)
        .where(row.host_id == tables.Host.id, row.status.in_(["grace", "cleaning"]))
        .correlate(tables.Host)
        .exists()
    )


def takes_work() -> ColumnElement[bool]:
    """The same as SQL, for lists that filter by it; a test compares the two."""
    host = tables.Host
    return (
        (host.connection == "online")
        & host.inventory.is_not(None)
        & (host.operational == "available")
        & host.runtime_healthy
        & (host.health != "faulty")
        & ~returns()
    )


async def inventory(db: AsyncSession, *, host_ids: Sequence[str] | None = None) -> list[HostInventory]:
    """Every host that has registered, or some of them, with what is free on it now."""
    found = select(tables.Host).where(tables.Host.inventory.is_not(None)).order_by(tables.Host.id)
    if host_ids is not None:
        found = found.where(tables.Host.id.in_(host_ids))
    return await of_hosts(db, hosts=(await db.scalars(found.execution_options(populate_existing=True))).all())


async def of_hosts(db: AsyncSession, *, hosts: Sequence[tables.Host]) -> list[HostInventory]:
    """The same of rows that are at hand."""
    ids = [host.id for host in hosts]
    gpus = await _gpus_by_host(db, host_ids=ids)
    used = await _used_by_host(db, host_ids=ids)
    lent = await _dedications(db, host_ids=ids)
    return [
        _host_inventory(host, gpus[host.id], used.get(host.id, (0.0, 0, 0)), lent.get(host.id))
        for host in hosts
    ]


async def fleet(db: AsyncSession) -> Fleet:
    """All hosts as placement scores them, shared by this process: read it, :meth:`Fleet.copy` it to try."""
    return await fleets.current(db, _load)


async def _load(db: AsyncSession, host_ids: Sequence[str] | None) -> list[HostInventory]:
    return await inventory(db, host_ids=host_ids)


def _host_inventory(
    host: tables.Host,
    gpus: list[GpuInventory],
    used: tuple[float, int, int],
    lent: tables.Dedication | None,
) -> HostInventory:
    cpus_used, memory_used, placements = used
    reason = not_ready_reason(host, returning=lent is not None and lent.status != "active")
    images = host.inventory.get("images", []) if host.inventory else []
    return HostInventory(
        id=host.id,
        name=host.name,
        ready=reason is None,
        not_ready_reason=reason,
        runtime=host.runtime or "",
        cpus=float(host.cpus or 0),
        memory_bytes=host.memory_bytes or 0,
        cpus_free=(host.cpus or 0) - cpus_used,
        memory_free_bytes=(host.memory_bytes or 0) - memory_used,
        gpus=tuple(gpus),
        shared_home=host.shared_home,
        images=frozenset(images),
        labels=host.labels,
        live_placements=placements,
        dedicated_customer_id=lent.customer_id if lent else None,
        dedicated_workspace_id=lent.workspace_id if lent else None,
    )


async def _dedications(db: AsyncSession, *, host_ids: Sequence[str]) -> dict[str, tables.Dedication]:
    """The live dedication of each host; an index lets a host have one."""
    row = tables.Dedication
    found = select(row).where(row.host_id.in_(host_ids), row.status.in_(["active", "grace", "cleaning"]))
    return {one.host_id: one for one in await db.scalars(found.execution_options(populate_existing=True))}


async def _gpus_by_host(db: AsyncSession, *, host_ids: Sequence[str]) -> dict[str, list[GpuInventory]]:
    """GPUs that may take work: not the ones that are missing, nor those that are divided."""
    gpu, held = tables.Gpu, tables.Allocation
    promised = (
        select(held.gpu_id, func.sum(func.coalesce(held.memory_bytes, _ALL)).label("memory_bytes"))
        .where(held.host_id.in_(host_ids), held.released_at.is_(None))
        .group_by(held.gpu_id)
        .subquery()
    )
    parent = aliased(gpu)
    rows = await db.execute(
        select(gpu, promised.c.memory_bytes, parent.health)
        .outerjoin(promised, promised.c.gpu_id == gpu.id)
        .outerjoin(parent, parent.uuid == gpu.parent_uuid)
        .where(gpu.host_id.in_(host_ids), gpu.health != "missing", ~gpu.mig_enabled)
        .execution_options(populate_existing=True)
    )
    found: dict[str, list[GpuInventory]] = defaultdict(list)
    for one, taken, parent_health in rows:
        healthy = one.health == "healthy" and parent_health in (None, "healthy")
        found[one.host_id].append(_gpu_inventory(one, taken=int(taken or 0) if healthy else _ALL))
    return found


def _gpu_inventory(gpu: tables.Gpu, *, taken: int) -> GpuInventory:
    return GpuInventory(
        id=gpu.id,
        model=gpu.model,
        index=gpu.index,
        memory_total_bytes=gpu.memory_total_bytes,
        memory_free_bytes=max(gpu.memory_total_bytes - taken, 0),
        simulated=gpu.simulated,
        numa_node=gpu.numa_node,
        nvlink_group=gpu.nvlink_group,
        mig_profile=gpu.mig_profile,
        fraction=gpu.gpu_fraction,
    )


async def _used_by_host(db: AsyncSession, *, host_ids: Sequence[str]) -> dict[str, tuple[float, int, int]]:
    held = tables.Placement
    rows = await db.execute(
        select(held.host_id, func.sum(held.cpus), func.sum(held.memory_bytes), func.count())
        .where(held.host_id.in_(host_ids), held.released_at.is_(None))
        .group_by(held.host_id)
    )
    return {host_id: (float(cpus), int(memory), count) for host_id, cpus, memory, count in rows}


async def get_capacity(db: AsyncSession) -> Capacity:
    """What could start now, by model and on the roomiest host."""
    hosts = await inventory(db)
    ready = [host for host in hosts if host.ready]
    total = await db.scalar(select(func.count()).select_from(tables.Host)) or 0
    waiting, tasks = (
        select(func.count()).select_from(row).where(row.status == "pending").scalar_subquery()
        for row in (tables.Environment, tables.Task)
    )
    pending_environments, pending_tasks = (await db.execute(select(waiting, tasks))).one()
    kinds = await _kinds(db)
    return Capacity(
        gpu_models=[_model(kind, ready) for kind in kinds if kind.mig_profile is None],
        mig_profiles=[_profile(kind, ready) for kind in kinds if kind.mig_profile is not None],
        cpus_free_on_one_host=max((max(host.cpus_free, 0.0) for host in ready), default=0.0),
        memory_free_bytes_on_one_host=max((max(host.memory_free_bytes, 0) for host in ready), default=0),
        hosts_ready=len(ready),
        hosts_total=total,
        pending_environments=pending_environments,
        pending_tasks=pending_tasks,
    )


class _Kind(NamedTuple):
    """GPUs that stand in one line: real and simulated ones of a model are never added up."""

    model: str
    simulated: bool
    mig_profile: str | None
    memory_total_bytes: int
    total: int

    def on(self, host: HostInventory) -> list[GpuInventory]:
        """Those of one host, free or not."""
        wanted = (self.model, self.simulated, self.mig_profile)
        return [gpu for gpu in host.gpus if (gpu.model, gpu.simulated, gpu.mig_profile) == wanted]


async def _kinds(db: AsyncSession) -> list[_Kind]:
    """All that there is, also on hosts that take no work now."""
    gpu = tables.Gpu
    rows = await db.execute(
        select(gpu.model, gpu.simulated, gpu.mig_profile, func.max(gpu.memory_total_bytes), func.count())
        .where(gpu.health != "missing", ~gpu.mig_enabled)
        .group_by(gpu.model, gpu.simulated, gpu.mig_profile)
        .order_by(gpu.model, gpu.mig_profile, gpu.simulated)
    )
    return [_Kind(*row) for row in rows]


def _model(kind: _Kind, ready: Sequence[HostInventory]) -> ModelCapacity:
    free = _free(kind, ready)
    return ModelCapacity(
        model=kind.model,
        memory_total_bytes=kind.memory_total_bytes,
        simulated=kind.simulated,
        total=kind.total,
        free=sum(free),
        largest_free_on_one_host=max(free, default=0),
        largest_free_share_bytes=max(
            (gpu.memory_free_bytes for host in ready for gpu in kind.on(host)), default=0
        ),
    )


def _profile(kind: _Kind, ready: Sequence[HostInventory]) -> MigCapacity:
    assert kind.mig_profile is not None
    free = _free(kind, ready)
    return MigCapacity(
        profile=kind.mig_profile,
        model=kind.model,
        memory_total_bytes=kind.memory_total_bytes,
        simulated=kind.simulated,
        total=kind.total,
        free=sum(free),
        largest_free_on_one_host=max(free, default=0),
    )


def _free(kind: _Kind, ready: Sequence[HostInventory]) -> list[int]:
    """Free ones by host."""
    return [sum(gpu.free for gpu in kind.on(host)) for host in ready]
