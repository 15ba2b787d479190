"""What people are told."""

from __future__ import annotations

from recording import World


async def drive(world: World) -> None:
    """After the workspaces' journey, which told its user several things."""
    user = world.user
    unread = (await user.notifications.count_unread()).unread
    told = await user.notifications.list(unread=True, limit=1)
    assert unread >= len(told.items) == 1
    assert (await user.notifications.read(told.items[0].id)).read_at is not None
    assert (await user.notifications.read_all()).unread == 0
    await user.notifications.set_preference("workspace", mail="off")
    await user.notifications.set_preference("*", in_app=True, mail="digest")
    kinds = [one.kind for one in (await user.notifications.preferences()).preferences]
    assert kinds == ["*", "workspace"]
    await user.notifications.delete_preference("workspace")
