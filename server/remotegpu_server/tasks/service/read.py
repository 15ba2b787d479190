"""Reading tasks and their attempts."""

from __future__ import annotations

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from remotegpu.errors import NotFound
from remotegpu.types.tasks import Task, TaskAttempt, TaskStatus
from remotegpu.types.wire import Page
from remotegpu_server import authz
from remotegpu_server.audit import service as audit
from remotegpu_server.authz import Action, Actor
from remotegpu_server.db import tables
from remotegpu_server.quotas.queries import EVERY_ALLOCATION
from remotegpu_server.tasks import convert, queries


async def list_tasks(
    db: AsyncSession,
    *,
    actor: Actor,
    owner: str | None,
    name: str | None,
    workspace: str | None,
    array: str | None,
    labels: dict[str, str],
    statuses: list[TaskStatus],
    limit: int,
    cursor: str | None,
) -> Page[Task]:
    """Newest first."""
    authz.require(actor, Action.TASK_LIST)
    row = tables.Task
    found = select(row.id).where(_visible(actor)).order_by(row.created_at.desc(), row.id.desc())
    if workspace is not None:
        found = found.where(row.workspace_id == workspace)
    if owner is not None:
        users = tables.User
        found = found.join(users, users.id == row.owner_id).where(
            (users.username == owner) | (users.id == owner)
        )
    if name is not None:
        found = found.where(row.name == name)
    if array is not None:
        found = found.where(row.array_id == array)
    if labels:
        found = found.where(row.labels.contains(labels))
    if statuses:
        found = found.where(row.status.in_([str(status) for status in statuses]))
    if cursor is not None:
        last = select(row.created_at).where(row.id == cursor).scalar_subquery()
        found = found.where((row.created_at < last) | ((row.created_at == last) & (row.id < cursor)))
    ids = list((await db.scalars(found.limit(limit + 1))).all())
    found_tasks = await queries.bundles(db, ids=ids[:limit], with_scripts=False)
    items = [convert.to_wire(bundle) for bundle in found_tasks]
    return Page[Task](items=items, next_cursor=ids[limit - 1] if len(ids) > limit else None)


def _visible(actor: Actor) -> ColumnElement[bool]:
    row, sees = tables.Task, authz.visibility(actor)
    if sees.everything:
        return row.id.is_not(None)
    if actor.kind == "workload":
        return (row.owner_id == actor.user_id) & row.workspace_id.in_(list(actor.workspaces))
    found: ColumnElement[bool] = row.workspace_id.in_(sees.workspace_ids)
    return found if sees.customer_id is None else found | (row.customer_id == sees.customer_id)


async def get_task(db: AsyncSession, *, actor: Actor, task_id: str) -> Task:
    """One task; 404 when it is another tenant's."""
    bundle = await visible(db, actor=actor, action=Action.TASK_READ, task_id=task_id)
    if actor.is_admin and bundle.task.workspace_id not in actor.workspaces:
        audit.note(db, read="task")
    return convert.to_wire(bundle)


async def visible(db: AsyncSession, *, actor: Actor, action: Action, task_id: str) -> queries.Bundle:
    """The task, if the actor may do ``action`` with it."""
    found = await queries.bundles(db, ids=[task_id])
    if not found:
        raise NotFound("There is no such task.")
    allow(actor, action, found[0].task)
    return found[0]


async def visible_row(db: AsyncSession, *, actor: Actor, action: Action, task_id: str) -> tables.Task:
    """Its row alone, if the actor may do ``action`` with it. What an admin reads of others is on record."""
    row = tables.Task
    found = await db.scalar(select(row).where(row.id == task_id).execution_options(populate_existing=True))
    if found is None:
        raise NotFound("There is no such task.")
    allow(actor, action, found)
    if actor.is_admin and found.workspace_id not in actor.workspaces:
        audit.note(db, read=str(action))
    return found


def allow(actor: Actor, action: Action, task: tables.Task) -> None:
    """Raise unless the actor may do ``action`` with the task."""
    authz.require(
        actor,
        action,
        user_id=task.owner_id,
        customer_id=task.customer_id,
        workspace_id=task.workspace_id,
        noun="task",
    )


async def list_attempts(
    db: AsyncSession, *, actor: Actor, task_id: str, limit: int, cursor: str | None
) -> Page[TaskAttempt]:
    """The tries of a task, the newest first."""
    await visible(db, actor=actor, action=Action.TASK_READ, task_id=task_id)
    row, held, promised = tables.Attempt, tables.Placement, EVERY_ALLOCATION
    past = tables.placements_history
    seconds = func.extract("epoch", func.coalesce(promised.released_at, func.now()) - promised.allocated_at)
    gpu_seconds = (
        select(func.coalesce(func.sum(seconds * promised.gpu_fraction), 0.0))
        .where(promised.attempt_id == row.id)
        .scalar_subquery()
    )
    late = row.finished_at.is_(None) & func.coalesce(row.lease_expires_at < func.now(), False)
    found = (
        select(row, tables.Host.name, func.coalesce(held.released_at, past.c.released_at), gpu_seconds, late)
        .join(tables.Host, tables.Host.id == row.host_id)
        .outerjoin(held, held.attempt_id == row.id)
        .outerjoin(past, past.c.attempt_id == row.id)
        .where(row.task_id == task_id)
        .order_by(row.number.desc(), row.rank.desc(), row.id)
        .limit(limit + 1)
    )
    if cursor is not None:
        last = select(row.number, row.rank).where(row.id == cursor, row.task_id == task_id).subquery()
        number = select(last.c.number).scalar_subquery()
        rank = select(last.c.rank).scalar_subquery()
        found = found.where((row.number < number) | ((row.number == number) & (row.rank < rank)))
    rows = (await db.execute(found)).all()
    items = [
        convert.attempt_to_wire(
            attempt, host_name=host_name, released_at=released_at, gpu_seconds=float(gpu_s), late=is_late
        )
        for attempt, host_name, released_at, gpu_s, is_late in rows[:limit]
    ]
    return Page[TaskAttempt](items=items, next_cursor=items[-1].id if len(rows) > limit else None)
