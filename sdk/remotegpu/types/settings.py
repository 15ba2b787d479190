"""Platform settings: what admins change while the server runs."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field, StrictBool, StrictFloat, StrictInt, StringConstraints

from remotegpu.types.wire import Table, UtcTime, Wire, WireEnum

SettingValue = (
    StrictBool | StrictInt | StrictFloat | Annotated[str, StringConstraints(strict=True, max_length=1024)]
)


class SettingType(WireEnum):
    """What values a setting takes."""

    BOOLEAN = "boolean"
    INTEGER = "integer"
    NUMBER = "number"
    STRING = "string"
    UNKNOWN = "unknown"


class SettingUpdate(Wire):
    """A new value, of the setting's type and within its bounds."""

    value: SettingValue


class SettingsUpdate(Wire):
    """New values by key: all of them count, or none."""

    values: Annotated[dict[str, SettingValue], Field(min_length=1, max_length=100)]


class Setting(Wire):
    """A platform setting and what it is now."""

    key: str
    """``<group>.<name>``, the unit at its end."""
    type: SettingType
    value: SettingValue
    default: SettingValue
    minimum: float | None
    maximum: float | None
    description: str
    public: bool
    """True: everybody signed in may read it."""
    changed_by: str | None
    """``null``: it has its default."""
    changed_at: UtcTime | None


class Settings(Table):
    """The settings that the caller may read, by key."""

    ROWS: ClassVar[str] = "settings"

    settings: list[Setting]
