"""Schedules of tasks: made and changed by people, followed by the loop."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import delete as delete_from
from sqlalchemy import func, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from remotegpu.errors import ApiError, Forbidden, Invalid, NameTaken, NotFound
from remotegpu.types.task_schedules import Overlap, TaskSchedule, TaskScheduleCreate, TaskScheduleUpdate
from remotegpu.types.tasks import TaskCreate, TaskSpec
from remotegpu.types.wire import Page
from remotegpu_server import authz
from remotegpu_server.audit import service as audit
from remotegpu_server.authz import SYSTEM, Action, Actor
from remotegpu_server.db import tables
from remotegpu_server.events import service as events
from remotegpu_server.notifications import service as notifications
from remotegpu_server.placing import Launch
from remotegpu_server.task_schedules import cron
from remotegpu_server.task_schedules.convert import to_wire
from remotegpu_server.tasks.service import submit
from remotegpu_server.tokens import service as tokens

_Row = tables.TaskSchedule


async def list_schedules(
    db: AsyncSession, *, actor: Actor, owner: str | None, limit: int, cursor: str | None
) -> Page[TaskSchedule]:
    """Newest first."""
    authz.require(actor, Action.TASK_SCHEDULE_LIST)
    user, sees = tables.User, authz.visibility(actor)
    found = select(_Row, user.username).join(user, user.id == _Row.owner_id)
    if not sees.everything:
        seen = _Row.workspace_id.in_(sees.workspace_ids)
        found = found.where(
            seen if sees.customer_id is None else seen | (_Row.customer_id == sees.customer_id)
        )
    if owner is not None:
        found = found.where((user.username == owner) | (user.id == owner))
    if cursor is not None:
        last = select(_Row.created_at).where(_Row.id == cursor).scalar_subquery()
        found = found.where((_Row.created_at < last) | ((_Row.created_at == last) & (_Row.id < cursor)))
    rows = (await db.execute(found.order_by(_Row.created_at.desc(), _Row.id.desc()).limit(limit + 1))).all()
    items = [to_wire(row, username) for row, username in rows[:limit]]
    return Page[TaskSchedule](items=items, next_cursor=items[-1].id if len(rows) > limit else None)


async def get(db: AsyncSession, *, actor: Actor, schedule_id: str) -> TaskSchedule:
    """One schedule; 404 when it is another tenant's."""
    return to_wire(*await _visible(db, actor, Action.TASK_SCHEDULE_READ, schedule_id))


async def _visible(
    db: AsyncSession, actor: Actor, action: Action, schedule_id: str
) -> tuple[tables.TaskSchedule, str]:
    user = tables.User
    query = select(_Row, user.username).join(user, user.id == _Row.owner_id).where(_Row.id == schedule_id)
    if action is Action.TASK_SCHEDULE_WRITE:
        query = query.with_for_update(of=_Row)
    found = (await db.execute(query.execution_options(populate_existing=True))).one_or_none()
    if found is None:
        raise NotFound("There is no such schedule.")
    row, username = found
    authz.require(
        actor,
        action,
        user_id=row.owner_id,
        customer_id=row.customer_id,
        workspace_id=row.workspace_id,
        noun="schedule",
    )
    return row, username


async def create(db: AsyncSession, *, actor: Actor, body: TaskScheduleCreate) -> TaskSchedule:
    """Its first time is the next one. What could never be submitted is refused now."""
    authz.require(actor, Action.TASK_SCHEDULE_CREATE)
    assert actor.user_id is not None
    workspace, _ = await submit.allowed(db, actor=actor, body=_wanted(body.task))
    values = {
        "owner_id": actor.user_id,
        "customer_id": workspace.customer_id,
        "workspace_id": workspace.id,
        "name": body.name,
        "cron": body.cron,
        "time_zone": body.time_zone,
        "overlap": str(_known(body.overlap)),
        "spec": _spec(body.task, workspace.id),
        "enabled": body.enabled,
        "next_at": await _next(db, body.cron, body.time_zone) if body.enabled else None,
    }
    if not body.enabled:
        await _next(db, body.cron, body.time_zone)
    schedule_id = tables.new_id("sch")
    try:
        async with db.begin_nested():
            await db.execute(insert(_Row).values(id=schedule_id, **values))
    except IntegrityError as error:
        raise NameTaken(f"You have a schedule {body.name!r} already.", data={"name": body.name}) from error
    row, username = await _visible(db, actor, Action.TASK_SCHEDULE_READ, schedule_id)
    await _record(db, row, actor, "created", f"{actor.name} made the schedule {row.name}.")
    return to_wire(row, username)


def _wanted(spec: TaskSpec) -> TaskCreate:
    if spec.start_at is not None or spec.reservation is not None:
        raise Invalid(
            "The task of a schedule has no start_at and no reservation: its times are the schedule's."
        )
    return TaskCreate.model_validate(spec.model_dump())


def _spec(spec: TaskSpec, workspace_id: str) -> dict[str, Any]:
    return spec.model_dump(mode="json") | {"workspace": workspace_id}


def _known(overlap: Overlap) -> Overlap:
    if overlap is Overlap.UNKNOWN:
        raise Invalid("overlap: must be skip or allow.")
    return overlap


async def _next(db: AsyncSession, expression: str, time_zone: str) -> datetime:
    """By the database's clock. Raises :class:`Invalid`."""
    parsed, zone = cron.parse(expression), cron.zone_of(time_zone)
    now = await db.scalar(select(func.now()))
    assert now is not None
    found = parsed.next_after(now, zone)
    if found is None:
        raise Invalid(f"{expression!r} names no day that exists.")
    return found


async def change(
    db: AsyncSession, *, actor: Actor, schedule_id: str, body: TaskScheduleUpdate
) -> TaskSchedule:
    """Change what is named; a changed time counts from now, and a change of anything forgets the error."""
    row, username = await _visible(db, actor, Action.TASK_SCHEDULE_WRITE, schedule_id)
    values: dict[str, Any] = {
        key: value
        for key in ("cron", "time_zone", "enabled")
        if (value := getattr(body, key)) is not None and value != getattr(row, key)
    }
    if body.overlap is not None and _known(body.overlap) != row.overlap:
        values["overlap"] = str(body.overlap)
    if body.task is not None:
        values |= await _other_task(db, row, actor, body.task)
    if not values:
        return to_wire(row, username)
    audit.note(db, old={key: getattr(row, key) for key in values if key != "spec"}, changed=sorted(values))
    expression, zone = values.get("cron", row.cron), values.get("time_zone", row.time_zone)
    if values.keys() & {"cron", "time_zone", "enabled"}:
        following = await _next(db, expression, zone)
        values["next_at"] = following if values.get("enabled", row.enabled) else None
    changed = await _store(db, row, **values, last_error=None)
    await _record(db, changed, actor, "changed", f"{actor.name} changed the schedule {row.name}.")
    return to_wire(changed, username)


async def _other_task(
    db: AsyncSession, row: tables.TaskSchedule, actor: Actor, spec: TaskSpec
) -> dict[str, Any]:
    if actor.user_id != row.owner_id:
        raise Forbidden("It runs as its owner, so only its owner changes what runs.")
    workspace, _ = await submit.allowed(db, actor=actor, body=_wanted(spec))
    spec_columns = {"workspace_id": workspace.id, "customer_id": workspace.customer_id}
    return {"spec": _spec(spec, workspace.id), **spec_columns}


async def delete(db: AsyncSession, *, actor: Actor, schedule_id: str) -> None:
    """Nothing more is submitted; its tasks stay."""
    row, _ = await _visible(db, actor, Action.TASK_SCHEDULE_WRITE, schedule_id)
    await _record(db, row, actor, "deleted", f"{actor.name} deleted the schedule {row.name}.")
    await db.execute(delete_from(_Row).where(_Row.id == row.id))


async def _store(db: AsyncSession, row: tables.TaskSchedule, **values: Any) -> tables.TaskSchedule:
    changed = await db.scalar(
        update(_Row)
        .where(_Row.id == row.id)
        .values(**values)
        .returning(_Row)
        .execution_options(populate_existing=True, synchronize_session=False)
    )
    assert changed is not None, "the row is locked"
    return changed


async def _record(db: AsyncSession, row: tables.TaskSchedule, actor: Actor, what: str, message: str) -> None:
    await events.record(
        db,
        kind=f"task_schedule.{what}",
        subject_type="task_schedule",
        subject_id=row.id,
        actor=actor,
        message=message,
        customer_id=row.customer_id,
        user_id=row.owner_id,
        workspace_id=row.workspace_id,
    )


async def due(db: AsyncSession, *, limit: int) -> list[str]:
    """Those whose time has come, the latest first, and those whose owner is no more."""
    user = tables.User
    found = (
        select(_Row.id)
        .join(user, user.id == _Row.owner_id)
        .where(_Row.enabled, (_Row.next_at <= func.now()) | (user.status == "deleted"))
        .order_by(_Row.next_at)
        .limit(limit)
    )
    return list(await db.scalars(found))


async def follow(db: AsyncSession, *, schedule_id: str, launch: Launch) -> None:
    """Submit once for all times that have passed. The next time is written in the same transaction, so none
    comes twice whatever dies.
    """
    user = tables.User
    found = (
        await db.execute(
            select(_Row, user.status, _Row.next_at <= func.now())
            .join(user, user.id == _Row.owner_id)
            .where(_Row.id == schedule_id, _Row.enabled)
            .with_for_update(skip_locked=True, of=_Row)
            .execution_options(populate_existing=True)
        )
    ).one_or_none()
    if found is None:
        return
    row, owner_is, due_now = found
    if owner_is == "deleted":
        why = "The account of its owner was deleted."
        await _store(db, row, enabled=False, next_at=None, last_error=why)
        await _record(db, row, SYSTEM, "ended", f"The schedule {row.name} was ended. {why}")
        return
    if not due_now:
        return
    row = await _store(db, row, next_at=await _next(db, row.cron, row.time_zone))
    if row.overlap == Overlap.SKIP and await _runs(db, row):
        await _record(db, row, SYSTEM, "skipped", f"{row.name} was skipped: its last task has not ended.")
        return
    try:
        async with db.begin_nested():
            owner = await tokens.owner(db, user_id=row.owner_id)
            body = TaskCreate.model_validate(row.spec)
            await submit.submit(db, actor=owner, body=body, launch=launch, schedule_id=row.id)
    except ApiError as error:
        await _failed(db, row, error.detail)
    else:
        await _store(db, row, last_at=func.now(), last_error=None)


async def _runs(db: AsyncSession, row: tables.TaskSchedule) -> bool:
    task = tables.Task
    going = task.status.in_(["pending", "assigned", "running"])  # as the index of what lives says it
    live = select(task.id).where(task.schedule_id == row.id, going).limit(1)
    return await db.scalar(live) is not None


async def _failed(db: AsyncSession, row: tables.TaskSchedule, why: str) -> None:
    """Written each time, told the first time."""
    message = f"The schedule {row.name} could not submit its task: {why}"
    if row.last_error is None:
        await notifications.tell(
            db,
            user_ids=[row.owner_id],
            kind="task_schedule.failed",
            level="error",
            message=message,
            subject_type="task_schedule",
            subject_id=row.id,
        )
    await _store(db, row, last_at=func.now(), last_error=why)
    await _record(db, row, SYSTEM, "failed", message)
