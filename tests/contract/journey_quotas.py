"""Limits, capacity, GPUs, and what a request would get."""

from __future__ import annotations

from recording import World


async def drive(world: World) -> None:
    admin, user = world.admin, world.user
    quota = await admin.quotas.set("user", "ada", limits={"gpus": 1, "environments": None})
    assert {line.resource: line.limit for line in quota.lines if line.subject == "user"}["gpus"] == 1
    assert (await admin.quotas.get("user", "ada")).lines == quota.lines
    assert any(line.resource == "gpus" and line.limit == 1 for line in (await user.quotas.mine()).lines)
    assert [model.free for model in (await user.capacity.get()).gpu_models] == [1]
    assert [
        gpu.simulated async for gpu in await user.gpus.list(host="one", model="A100-80GB", free=True)
    ] == [True]
    assert (await user.placements.explain(image="base", gpus=1)).outcome == "starts_now"
