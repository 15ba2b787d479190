"""API tokens."""

from __future__ import annotations

import pytest
from recording import World

import remotegpu


async def drive(world: World) -> None:
    admin, recorder = world.admin, world.recorder
    made = await admin.tokens.create(name="laptop", scopes=["read"], expires_in_s=3600)
    reader = recorder.client(made.secret)
    assert (await reader.me.get()).token.name == "laptop"
    with pytest.raises(remotegpu.Forbidden):
        await reader.tokens.create(name="more")
    assert made.token.id in {token.id async for token in await admin.tokens.list()}
    await admin.tokens.delete(made.token.id)
    with pytest.raises(remotegpu.TokenInvalid):
        await reader.me.get()
