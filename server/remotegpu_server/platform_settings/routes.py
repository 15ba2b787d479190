"""Endpoints of platform settings."""

from __future__ import annotations

from remotegpu.types.settings import Setting, Settings, SettingsUpdate, SettingUpdate
from remotegpu_server.deps import Caller, Db
from remotegpu_server.platform_settings import service
from remotegpu_server.routing import api_router

router = api_router("settings")


@router.get("/v1/settings", summary="List platform settings")
async def list_settings(db: Db, caller: Caller) -> Settings:
    """By key. Admins see all, everybody else those that are public."""
    return await service.list_settings(db, actor=caller)


@router.patch("/v1/settings", summary="Change several platform settings (admins)")
async def update_settings(body: SettingsUpdate, db: Db, caller: Caller) -> Settings:
    """All of them, or none when one is wrong."""
    return await service.update_settings(db, actor=caller, body=body)


@router.get("/v1/settings/{key}", summary="Get a platform setting")
async def get_setting(key: str, db: Db, caller: Caller) -> Setting:
    """Its value, default, bounds and meaning."""
    return await service.get_setting(db, actor=caller, key=key)


@router.patch("/v1/settings/{key}", summary="Change a platform setting (admins)")
async def update_setting(key: str, body: SettingUpdate, db: Db, caller: Caller) -> Setting:
    """Counts without a restart."""
    return await service.update_setting(db, actor=caller, key=key, body=body)


@router.post("/v1/settings/{key}:reset", summary="Set a platform setting back (admins)")
async def reset_setting(key: str, db: Db, caller: Caller) -> Setting:
    """To its default."""
    return await service.reset_setting(db, actor=caller, key=key)
