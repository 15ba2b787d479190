"""Who did what."""

from __future__ import annotations

import json

from recording import World


async def drive(world: World) -> None:
    admin = world.admin
    newest = await admin.audit.list(resource_type="workspaces", outcome="done", limit=2)
    assert "workspaces.create_workspace" in {record.action async for record in newest}
    exported = await admin.audit.export(action="workspaces.create_workspace")
    assert {json.loads(line)["actor"] for line in exported.splitlines()} == {"ada"}
    assert (await admin.audit.export(format="csv")).startswith("id,at,action")
    assert (await admin.audit.verify()).valid
