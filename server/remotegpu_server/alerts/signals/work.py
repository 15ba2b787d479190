"""Signals of tasks, environments, quotas and the queue."""

from __future__ import annotations

from sqlalchemy import func, select

from remotegpu.types.quotas import QuotaResource
from remotegpu_server.alerts.signals.reading import Read, Reading, View, percent, signal
from remotegpu_server.db import tables
from remotegpu_server.queue import waits
from remotegpu_server.quotas import queries as quotas

_host = tables.Host


@signal(
    name="task_overdue_s",
    object_type="task",
    unit="s",
    maximum=86400,
    tells_user=True,
    description="Seconds since the lease of a running task ended without a renewal.",
    advice="Its host may be cut off. It is given up by itself and tried again where it may be.",
)
async def task_overdue(view: View) -> list[Reading]:
    attempt, task = tables.Attempt, tables.Task
    late = func.extract("epoch", func.now() - attempt.lease_expires_at)
    rows = await view.db.execute(
        select(task, attempt.lease_expires_at, late, _host.name, _host.labels)
        .join(attempt, attempt.task_id == task.id)
        .join(_host, _host.id == attempt.host_id)
        .where(attempt.finished_at.is_(None), attempt.lease_expires_at.is_not(None), attempt.rank == 0)
    )
    return [
        Reading(
            object_id=task.id,
            name=task.name or task.id,
            value=max(float(late_s), 0.0),
            detail=f"on {host_name}",
            host_labels=labels,
            user_id=task.owner_id,
            customer_id=task.customer_id,
            workspace_id=task.workspace_id,
        )
        for task, _, late_s, host_name, labels in rows
    ]


@signal(
    name="gpu_idle_s",
    object_type="environment",
    unit="s",
    maximum=30 * 86400,
    description="Seconds that a running environment has held a GPU without using it.",
    advice="Ask its owner, or set an idle policy on its image, workspace or customer.",
    every_s=60.0,
)
async def gpu_idle(view: View) -> list[Reading]:
    row, user = tables.Environment, tables.User
    idle = func.extract("epoch", func.now() - row.idle_since)
    rows = await view.db.execute(
        select(row, user.username, idle)
        .join(user, user.id == row.owner_id)
        .where(row.status == "running", row.gpus > 0)
    )
    return [
        Reading(
            object_id=environment.id,
            name=f"{environment.name} of {username}",
            value=0.0 if idle_s is None else float(idle_s),
            detail=f"{environment.gpus} GPUs",
            user_id=environment.owner_id,
            customer_id=environment.customer_id,
            workspace_id=environment.workspace_id,
        )
        for environment, username, idle_s in rows
    ]


def _quota(resource: QuotaResource) -> Read:
    async def read(view: View) -> list[Reading]:
        row = tables.Quota
        rows = (
            await view.db.execute(
                select(row, quotas.effective()).where(row.resource == str(resource), quotas.effective() > 0)
            )
        ).all()
        used: dict[quotas.Key, float | None] = {}
        for start in range(0, len(rows), 100):
            part = rows[start : start + 100]
            wanted: dict[quotas.Key, int | None] = {
                (quota.subject_type, quota.subject_id, quota.resource): quota.window_s for quota, _ in part
            }
            used |= await quotas.used(view.db, wanted=wanted)
        return [
            Reading(
                object_id=f"{quota.subject_type}:{quota.subject_id}",
                name=f"{quota.subject_type} {quota.subject_id}",
                value=percent(used[quota.subject_type, quota.subject_id, quota.resource], limit),
            )
            for quota, limit in rows
        ]

    return read


for _name, _resource, _what in (
    ("quota_gpu_hours_percent", QuotaResource.GPU_HOURS, "GPU-hours used of a limit."),
    ("quota_storage_percent", QuotaResource.STORAGE_BYTES, "Storage used of a limit."),
):
    signal(
        name=_name,
        object_type="quota",
        unit="%",
        maximum=1000,
        every_s=60.0,
        description=_what,
        advice="Raise the limit, or have something removed. Its people were told.",
    )(_quota(_resource))


@signal(
    name="estimate_error_s",
    object_type="queue",
    unit="s",
    maximum=30 * 86400,
    every_s=60.0,
    description="Median distance between estimated and real starts of the last 30 days, of 20 or more.",
    advice="Estimates follow the lengths of past runs: see `GET /v1/queue/accuracy`.",
)
async def estimate_error(view: View) -> list[Reading]:
    found = await waits.accuracy(view.db)
    value = (found.median_error_s or 0.0) if found.starts >= 20 else 0.0
    return [Reading(object_id="queue", name="the queue", value=value, detail=f"{found.starts} starts")]
