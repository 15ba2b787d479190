"""Usage statistics, after the environments' journey."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from recording import World


async def drive(world: World) -> None:
    admin, user = world.admin, world.user
    report = await admin.usage.report(group_by=["user", "gpu_model"], customer="default")
    (record,) = report.records
    assert (record.user, record.gpu_model, record.simulated) == ("ada", "A100-80GB", True)
    begin = datetime.now(UTC) - timedelta(days=1)
    assert sum(one.allocations for one in (await user.usage.mine(begin=begin)).records) == record.allocations
    assert (await admin.usage.csv(end=datetime.now(UTC))).startswith("day,customer_id,")
