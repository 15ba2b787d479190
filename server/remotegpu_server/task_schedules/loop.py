"""The pass that submits what schedules name."""

from __future__ import annotations

from remotegpu_server.loops import Loop, Work, by_itself
from remotegpu_server.placing import Launch
from remotegpu_server.task_schedules import service

BATCH = 200


async def submit_due(work: Work) -> None:
    """One short transaction for each schedule whose time has come."""
    launch = Launch(vault=work.vault, workload_url=work.settings.workload_url)
    async with work.session() as db:
        due = await service.due(db, limit=BATCH)
    for schedule_id in due:
        with by_itself("task-schedules", schedule_id):
            async with work.session() as db:
                await service.follow(db, schedule_id=schedule_id, launch=launch)


LOOP = Loop(name="task-schedules", every_s=5.0, run=submit_due)
