"""Events."""

from __future__ import annotations

from recording import World


async def drive(world: World) -> None:
    events = await world.admin.events.list(subject_type="environment", limit=2)
    assert len([event async for event in events]) > 2
