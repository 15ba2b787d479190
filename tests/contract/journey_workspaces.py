"""Workspaces and their members."""

from __future__ import annotations

import pytest
from recording import World

import remotegpu


async def drive(world: World) -> None:
    user = world.user
    bob = world.recorder.client((await world.actors.user("bob")).secret)
    made = await user.workspaces.create(name="Protein folding", description="Winter")
    assert (made.role, made.members) == ("owner", 1)
    assert (await user.workspaces.update(made.id, description="Spring")).description == "Spring"
    invited = await user.workspaces.add_member(made.id, user="bob", role="admin", invite=True)
    assert invited.status == "invited"
    with pytest.raises(remotegpu.NotFound):
        await bob.workspaces.get(made.id)
    assert [one.member_status for one in (await bob.me.get()).workspaces] == ["active", "invited"]
    await bob.workspaces.decline(made.id)
    await user.workspaces.add_member(made.id, user="bob", role="admin", invite=True)
    await bob.workspaces.join(made.id)
    assert (await bob.workspaces.get(made.id)).role == "admin"
    changed = await user.workspaces.update_member(made.id, "bob", role="viewer")
    assert (changed.role, changed.status) == ("viewer", "active")
    names = [member.username async for member in await bob.workspaces.list_members(made.id, limit=1)]
    assert names == ["ada", "bob"]
    assert (await user.workspaces.transfer(made.id, user="bob")).owner == "bob"
    assert (await bob.workspaces.archive(made.id)).status == "archived"
    assert (await bob.workspaces.restore(made.id)).status == "active"
    await bob.workspaces.remove_member(made.id, "ada")
    listed = [one.name async for one in await bob.workspaces.list(mine=True, limit=1)]
    assert listed == ["Protein folding", "bob"]
    await bob.workspaces.delete(made.id)
    assert [one.kind for one in (await bob.workspaces.list()).items] == ["personal"]
