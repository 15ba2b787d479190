"""Hosts: joined first, changed last."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from recording import Agent, World

import remotegpu
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
    assert (await admin.hosts.cordon("one", reason="a test")).operational == "cordoned"
    assert (await admin.hosts.uncordon("one")).operational == "available"
    assert (await admin.hosts.drain("one", deadline_s=3600, message="Soon.")).drain_deadline is not None
    assert (await admin.hosts.uncordon("one")).drain_deadline is None
    gpu = next(iter((await admin.gpus.list(host="one")).items))
    check = await admin.gpus.check(gpu.id)
    assert world.agent is not None
    assert [one.id for one in (await world.agent.desired()).gpu_checks] == [check.id]
    answer = wire.GpuCheckAnswer(epoch=world.agent.epoch, passed=False, detail="a bad sector")
    await world.agent.client.agent.answer_gpu_check(check.id, answer)
    assert (await admin.gpus.restore(gpu.id, reason="it is fine")).health == "healthy"
    await _lend(world)
    assert (await admin.hosts.rotate_credential("one", overlap_s=60)).old_ends_in_s == 60
    assert (await admin.hosts.revoke_credential("one")).name == "one"
    await admin.hosts.create(name="never-used", hostname="never.example.org", ip_address="192.0.2.77")
    await admin.hosts.cordon("never-used")
    assert (await admin.hosts.maintenance("never-used")).operational == "maintenance"
    assert (await admin.hosts.activate("never-used")).operational == "available"
    assert (await admin.hosts.retire("never-used", reason="sold")).operational == "retired"
    done = await admin.hosts.batch("cordon", ["never-used", "nobody"])
    assert (done.succeeded, set(done.failed)) == ([], {"never-used", "nobody"})
    assert [one.name async for one in await admin.hosts.list(operational="retired")] == ["never-used"]
    await admin.hosts.delete("never-used")
    tried = await admin.hosts.import_csv("name,labels\nnew,rack=b3\none,\n", dry_run=True)
    assert (tried.succeeded, set(tried.failed)) == (["new"], {"3"})
    assert (await admin.hosts.export_csv()).splitlines()[0] == "name,hostname,ip_address,labels"
    assert [host.name async for host in await admin.hosts.list()] == ["one"]


async def _lend(world: World) -> None:
    admin, agent = world.admin, world.agent
    assert agent is not None
    end = datetime.now(UTC) + timedelta(days=2)
    lent = await admin.dedications.create(host="one", customer="default", ends_at=end)
    assert lent.status == "active"
    assert (await admin.dedications.extend(lent.id, ends_at=end + timedelta(days=1))).ends_at > end
    assert (await admin.dedications.end(lent.id, reason="a test")).status == "grace"
    assert (await admin.dedications.reclaim(lent.id, reason="a test", force=True)).steps[
        0
    ].status == "pending"
    assert [one.id async for one in await admin.dedications.list(host="one")] == [lent.id]
    assert (await admin.dedications.get(lent.id)).status == "cleaning"
    with pytest.raises(remotegpu.NotFound):
        body = wire.VolumeRemovalAnswer(epoch=agent.epoch, removed=True)
        await agent.client.agent.answer_volume_removal("rmv-none", body)
    await admin.hosts.uncordon("one")
