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
    verdict = await user.quotas.check({"gpus": 2})
    assert (verdict.allowed, verdict.binding.resource) == (False, "gpus")
    assert {policy.name async for policy in await admin.quotas.list_policies()} == {"basic", "free", "pro"}
    group = {"subject": "workspace", "group": "team"}
    policy = await admin.quotas.create_policy(name="teams", limits={"gpus": 9}, applies_to=[group])
    assert await admin.quotas.get_policy("teams") == policy
    assert (await admin.quotas.update_policy("teams", limits={"gpus": 8})).limits == {"gpus": 8}
    await admin.quotas.delete_policy("teams")
    asked = await user.quota_requests.create(resource="gpus", amount=3, why="A deadline.")
    assert await admin.quota_requests.get(asked.id) == asked
    assert (await admin.quota_requests.approve(asked.id, amount=2)).granted_amount == 2
    asked = await user.quota_requests.create(resource="gpus", amount=3, why="More.")
    assert (await admin.quota_requests.refuse(asked.id, note="No.")).status == "refused"
    asked = await user.quota_requests.create(resource="gpus", amount=4, why="More.")
    assert (await user.quota_requests.withdraw(asked.id)).status == "withdrawn"
    assert len([one async for one in await user.quota_requests.list(limit=1)]) == 3
    await admin.quotas.set("user", "ada", limits={"gpus": 1})
