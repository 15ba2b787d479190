# Generated from remotegpu/_async by sdk/generate_sync.py. Change that and run it again.
"""Schedules: the same task submitted again and again."""

from __future__ import annotations

from remotegpu._protocol import given, segment
from remotegpu._sync.pages import Page, fetch_page
from remotegpu._sync.resource import SyncResource
from remotegpu.types.task_schedules import TaskSchedule
from remotegpu.types.tasks import TaskSpec


class SyncTaskSchedules(SyncResource):
    """Schedules: the same task submitted again and again."""

    def list(
        self, *, owner: str | None = None, limit: int | None = None, cursor: str | None = None
    ) -> Page[TaskSchedule]:
        """The schedules that the caller may see, newest first."""
        params = given(owner=owner, limit=limit, cursor=cursor)
        return fetch_page(self._transport, TaskSchedule, "/v1/task-schedules", params)

    def create(
        self,
        *,
        name: str,
        cron: str,
        task: TaskSpec,
        time_zone: str | None = None,
        overlap: str | None = None,
        enabled: bool | None = None,
        idempotency_key: str | None = None,
    ) -> TaskSchedule:
        """Submit a task at the times of a cron expression of five fields. With `overlap="allow"` also while
        the last one has not ended.
        """
        body = given(
            name=name,
            cron=cron,
            task=task.model_dump(mode="json", exclude_unset=True),
            time_zone=time_zone,
            overlap=overlap,
            enabled=enabled,
        )
        return self._transport.create(
            TaskSchedule, "/v1/task-schedules", body=body, idempotency_key=idempotency_key
        )

    def get(self, schedule_id: str) -> TaskSchedule:
        """One schedule."""
        return self._transport.call(TaskSchedule, "GET", f"/v1/task-schedules/{segment(schedule_id)}")

    def update(
        self,
        schedule_id: str,
        *,
        cron: str | None = None,
        time_zone: str | None = None,
        overlap: str | None = None,
        enabled: bool | None = None,
        task: TaskSpec | None = None,
    ) -> TaskSchedule:
        """Change what is named; `enabled=False` pauses it."""
        body = given(
            cron=cron,
            time_zone=time_zone,
            overlap=overlap,
            enabled=enabled,
            task=None if task is None else task.model_dump(mode="json", exclude_unset=True),
        )
        path = f"/v1/task-schedules/{segment(schedule_id)}"
        return self._transport.call(TaskSchedule, "PATCH", path, body=body)

    def delete(self, schedule_id: str) -> None:
        """Submit nothing more; its tasks stay."""
        self._transport.send("DELETE", f"/v1/task-schedules/{segment(schedule_id)}")
