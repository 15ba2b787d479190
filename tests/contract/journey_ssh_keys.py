"""SSH keys."""

from __future__ import annotations

import pytest
from recording import World

import remotegpu

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIFQBbGPLEiX21opIRlm9qeHwVbAu9t8QNwxyuaUO4WY0 ada@laptop"


async def drive(world: World) -> None:
    user = world.user
    made = await user.ssh_keys.create(name="laptop", public_key=KEY)
    assert made.public_key == KEY.rpartition(" ")[0]
    assert (await user.ssh_keys.get(made.id)).fingerprint == made.fingerprint
    assert [key.name async for key in await user.ssh_keys.list()] == ["laptop"]
    with pytest.raises(remotegpu.NameTaken):
        await user.ssh_keys.create(name="again", public_key=KEY)
    with pytest.raises(remotegpu.NotFound):
        await world.admin.ssh_keys.get(made.id)
    await user.ssh_keys.delete(made.id)
