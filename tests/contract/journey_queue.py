"""The queue as a whole."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from recording import World

import remotegpu


async def drive(world: World) -> None:
    accuracy = await world.admin.queue.accuracy()
    assert accuracy.starts >= 0
    made = await world.user.environments.create(
        name="later", image="base", gpus=0, start_at=datetime(2099, 1, 1, tzinfo=UTC)
    )
    with pytest.raises(remotegpu.Forbidden):  # only the hub, which is asked to start it later
        await world.user.environments.keep_place(made.id, hub_user="ada", hub_server="later")
    with pytest.raises(remotegpu.Conflict):  # this app knows no hub
        await world.hub.on_behalf_of("ada").environments.keep_place(
            made.id, hub_user="ada", hub_server="later"
        )
    await world.user.environments.delete(made.id)
