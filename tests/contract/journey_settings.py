"""Platform settings."""

from __future__ import annotations

from recording import World


async def drive(world: World) -> None:
    admin, user = world.admin, world.user
    assert (await user.settings.get("system.name")).value == "RemoteGPU"
    assert {one.key for one in (await user.settings.list()).settings} < {
        one.key for one in (await admin.settings.list()).settings
    }
    assert (await admin.settings.set("system.name", "Lab")).changed_by == "root"
    changed = await admin.settings.set_many({"system.name": "GPUs", "quotas.gpu_hours_grace_s": 60})
    assert {one.key: one.value for one in changed.settings}["system.name"] == "GPUs"
    assert (await admin.settings.reset("system.name")).changed_by is None
