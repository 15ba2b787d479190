"""The queue as a whole."""

from __future__ import annotations

from recording import World


async def drive(world: World) -> None:
    accuracy = await world.admin.queue.accuracy()
    assert accuracy.starts >= 0
