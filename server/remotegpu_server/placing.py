"""Taking capacity: quota, host and GPUs in one transaction, or the reason why not.

What asks is an environment or a task: their rows have the same columns for it.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import structlog
from psycopg import errors as pg_errors
from sqlalchemy import func, insert, select, text
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession

from remotegpu.types.environments import Reason
from remotegpu.types.quotas import QuotaResource
from remotegpu_server import holds, placement
from remotegpu_server.capacity import service as capacity
from remotegpu_server.crypto import Vault
from remotegpu_server.db import tables
from remotegpu_server.quotas import service as quotas
from remotegpu_server.reservations import enforcement as reservations
from remotegpu_server.reservations.promises import PoolGpu

RACES = 3
"""Whole attempts after a lost race that the database decided."""
HOSTS_TRIED = 8
"""Choices that turned out taken when their host was locked, before the request waits instead."""
_log = structlog.get_logger(__name__)

Ask: TypeAlias = tables.Environment | tables.Task
"""What wants a place."""
Holder: TypeAlias = Callable[[AsyncSession, tables.Host, int], Awaitable[dict[str, str]]]
"""Given the host and the number of the place among those of the ask, makes the row that will hold it if there
is none yet, and answers the column of placements that names it."""


@dataclass(frozen=True, slots=True)
class Launch:
    """What a start needs of the server's settings."""

    vault: Vault
    workload_url: str


async def request_for(db: AsyncSession, *, ask: Ask, image: tables.Image) -> placement.Request:
    """What is asked for as placement sees it, with the owner's homes."""
    volume = tables.Volume
    homes = await db.execute(
        select(volume.host_id, volume.shared_home)
        .where(volume.owner_id == ask.owner_id, volume.removal_requested_at.is_(None))
        .order_by(volume.last_used_at.desc(), volume.id)
    )
    return request_of(ask, image, tuple(placement.Home(*home) for home in homes))


def request_of(ask: Ask, image: tables.Image, homes: tuple[placement.Home, ...] = ()) -> placement.Request:
    """What is asked for as placement sees it."""
    return placement.Request(
        gpus=ask.gpus,
        gpu_models=tuple(ask.gpu_models),
        gpu_memory_bytes=ask.gpu_memory_bytes,
        min_gpu_memory_bytes=ask.min_gpu_memory_bytes,
        max_gpu_memory_bytes=ask.max_gpu_memory_bytes,
        mig_profile=ask.mig_profile,
        host_labels=tuple(sorted(ask.host_labels.items())),
        cpus=ask.cpus,
        memory_bytes=ask.memory_bytes,
        runtime=image.runtime,
        image_reference=image.reference,
        local_image=image.local,
        homes=homes,
        customer_id=ask.customer_id,
        workspace_id=ask.workspace_id,
        nodes=nodes_of(ask),
    )


def nodes_of(ask: Ask) -> int:
    """On how many hosts it runs at once."""
    return ask.nodes if isinstance(ask, tables.Task) else 1


def fraction(request: placement.Request, gpu: placement.GpuInventory) -> float:
    """How much of a GPU the request's part of this one counts as."""
    if request.gpu_memory_bytes is None:
        return gpu.fraction
    return min(1.0, request.gpu_memory_bytes / gpu.memory_total_bytes)


def adding(ask: Ask, *, gpu_fraction: float) -> dict[QuotaResource, float]:
    """What a start takes of the limits, if each of its GPUs counts as this much."""
    of_its_kind = QuotaResource.TASKS if isinstance(ask, tables.Task) else QuotaResource.ENVIRONMENTS
    nodes = nodes_of(ask)
    return {
        QuotaResource.GPUS: nodes * ask.gpus * gpu_fraction,
        of_its_kind: 1,
        QuotaResource.CPUS: nodes * ask.cpus,
        QuotaResource.MEMORY_BYTES: nodes * ask.memory_bytes,
    }


async def take(
    db: AsyncSession,
    *,
    ask: Ask,
    image: tables.Image,
    ahead: Sequence[placement.Ahead],
    holder: Holder,
) -> tuple[placement.Choice, ...] | placement.Refusal:
    """Hold a place for what asks, on each of its hosts or on none, or say why there is none.

    Raises :class:`QuotaExceeded`. A race that the database decides against us is tried again; it is never an
    error of the request.
    """
    for attempt in range(1, RACES + 1):
        try:
            async with db.begin_nested():
                return await _take(db, ask=ask, image=image, ahead=ahead, holder=holder)
        except DBAPIError as error:
            if not _lost_race(error):
                raise
            _log.info("placement_race_lost", ask=ask.id, attempt=attempt)
            await asyncio.sleep(random.uniform(0.005, 0.03) * attempt)  # noqa: S311
    return _contended()


def _contended() -> placement.Refusal:
    return placement.Refusal(
        satisfiable=True,
        reason=Reason.NO_FREE_GPU,
        detail="Others took what was free at the same moment.",
        hint="Try again.",
    )


def _lost_race(error: DBAPIError) -> bool:
    """A unique index, a deadlock, a lock held too long: somebody else was first."""
    return isinstance(
        error.orig,
        pg_errors.UniqueViolation
        | pg_errors.ExclusionViolation
        | pg_errors.DeadlockDetected
        | pg_errors.SerializationFailure
        | pg_errors.LockNotAvailable,
    )


class Taken(Exception):
    """The chosen host, once locked, has not what the choice saw. A holder may say so too."""


async def _take(
    db: AsyncSession,
    *,
    ask: Ask,
    image: tables.Image,
    ahead: Sequence[placement.Ahead],
    holder: Holder,
) -> tuple[placement.Choice, ...] | placement.Refusal:
    """Lock quotas, choose, lock the hosts, look again, insert. Lock order: quotas, promises, hosts, GPUs."""
    subjects = await quotas.subjects_of(db, user_id=ask.owner_id, workspace_id=ask.workspace_id)
    request = await request_for(db, ask=ask, image=image)
    # What needs no GPU takes nothing of what is promised, and counts as none.
    least = (await capacity.fleet(db)).least_fraction(request) if ask.gpus else 0.0
    wanted = adding(ask, gpu_fraction=least)
    await quotas.check(db, subjects=subjects, adding=wanted, environment_id=ask.id)
    kept = (await reservations.look_and_hold(db)).withheld_from(ask) if ask.gpus else frozenset()
    for _ in range(HOSTS_TRIED):
        fleet = await capacity.fleet(db)
        choices = placement.choose_all(request, reservations.without(fleet, kept), ahead=ahead)
        if isinstance(choices, placement.Refusal):
            if kept and not isinstance(placement.choose_all(request, fleet, ahead=ahead), placement.Refusal):
                return reservations.refusal(kept)
            return choices
        parts = [fraction(request, gpu) for choice in choices for gpu in choice.gpus]
        counts = max(parts, default=least)
        if counts > least:
            wanted = adding(ask, gpu_fraction=counts)
            await quotas.check(db, subjects=subjects, adding=wanted, environment_id=ask.id)
        try:
            async with db.begin_nested():  # gives the hosts' locks back when one is the wrong one
                hosts = {
                    host_id: await holds.lock_host(db, host_id=host_id)
                    for host_id in sorted(choice.host.id for choice in choices)
                }
                return tuple(
                    [
                        await _take_on(
                            db,
                            ask=ask,
                            request=request,
                            host=hosts[choice.host.id],
                            number=number,
                            note=choice.home_note,
                            ahead=ahead,
                            mix=fleet.mix,
                            kept=kept,
                            most=max(counts, least),
                            holder=holder,
                        )
                        for number, choice in enumerate(choices)
                    ]
                )
        except Taken:
            continue
    return _contended()


async def _take_on(
    db: AsyncSession,
    *,
    ask: Ask,
    request: placement.Request,
    host: tables.Host | None,
    number: int,
    note: str | None,
    ahead: Sequence[placement.Ahead],
    mix: placement.Mix,
    kept: frozenset[PoolGpu],
    most: float,
    holder: Holder,
) -> placement.Choice:
    """Take what the locked host has now. ``most``: what the quota allows each GPU to count as."""
    if host is None or host.inventory is None:
        raise Taken
    there = placement.Fleet(await capacity.of_hosts(db, hosts=[host]), mix=mix)
    choice = placement.choose(request, reservations.without(there, kept), ahead=ahead)
    if isinstance(choice, placement.Refusal) or any(fraction(request, gpu) > most for gpu in choice.gpus):
        raise Taken
    if gpu_ids := [gpu.id for gpu in choice.gpus]:
        await db.execute(
            select(tables.Gpu.id)
            .where(tables.Gpu.id.in_(gpu_ids))
            .order_by(tables.Gpu.id)
            .with_for_update(key_share=True)
        )
    held = {
        **await holder(db, host, number),
        "host_id": host.id,
        "user_id": ask.owner_id,
        "customer_id": ask.customer_id,
        "workspace_id": ask.workspace_id,
    }
    placement_id = tables.new_id("plc")
    await db.execute(
        insert(tables.Placement).values(
            id=placement_id,
            generation=ask.generation,
            volume_id=await _home(db, owner_id=ask.owner_id, host=host),
            cpus=ask.cpus,
            memory_bytes=ask.memory_bytes,
            queued_at=ask.queued_at,
            **held,
        )
    )
    if choice.gpus:
        rows = [
            {
                "id": tables.new_id("alc"),
                "gpu_id": gpu.id,
                "memory_bytes": request.gpu_memory_bytes,
                "gpu_fraction": fraction(request, gpu),
                "placement_id": placement_id,
                **held,
            }
            for gpu in choice.gpus
        ]
        await db.execute(insert(tables.Allocation), rows)
    return replace(choice, home_note=note)


async def _home(db: AsyncSession, *, owner_id: str, host: tables.Host) -> str:
    """The owner's volume that this host reaches, made when there is none."""
    volume = tables.Volume
    shared = host.shared_home is not None
    made = upsert(volume).values(
        id=tables.new_id("vol"),
        owner_id=owner_id,
        host_id=None if shared else host.id,
        shared_home=host.shared_home,
    )
    column = "shared_home" if shared else "host_id"
    volume_id: str | None = await db.scalar(
        made.on_conflict_do_update(
            index_elements=["owner_id", column],
            index_where=text(f"{column} IS NOT NULL AND removal_requested_at IS NULL"),
            set_={"last_used_at": func.now()},
        ).returning(volume.id)
    )
    assert volume_id is not None
    return volume_id


def seal_env(vault: Vault, env: dict[str, str]) -> bytes | None:
    """Encrypted; ``None`` for nothing."""
    return vault.seal(json.dumps(env).encode()) if env else None


def open_env(vault: Vault, sealed: bytes | None) -> dict[str, str]:
    """The variables; empty when there are none or the server's key was replaced."""
    plain = vault.open(sealed) if sealed else None
    result: dict[str, str] = json.loads(plain) if plain else {}
    return result
