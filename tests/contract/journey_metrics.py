"""What was measured, after the environments' journey."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from recording import World


async def drive(world: World) -> None:
    admin, user = world.admin, world.user
    begin = datetime.now(UTC) - timedelta(hours=1)
    host = await admin.hosts.metrics("one", begin=begin, end=datetime.now(UTC), step_s=3600)
    assert {one.metric for one in host.points} >= {"cpu_percent", "utilization_percent"}
    gpu = await admin.gpus.metrics("GPU-contract-0", metric=["utilization_percent"])
    assert {(one.gpu_uuid, one.simulated) for one in gpu.points} == {("GPU-contract-0", True)}
    workspace = (await user.workspaces.list()).items[0]
    environment = (await user.environments.list(status="deleted")).items[0]
    task = (await user.tasks.list()).items[0]
    assert (await user.environments.metrics(environment.id)).step_s >= 10
    (target,) = await admin.health.scrape_targets()
    assert (target.targets, target.labels) == (["10.0.0.1:9835"], {"host": "one"})
    for report in (
        await user.tasks.metrics(task.id),
        await user.workspaces.metrics(workspace.id),
        await admin.customers.metrics("default"),
    ):
        assert report.begin_at < report.end_at
