"""The allow-list."""

from __future__ import annotations

from recording import World


async def drive(world: World) -> None:
    admin = world.admin
    made = await admin.images.create(name="base", reference="registry.example.org/base:1", runtime="docker")
    assert await admin.images.get("base") == made
    assert (await admin.images.update("base", description="JupyterLab")).description == "JupyterLab"
    assert [image.name async for image in await admin.images.list(status="active")] == ["base"]
    workspace = (await world.user.workspaces.list()).items[0].id
    assert not (await world.user.images.of_workspace(workspace)).restricted
    assert (await admin.images.restrict_workspace(workspace, ["base"])).restricted
    assert not (await admin.images.restrict_workspace(workspace, None)).restricted
