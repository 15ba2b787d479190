"""Endpoints of tasks."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query

from remotegpu.errors import Invalid
from remotegpu.types.tasks import Task, TaskArrayState, TaskAttempt, TaskCreate, TaskStatus, TaskSubmitted
from remotegpu.types.wire import Page
from remotegpu_server.deps import Caller, Cursor, Db, Limit, SettingsDep, VaultDep
from remotegpu_server.idempotency import IDEMPOTENT
from remotegpu_server.placing import Launch
from remotegpu_server.routing import api_router
from remotegpu_server.tasks.service import arrays, read, stop, submit

router = api_router("tasks")


@router.post("/v1/tasks", status_code=201, summary="Submit a task", dependencies=[IDEMPOTENT])
async def submit_task(
    body: TaskCreate, db: Db, caller: Caller, settings: SettingsDep, vault: VaultDep
) -> TaskSubmitted:
    """One task, or the tasks of an array. They wait in the queue of the environments."""
    launch = Launch(vault=vault, workload_url=settings.workload_url)
    return await submit.submit(db, actor=caller, body=body, launch=launch)


@router.get("/v1/tasks", summary="List tasks")
async def list_tasks(
    db: Db,
    caller: Caller,
    owner: Annotated[str | None, Query(max_length=64, description="Name or id of the owner.")] = None,
    name: Annotated[str | None, Query(max_length=63)] = None,
    workspace: Annotated[str | None, Query(max_length=64, description="Id of a workspace.")] = None,
    array: Annotated[str | None, Query(max_length=64, description="Id of an array.")] = None,
    label: Annotated[
        list[Annotated[str, Query(max_length=200)]] | None, Query(description="`key=value`; all must fit.")
    ] = None,
    status: Annotated[list[TaskStatus] | None, Query(description="Only these.")] = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> Page[Task]:
    """Newest first. Members see their own and their workspaces', owners their customer's, admins all."""
    return await read.list_tasks(
        db,
        actor=caller,
        owner=owner,
        name=name,
        workspace=workspace,
        array=array,
        labels=_labels(label or []),
        statuses=status or [],
        limit=limit,
        cursor=cursor,
    )


def _labels(given: list[str]) -> dict[str, str]:
    parts = [one.partition("=") for one in given]
    wrong = [key for key, equals, _ in parts if not equals]
    if wrong:
        raise Invalid(f"{wrong[0]!r} is no label.", hint="Write it as key=value.")
    return {key: value for key, _, value in parts}


@router.get("/v1/tasks/{task_id}", summary="One task")
async def get_task(task_id: str, db: Db, caller: Caller) -> Task:
    """Where it stands, and why."""
    return await read.get_task(db, actor=caller, task_id=task_id)


@router.get("/v1/tasks/{task_id}/attempts", summary="The attempts of a task")
async def list_task_attempts(
    task_id: str, db: Db, caller: Caller, limit: Limit = 50, cursor: Cursor = None
) -> Page[TaskAttempt]:
    """Newest first."""
    return await read.list_attempts(db, actor=caller, task_id=task_id, limit=limit, cursor=cursor)


@router.post("/v1/tasks/{task_id}:stop", summary="Stop a task")
async def stop_task(task_id: str, db: Db, caller: Caller) -> Task:
    """What runs gets TERM, then KILL after its grace. One that has ended is answered as it is."""
    return await stop.stop_task(db, actor=caller, task_id=task_id)


@router.get("/v1/task-arrays/{array_id}", summary="One array of tasks")
async def get_task_array(array_id: str, db: Db, caller: Caller) -> TaskArrayState:
    """How many of its tasks stand where; the tasks themselves: `GET /v1/tasks?array=`."""
    return await arrays.get_array(db, actor=caller, array_id=array_id)


@router.post("/v1/task-arrays/{array_id}:stop", summary="Stop an array of tasks")
async def stop_task_array(array_id: str, db: Db, caller: Caller) -> TaskArrayState:
    """What waits is cancelled, what runs gets TERM, then KILL after its grace."""
    return await arrays.stop_array(db, actor=caller, array_id=array_id)


@router.post("/v1/tasks/{task_id}:retry", summary="Run a task again", dependencies=[IDEMPOTENT])
async def retry_task(task_id: str, db: Db, caller: Caller) -> Task:
    """Only one that failed, was cancelled or timed out."""
    return await stop.retry_task(db, actor=caller, task_id=task_id)
