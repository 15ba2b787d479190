"""Volumes: measured, listed, deleted. The environments' journey left one behind."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from recording import World

import remotegpu
from remotegpu.types import agent as wire
from remotegpu_server.db import tables
from remotegpu_server.volumes import measuring


async def drive(world: World) -> None:
    user, agent = world.user, world.agent
    assert agent is not None
    (home,) = [one async for one in await user.volumes.list()]
    assert (home.owner, home.host_name, home.size_bytes, home.in_use) == ("ada", "one", None, False)
    async with world.recorder.app.state.database.sessions() as db:
        host_id = await db.scalar(sa.select(tables.Host.id).where(tables.Host.name == "one"))
        await measuring.ask(db, host_id=host_id, volume_ids=[home.id])
        await db.commit()
    assert [one.volume_id for one in (await agent.desired()).volume_measurements] == [home.id]
    size = wire.VolumeSize(epoch=agent.epoch, size_bytes=2**30)
    await agent.client.agent.report_volume_size(home.id, size)
    assert (await user.volumes.get(home.id)).size_bytes == 2**30
    with pytest.raises(remotegpu.NotFound):
        await agent.client.agent.report_volume_size(home.id, size)
    assert [one.id async for one in await world.admin.volumes.list(owner="ada", host="one")] == [home.id]
    assert (await user.volumes.delete(home.id)).status == "removing"
    (removal,) = (await agent.desired()).volume_removals
    answer = wire.VolumeRemovalAnswer(epoch=agent.epoch, removed=True)
    await agent.client.agent.answer_volume_removal(removal.id, answer)
    assert (await user.volumes.get(home.id)).status == "removed"
