"""Reservations."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from recording import World

import remotegpu


async def drive(world: World) -> None:
    user = world.user
    starts_at = datetime.now(UTC) + timedelta(days=3)
    ends_at = starts_at + timedelta(hours=2)
    made = await user.reservations.create(name="course", gpus=1, starts_at=starts_at, ends_at=ends_at)
    assert (await user.reservations.get(made.id)).state == "scheduled"
    with pytest.raises(remotegpu.Conflict) as refused:
        await user.reservations.create(name="more", gpus=1, starts_at=starts_at, ends_at=ends_at)
    assert refused.value.data["next_free"]["starts_at"]
    assert [one.id async for one in await user.reservations.list(limit=1)] == [made.id]
    calendar = await world.admin.reservations.calendar(from_at=starts_at, until_at=ends_at)
    assert [one.name for one in calendar.entries] == ["course"]
    assert (await user.reservations.cancel(made.id)).state == "cancelled"
