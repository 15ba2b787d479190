"""Tenants."""

from __future__ import annotations

from recording import World


async def drive(world: World) -> None:
    admin = world.admin
    made = await admin.customers.create(name="physics", display_name="Physics")
    assert await admin.customers.get("physics") == made
    assert (await admin.customers.update(made.id, display_name="Lab")).display_name == "Lab"
    assert (await admin.customers.suspend("physics")).status == "suspended"
    assert (await admin.customers.resume("physics")).status == "active"
    assert "physics" in {customer.name async for customer in await admin.customers.list(limit=1)}
