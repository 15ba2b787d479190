"""A task's turn in the queue: place it and make its attempt, or renew the reason why it waits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Text, any_, bindparam, insert, select, update
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.ext.asyncio import AsyncSession

from remotegpu.errors import QuotaExceeded
from remotegpu.types.environments import Reason
from remotegpu.types.identity import Scope, TokenKind
from remotegpu_server import placement, placing
from remotegpu_server.attempts import tries
from remotegpu_server.authz import SYSTEM, Actor
from remotegpu_server.db import tables
from remotegpu_server.db.notify import notify
from remotegpu_server.placement import words
from remotegpu_server.placing import Launch
from remotegpu_server.reservations import enforcement as reservations
from remotegpu_server.tasks import lifecycle
from remotegpu_server.tokens import service as tokens

CLAIMABLE = "claimable:{host_id}"
"""Hint that an attempt waits to be claimed by a host."""


async def start(db: AsyncSession, *, task_id: str, ahead: Sequence[placement.Ahead], launch: Launch) -> bool:
    """Place one pending task, or renew the reason why it waits: False. A suspended account starts nothing."""
    row, user, customer = tables.Task, tables.User, tables.Customer
    found = (
        await db.execute(
            select(row, tables.Image, (user.status == "active") & (customer.status == "active"))
            .join(tables.Image, tables.Image.id == row.image_id)
            .join(user, user.id == row.owner_id)
            .join(customer, customer.id == user.customer_id)
            .where(row.id == task_id, row.status == "pending")
            .with_for_update(read=True, of=(user, customer))
            .execution_options(populate_existing=True)
        )
    ).one_or_none()
    if found is None:
        return True
    task, image, active = found
    if not active:
        await lifecycle.move(
            db,
            task=task,
            to=lifecycle.Status.CANCELLED,
            reason=Reason.SUSPENDED,
            message="Not started, because the account is suspended.",
            actor=SYSTEM,
        )
        return True
    try:
        refusal = await place(db, task=task, image=image, ahead=ahead, launch=launch, actor=SYSTEM)
    except QuotaExceeded as refused:
        await _still_waits(db, task, Reason.QUOTA, str(refused))
        return False
    if refusal is not None:
        await _still_waits(db, task, refusal.reason, refusal.detail)
    return refusal is None


async def wait(db: AsyncSession, *, task_ids: Sequence[str], reason: Reason, message: str) -> None:
    """They still wait, and for something else: an array is told at once."""
    row = tables.Task
    still = (
        select(row.id)
        .where(row.id == any_(bindparam("waiting", list(task_ids), ARRAY(Text))), row.status == "pending")
        .order_by(row.id)
        .with_for_update(key_share=True, skip_locked=True)
    )
    told = (
        update(row)
        .where(row.id.in_(still))
        .values(reason=str(reason), message=message)
        .returning(row.id, row.customer_id, row.owner_id, row.workspace_id, row.generation)
        .cte("told")
    )
    pending = lifecycle.Status.PENDING
    await lifecycle.tell_all(
        db, moved=told, before=pending, to=pending, reason=reason, message=message, actor=SYSTEM
    )


async def _still_waits(db: AsyncSession, task: tables.Task, reason: Reason, message: str) -> None:
    if (task.reason, task.message) != (reason, message):
        await lifecycle.move(
            db, task=task, to=lifecycle.Status.PENDING, reason=reason, message=message, actor=SYSTEM
        )


async def place(
    db: AsyncSession,
    *,
    task: tables.Task,
    image: tables.Image,
    ahead: Sequence[placement.Ahead],
    launch: Launch,
    actor: Actor,
) -> placement.Refusal | None:
    """Give a pending task its attempt on a host, or say why not. Raises :class:`QuotaExceeded`."""

    async def holder(db: AsyncSession, host: tables.Host, rank: int) -> dict[str, str]:
        return {"attempt_id": await _attempt(db, task=task, host=host, rank=rank, launch=launch)}

    found = await placing.take(db, ask=task, image=image, ahead=ahead, holder=holder)
    if isinstance(found, placement.Refusal):
        return found
    gpus = found[0].gpus
    what = f" with {len(gpus)} x {gpus[0].model}{' each' if len(found) > 1 else ''}" if gpus else ""
    where = words.all_of([one.host.name for one in found])
    await lifecycle.move(
        db,
        task=task,
        to=lifecycle.Status.ASSIGNED,
        reason=Reason.PLACED,
        message=f"Placed on {where}{what}.",
        actor=actor,
        started_at=None,
        exit_code=None,
        outlook=None,
    )
    for one in found:
        notify(db, CLAIMABLE.format(host_id=one.host.id))
    if task.reservation_id is not None:
        await reservations.used(db, reservation_id=task.reservation_id)
    return None


async def _attempt(
    db: AsyncSession, *, task: tables.Task, host: tables.Host, rank: int, launch: Launch
) -> str:
    """The row of the attempt, with a token of its own, and of rank 0 of several with a port of its own."""
    attempt_id = tables.new_id("att")
    secret = tokens.new_secret(TokenKind.WORKLOAD)
    own = {
        "REMOTEGPU_TOKEN": secret,
        "REMOTEGPU_URL": launch.workload_url,
        "REMOTEGPU_TASK_ID": task.id,
    }
    await db.execute(
        insert(tables.Attempt).values(
            id=attempt_id,
            task_id=task.id,
            number=task.generation,
            rank=rank,
            host_id=host.id,
            secret_env=placing.seal_env(launch.vault, own),
            **(await _rendezvous(db, host=host) if task.nodes > 1 and rank == 0 else {}),
        )
    )
    await tokens.mint(
        db,
        kind=TokenKind.WORKLOAD,
        scopes=[Scope.NOTEBOOK],
        name=task.name,
        user_id=task.owner_id,
        attempt_id=attempt_id,
        secret=secret,
    )
    return attempt_id


async def _rendezvous(db: AsyncSession, *, host: tables.Host) -> dict[str, Any]:
    """Where rank 0 on this host will be found. Raises :class:`placing.Taken` where all ports are in use."""
    assert host.address is not None, "every agent tells its address when it registers"
    port = await tries.free_port(db, address=host.address)
    if port is None:
        raise placing.Taken
    return {"rendezvous_address": host.address, "rendezvous_port": port}
