"""Alerts, their rules and silences; the alert is planted, because no journey waits for a loop."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from recording import World

from remotegpu.types.alerts import AlertScope


async def drive(world: World) -> None:
    admin = world.admin
    signals = {one.name for one in (await admin.alert_rules.signals()).signals}
    assert "gpu_temperature_c" in signals
    made = await admin.alert_rules.create(
        name="hot",
        signal="gpu_temperature_c",
        threshold=80,
        operator=">=",
        scope=AlertScope(objects=["one"]),
    )
    assert (await admin.alert_rules.update("hot", enabled=False)).scope == made.scope
    assert (await admin.alert_rules.get(made.id)).enabled is False
    assert "agent-offline" in [rule.name async for rule in await admin.alert_rules.list(limit=200)]
    await admin.alert_rules.delete("hot")
    until = datetime.now(UTC) + timedelta(hours=1)
    silence = await admin.alert_silences.create(until=until, rule="gpu-idle", reason="course")
    assert [one.id async for one in await admin.alert_silences.list()] == [silence.id]
    await admin.alert_silences.delete(silence.id)
    alert_id = await world.actors.alert()
    assert [one.id async for one in await admin.alerts.list(status="firing")] == [alert_id]
    assert (await admin.alerts.acknowledge(alert_id)).acknowledged_by == "root"
    assert (await admin.alerts.get(alert_id)).acknowledged_at is not None
