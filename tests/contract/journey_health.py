"""Liveness, readiness, metrics."""

from __future__ import annotations

from recording import World


async def drive(world: World) -> None:
    await world.anonymous.health.live()
    await world.anonymous.health.ready()
    assert "# HELP" in await world.anonymous.health.metrics()
