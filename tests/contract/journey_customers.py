"""Tenants."""

from __future__ import annotations

from recording import World


async def drive(world: World) -> None:
    admin = world.admin
    made = await admin.customers.create(name="physics", display_name="Physics")
    assert await admin.customers.get("physics") == made
    changed = await admin.customers.update(made.id, display_name="Lab", company="ACME", code="KST-7")
    assert (changed.display_name, changed.company, changed.code) == ("Lab", "ACME", "KST-7")
    suspended = await admin.customers.suspend("physics", environments="stop_after_grace", grace_s=60)
    assert suspended.status == "suspended"
    assert suspended.stop_environments_at is not None
    assert (await admin.customers.resume("physics")).status == "active"
    assert "physics" in {customer.name async for customer in await admin.customers.list(limit=1)}
