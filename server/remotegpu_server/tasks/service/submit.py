"""Submitting tasks: one, or an array of them."""

from __future__ import annotations

from typing import Any, cast

from sqlalchemy import Table, func, insert, select
from sqlalchemy.ext.asyncio import AsyncSession

from remotegpu.errors import Conflict, Invalid, NotFound, QuotaExceeded, Unsatisfiable
from remotegpu.types.environments import Reason
from remotegpu.types.tasks import Dependency, TaskCreate, TaskSubmitted
from remotegpu_server import authz
from remotegpu_server.authz import Action, Actor
from remotegpu_server.db import tables
from remotegpu_server.db.notify import notify
from remotegpu_server.environments.service import asking
from remotegpu_server.events import service as events
from remotegpu_server.images import service as images
from remotegpu_server.placing import Launch
from remotegpu_server.platform_settings import service as platform_settings
from remotegpu_server.platform_settings.registry import TASK_ARRAY_MAX, TASK_WAITING_MAX
from remotegpu_server.queue import snapshot as snapshots
from remotegpu_server.reservations import enforcement as reservations
from remotegpu_server.task_inputs import service as task_inputs
from remotegpu_server.tasks import convert, lifecycle, queries
from remotegpu_server.tasks.service import turns
from remotegpu_server.tokens import service as tokens
from remotegpu_server.workspaces import service as workspaces

SHOWN = 100
"""Tasks of an array that the answer holds."""


async def submit(
    db: AsyncSession, *, actor: Actor, body: TaskCreate, launch: Launch, schedule_id: str | None = None
) -> TaskSubmitted:
    """A new task, placed at once where there is room; or the tasks of an array, which the queue places."""
    authz.require(actor, Action.TASK_CREATE)
    workspace, image = await allowed(db, actor=actor, body=body)
    ids = await _insert(db, actor=actor, body=body, image=image, workspace=workspace, schedule_id=schedule_id)
    waits = await _depend(db, actor=actor, task_ids=ids, on=body.depends_on)
    if body.array is None and not waits:
        await _begin(db, task_id=ids[0], image=image, launch=launch, actor=actor)
    else:
        notify(db, "queue")
    shown = await queries.bundles(db, ids=ids[:SHOWN], with_scripts=False)
    array_id = shown[0].task.array_id
    return TaskSubmitted(
        tasks=[convert.to_wire(bundle) for bundle in shown], array_id=array_id, count=len(ids)
    )


async def allowed(
    db: AsyncSession, *, actor: Actor, body: TaskCreate
) -> tuple[tables.Workspace, tables.Image]:
    """Where it would live and what it would run, if the actor may; locked until the transaction ends."""
    _check(actor, body)
    assert actor.user_id is not None
    await tokens.require_active(db, actor.user_id)
    workspace = await workspaces.to_use(db, actor=actor, workspace=await _workspace(db, actor, body))
    return workspace, await images.allowed(db, image=body.image, workspace=workspace)


def _check(actor: Actor, body: TaskCreate) -> None:
    asking.check_env(actor, body.env, {})
    asking.check_parts(gpus=body.gpus, share=body.gpu_memory_bytes, profile=body.mig_profile)
    if (body.command is None) == (body.script is None):
        raise Invalid("A task has a command or a script, one of the two.", hint="Set `command` or `script`.")


async def _workspace(db: AsyncSession, actor: Actor, body: TaskCreate) -> str | None:
    """The named one; from inside an environment, the one that it lives in."""
    if body.workspace is not None or actor.environment_id is None:
        return body.workspace
    row = tables.Environment
    found: str | None = await db.scalar(select(row.workspace_id).where(row.id == actor.environment_id))
    return found


async def _insert(
    db: AsyncSession,
    *,
    actor: Actor,
    body: TaskCreate,
    image: tables.Image,
    workspace: tables.Workspace,
    schedule_id: str | None,
) -> list[str]:
    reserved = await reservations.columns_of(db, workspace=workspace, body=body)
    body = body.model_copy(update={key: reserved[key] for key in ("start_at",) if key in reserved})
    values: dict[str, Any] = {
        "owner_id": actor.user_id,
        "customer_id": workspace.customer_id,
        "workspace_id": workspace.id,
        "name": body.name,
        "image_id": image.id,
        "command": body.command,
        "script": body.script,
        **await _input(db, actor=actor, sha256=body.input_sha256),
        "working_dir": body.working_dir,
        "env": body.env,
        "labels": body.labels,
        "nodes": body.nodes,
        "schedule_id": schedule_id,
        **await asking.columns(db, actor=actor, body=body),
        "reservation_id": reserved.get("reservation_id"),
        "stop_at": reserved.get("stop_at"),
        "max_lifetime_s": body.timeout_s,
        "stop_grace_s": body.stop_grace_s,
        "max_retries": body.max_retries,
        "retry_delay_s": body.retry_delay_s,
        "retry_on": [str(one) for one in body.retry_on],
        "reason": str(Reason.DEPENDENCIES if body.depends_on else Reason.REQUESTED),
        "message": "Waits for other tasks." if body.depends_on else "Requested.",
    }
    if body.array is None:
        rows: list[dict[str, Any]] = [{"id": tables.new_id("tsk")}]
    else:
        array_id = await _array(db, body=body)
        rows = [
            {"id": tables.new_id("tsk"), "array_id": array_id, "array_index": index}
            for index in range(body.array.size)
        ]
    await _require_room(db, actor=actor, more=len(rows))
    await db.execute(insert(cast("Table", tables.Task.__table__)).values(**values), rows)
    await _record(db, actor=actor, body=body, ids=[row["id"] for row in rows], workspace=workspace)
    return [row["id"] for row in rows]


async def _input(db: AsyncSession, *, actor: Actor, sha256: str | None) -> dict[str, Any]:
    if sha256 is None:
        return {}
    assert actor.user_id is not None, "only people and their workloads submit"
    size_bytes = await task_inputs.hold(db, owner_id=actor.user_id, sha256=sha256)
    return {"input_sha256": sha256, "input_size_bytes": size_bytes}


async def _require_room(db: AsyncSession, *, actor: Actor, more: int) -> None:
    """One person's waiting tasks are bounded: everybody's start looks through all of them."""
    row = tables.Task
    found = select(func.count()).where(row.status == "pending", row.owner_id == actor.user_id)
    waiting = await db.scalar(found) or 0
    most = await platform_settings.value(db, TASK_WAITING_MAX)
    if waiting + more > most:
        raise Conflict(
            f"{waiting} of your tasks wait already; {more} more would be above the limit of {most}.",
            hint="Submit them when some have started, or let each task do more.",
            data={"waiting": waiting, "limit": most},
        )


async def _array(db: AsyncSession, *, body: TaskCreate) -> str:
    assert body.array is not None
    most = await platform_settings.value(db, TASK_ARRAY_MAX)
    if body.array.size > most:
        raise Invalid(
            f"An array may have {most} tasks at most; {body.array.size} were asked for.",
            hint="Submit several arrays, or let each task do more.",
            data={"errors": [{"field": "array.size", "message": f"at most {most}"}]},
        )
    array_id = tables.new_id("arr")
    await db.execute(
        insert(tables.TaskArray).values(
            id=array_id, size=body.array.size, max_parallel=body.array.max_parallel
        )
    )
    return array_id


async def _depend(db: AsyncSession, *, actor: Actor, task_ids: list[str], on: list[Dependency]) -> bool:
    """Tie the new tasks to those that they wait for. New tasks depend on older ones only, so there is no way
    to a cycle. True: at least one does not hold yet."""
    if not on:
        return False
    wanted = {one.task_id: one.condition for one in on}
    row = tables.Task
    known = (await db.scalars(select(row).where(row.id.in_(wanted)))).all()
    for task in known:
        authz.require(
            actor,
            Action.TASK_READ,
            user_id=task.owner_id,
            customer_id=task.customer_id,
            workspace_id=task.workspace_id,
            noun="task",
        )
    missing = wanted.keys() - {task.id for task in known}
    if missing:
        raise NotFound(f"There is no task {min(missing)[:64]}.")
    await db.execute(
        insert(tables.TaskDependency),
        [
            {"task_id": task_id, "after_id": after_id, "condition": str(condition)}
            for task_id in task_ids
            for after_id, condition in wanted.items()
        ],
    )
    return any(
        task.finished_at is None or (wanted[task.id] == "after_ok" and task.status != "succeeded")
        for task in known
    )


async def _begin(
    db: AsyncSession, *, task_id: str, image: tables.Image, launch: Launch, actor: Actor
) -> None:
    """Place the pending task, or let it wait, or refuse what can never be."""
    task = await queries.lock(db, task_id=task_id)
    assert task is not None, "it was just made"
    if task.start_at is not None and await _is_later(db, task=task):
        reason = Reason.START_LATER
        message = f"Takes its place in the queue at {task.start_at:%Y-%m-%d %H:%M} UTC."
    else:
        ahead = await snapshots.ahead_of(db, ask_id=task.id)
        try:
            refusal = await turns.place(db, task=task, image=image, ahead=ahead, launch=launch, actor=actor)
        except QuotaExceeded as refused:
            if _never(refused):
                raise
            reason, message = Reason.QUOTA, str(refused)
        else:
            if refusal is None:
                return
            if not refusal.satisfiable:
                raise Unsatisfiable(refusal.detail, hint=refusal.hint, data=refusal.data)
            reason, message = refusal.reason, refusal.detail
    await lifecycle.move(
        db, task=task, to=lifecycle.Status.PENDING, reason=reason, message=message, actor=actor
    )


def _never(refused: QuotaExceeded) -> bool:
    """Whether the request alone is above the limit, so that waiting would not help."""
    limit, requested = refused.data.get("limit"), refused.data.get("requested")
    return isinstance(limit, int | float) and isinstance(requested, int | float) and requested > limit


async def _is_later(db: AsyncSession, *, task: tables.Task) -> bool:
    row = tables.Task
    return bool(await db.scalar(select(row.start_at > func.now()).where(row.id == task.id)))


async def _record(
    db: AsyncSession, *, actor: Actor, body: TaskCreate, ids: list[str], workspace: tables.Workspace
) -> None:
    what = f"Task {body.name}" if body.array is None else f"An array of {len(ids)} tasks {body.name}"
    await events.record(
        db,
        kind="task.submitted",
        subject_type="task",
        subject_id=ids[0],
        actor=actor,
        message=f"{what} was submitted.",
        data={"gpus": body.gpus, "count": len(ids)},
        customer_id=workspace.customer_id,
        user_id=actor.user_id,
        workspace_id=workspace.id,
    )
