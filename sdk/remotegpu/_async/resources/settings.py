"""Platform settings: what admins change while the server runs."""

from __future__ import annotations

from collections.abc import Mapping

from remotegpu._async.resource import AsyncResource
from remotegpu._protocol import segment
from remotegpu.types.settings import Setting, Settings


class AsyncSettings(AsyncResource):
    """Platform settings: what admins change while the server runs."""

    async def list(self) -> Settings:
        """All that the caller may read."""
        return await self._transport.call(Settings, "GET", "/v1/settings")

    async def get(self, key: str) -> Setting:
        """One setting, such as ``system.name``."""
        return await self._transport.call(Setting, "GET", f"/v1/settings/{segment(key)}")

    async def set(self, key: str, value: bool | int | float | str) -> Setting:
        """Change one; it counts without a restart."""
        path = f"/v1/settings/{segment(key)}"
        return await self._transport.call(Setting, "PATCH", path, body={"value": value})

    async def set_many(self, values: Mapping[str, bool | int | float | str]) -> Settings:
        """Change several: all of them, or none when one is wrong."""
        body = {"values": dict(values)}
        return await self._transport.call(Settings, "PATCH", "/v1/settings", body=body)

    async def reset(self, key: str) -> Setting:
        """Back to the default."""
        return await self._transport.put_in_state(Setting, f"/v1/settings/{segment(key)}:reset")
