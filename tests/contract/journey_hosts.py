"""Hosts: joined first, changed last."""

from __future__ import annotations

from recording import Agent, World

from remotegpu.types import agent as wire


async def drive(world: World) -> None:
    admin, recorder = world.admin, world.recorder
    await admin.hosts.create(name="one", labels={"rack": "a1"})
    enrollment = await admin.hosts.create_enrollment_token("one", expires_in_s=600)
    body = wire.Enroll(hostname="one", machine_id="m" * 32, agent_version="test")
    enrolled = await recorder.client(enrollment.secret).agent.enroll(body)
    assert enrolled.host_name == "one"
    agent = Agent(recorder.client(enrolled.credential))
    await agent.register()
    assert (await admin.hosts.get("one")).ready
    assert (await admin.hosts.wait_ready("one", timeout_s=5, progress=False)).ready
    world.agent = agent


async def drive_last(world: World) -> None:
    """What would take the host away from the other journeys."""
    admin = world.admin
    assert (await admin.hosts.update("one", labels={"rack": "b2"})).labels["rack"] == "b2"
    assert (await admin.hosts.cordon("one")).cordoned
    assert not (await admin.hosts.uncordon("one")).cordoned
    await admin.hosts.create(name="never-used")
    await admin.hosts.delete("never-used")
    assert [host.name async for host in await admin.hosts.list()] == ["one"]
