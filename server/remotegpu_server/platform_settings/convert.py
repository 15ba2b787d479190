"""Declarations and rows to wire types."""

from __future__ import annotations

from remotegpu.types.settings import Setting, SettingType
from remotegpu_server.db import tables
from remotegpu_server.platform_settings.registry import AnySetting

_TYPES = {
    bool: SettingType.BOOLEAN,
    int: SettingType.INTEGER,
    float: SettingType.NUMBER,
    str: SettingType.STRING,
}


def type_of(setting: AnySetting) -> SettingType:
    """What values it takes."""
    return _TYPES[type(setting.default)]


def to_wire(setting: AnySetting, row: tables.PlatformSetting | None) -> Setting:
    """A setting with what an admin made of it."""
    return Setting(
        key=setting.key,
        type=type_of(setting),
        value=setting.default if row is None else type(setting.default)(row.value),
        default=setting.default,
        minimum=setting.minimum,
        maximum=setting.maximum,
        description=setting.doc,
        public=setting.public,
        changed_by=None if row is None else row.changed_by,
        changed_at=None if row is None else row.changed_at,
    )
