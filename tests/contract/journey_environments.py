"""Environments."""

from __future__ import annotations

import asyncio

import pytest
from recording import World

import remotegpu
from remotegpu.types import agent as wire


async def drive(world: World) -> None:
    admin, user, agent = world.admin, world.user, world.agent
    assert agent is not None
    made = await user.environments.create(name="work", image="base", gpus=1, env={"A": "b"}, queue=False)
    assert made.status == "starting"
    with pytest.raises(remotegpu.QuotaExceeded) as refused:
        await user.environments.create(name="more", image="base", gpus=1)
    assert refused.value.data["resource"] == "gpus"
    await agent.report(wire.Observed.RUNNING, address="http://10.0.0.1:8888")
    ready = await user.environments.wait_ready(made.id, timeout_s=5, progress=False)
    assert ready.address == "http://10.0.0.1:8888"
    assert [found.id async for found in await user.environments.list(name="work", status="running")] == [
        made.id
    ]
    usage = await user.environments.usage(made.id)
    assert [gpu.simulated for gpu in usage.gpus] == [True]
    reach = await user.environments.access(made.id)
    assert (reach.jupyter.address, reach.ssh) == ("http://10.0.0.1:8888", None)
    renamed = await user.environments.rename(made.id, name="job", display_name="My job")
    assert (renamed.name, renamed.display_name) == ("job", "My job")
    await user.environments.rename(made.id, name="work")
    assert (await user.environments.restart(made.id)).generation == made.generation + 1
    await agent.report(wire.Observed.RUNNING, address="http://10.0.0.1:8889")
    with pytest.raises(remotegpu.StateConflict, match="Nothing is going to stop"):
        await user.environments.extend(made.id, by_s=600)
    logs, _ = await asyncio.gather(
        user.environments.logs(made.id, tail_lines=5), agent.answer_one_log_request()
    )
    assert logs.text == "hello\n"

    saved = await user.environments.save_image(made.id, name="with-my-tools", description="More tools")
    assert (saved.status, saved.image_name) == ("requested", "with-my-tools")
    (asked,) = (await agent.desired()).image_saves
    for report in ({}, {"image_id": f"sha256:{'5' * 64}"}):
        body = wire.ImageSaveReport(epoch=agent.epoch, progress_bytes=2**20, **report)
        await agent.client.agent.report_image_save(asked.id, body)
    (done,) = (await user.environments.image_saves(made.id)).items
    assert (done.status, done.progress_bytes) == ("done", 2**20)
    unwanted = await user.environments.save_image(made.id, name="unwanted")
    assert (await user.environments.cancel_image_save(unwanted.id)).status == "cancelled"
    assert (await user.images.get("with-my-tools")).local

    assert (await user.environments.stop(made.id)).status == "stopping"
    await agent.report(wire.Observed.ABSENT)
    assert (await user.environments.wait_stopped(made.id, timeout_s=5)).status == "stopped"
    assert (await user.environments.start(made.id, gpus=0)).status == "starting"
    await user.environments.stop(made.id)
    assert (await admin.environments.release(made.id)).status == "stopped"
    await user.environments.delete(made.id)
    assert (await user.environments.get(made.id)).status == "deleted"
    assert (await user.environments.list()).items == []
