"""Reading platform settings."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from remotegpu_server.db import tables
from remotegpu_server.platform_settings.registry import Setting, T


async def value(db: AsyncSession, setting: Setting[T]) -> T:
    """What the setting is now: an admin's value, or the default. One primary key lookup."""
    row = tables.PlatformSetting
    changed: T | None = await db.scalar(select(row.value).where(row.key == setting.key))
    return setting.default if changed is None else type(setting.default)(changed)
