"""Reading and changing platform settings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import delete, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from remotegpu.errors import Invalid, NotFound
from remotegpu.types.settings import Setting as SettingOnWire
from remotegpu.types.settings import Settings, SettingsUpdate, SettingUpdate, SettingValue
from remotegpu_server import authz
from remotegpu_server.audit import service as audit
from remotegpu_server.authz import Action, Actor
from remotegpu_server.db import tables
from remotegpu_server.db.notify import notify
from remotegpu_server.events import service as events
from remotegpu_server.platform_settings import convert
from remotegpu_server.platform_settings.registry import REGISTRY, AnySetting, Setting, T

_KINDS: dict[type, tuple[type, ...]] = {bool: (bool,), int: (int,), float: (int, float), str: (str,)}


async def value(db: AsyncSession, setting: Setting[T]) -> T:
    """What the setting is now: an admin's value, or the default. One primary key lookup."""
    row = tables.PlatformSetting
    changed: T | None = await db.scalar(select(row.value).where(row.key == setting.key))
    return of_stored(setting, changed)


def of_stored(setting: Setting[T], changed: T | None) -> T:
    """What the setting is with this stored value; ``None``: there is no row, so its default."""
    return setting.default if changed is None else type(setting.default)(changed)


async def list_settings(db: AsyncSession, *, actor: Actor) -> Settings:
    """By key; for people who are no admins the public ones."""
    authz.require(actor, Action.SETTING_READ)
    rows = {row.key: row for row in await db.scalars(select(tables.PlatformSetting))}
    shown = [one for _, one in sorted(REGISTRY.items()) if one.public or actor.is_admin]
    return Settings(settings=[convert.to_wire(one, rows.get(one.key)) for one in shown])


async def get_setting(db: AsyncSession, *, actor: Actor, key: str) -> SettingOnWire:
    """One setting; one that is not public does not exist for people who are no admins."""
    authz.require(actor, Action.SETTING_READ)
    found = REGISTRY.get(key)
    if found is None or not (found.public or actor.is_admin):
        raise _no_such(key)
    return await _answer(db, found)


async def update_setting(db: AsyncSession, *, actor: Actor, key: str, body: SettingUpdate) -> SettingOnWire:
    """Set one; it counts from the next time it is read, without a restart."""
    authz.require(actor, Action.SETTING_WRITE)
    await _write(db, actor=actor, values={key: body.value})
    return await _answer(db, REGISTRY[key])


async def update_settings(db: AsyncSession, *, actor: Actor, body: SettingsUpdate) -> Settings:
    """Set several in one transaction: a wrong one leaves all as they were."""
    authz.require(actor, Action.SETTING_WRITE)
    await _write(db, actor=actor, values=body.values)
    return await list_settings(db, actor=actor)


async def reset_setting(db: AsyncSession, *, actor: Actor, key: str) -> SettingOnWire:
    """Back to the default."""
    authz.require(actor, Action.SETTING_WRITE)
    if key not in REGISTRY:
        raise _no_such(key)
    row, found = tables.PlatformSetting, REGISTRY[key]
    (old,) = await _now(db, keys=[key])
    await db.execute(delete(row).where(row.key == key))
    await _record(db, actor=actor, old={key: old.value}, new={key: found.default})
    return await _answer(db, found)


async def _write(db: AsyncSession, *, actor: Actor, values: Mapping[str, SettingValue]) -> None:
    for key, wanted in values.items():
        if key not in REGISTRY:
            raise _no_such(key)
        _require_valid(REGISTRY[key], wanted)
    row = tables.PlatformSetting
    old = {one.key: one.value for one in await _now(db, keys=sorted(values))}
    for key in sorted(values):  # one order for everybody, so that two batches never wait for each other
        given = {"value": values[key], "changed_by": actor.name}
        await db.execute(
            insert(row)
            .values(key=key, **given)
            .on_conflict_do_update(index_elements=[row.key], set_={**given, "changed_at": func.now()})
        )
    await _record(db, actor=actor, old=old, new=dict(values))


def _require_valid(setting: AnySetting, wanted: SettingValue) -> None:
    kind = type(setting.default)
    if not isinstance(wanted, _KINDS[kind]) or (isinstance(wanted, bool) and kind is not bool):
        raise _invalid(setting, f"must be of type {convert.type_of(setting)}")
    if setting.choices and wanted not in setting.choices:
        raise _invalid(setting, f"must be one of {', '.join(setting.choices)}")
    if isinstance(wanted, str) and setting.parse is not None:
        try:
            setting.parse(wanted)
        except ValueError as error:
            raise _invalid(setting, f"is not understood: {error}") from error
    if isinstance(wanted, bool | str):
        return
    if not math.isfinite(wanted):
        raise _invalid(setting, "must be a finite number")
    if setting.minimum is not None and wanted < setting.minimum:
        raise _invalid(setting, f"must be at least {setting.minimum:g}")
    if setting.maximum is not None and wanted > setting.maximum:
        raise _invalid(setting, f"must be at most {setting.maximum:g}")


def _invalid(setting: AnySetting, message: str) -> Invalid:
    return Invalid(
        f"{setting.key} {message}.",
        hint=setting.doc,
        data={"errors": [{"field": setting.key, "message": message}]},
    )


def _no_such(key: str) -> NotFound:
    return NotFound(f"There is no setting {key[:128]!r}.", hint="`remotegpu setting list` shows them.")


async def _record(db: AsyncSession, *, actor: Actor, old: dict[str, Any], new: dict[str, Any]) -> None:
    audit.note(db, old=old, new=new)
    await events.record(
        db,
        kind="settings.changed",
        subject_type="setting",
        subject_id=", ".join(new),
        actor=actor,
        message=f"{actor.name} changed {', '.join(new)}.",
        data={"old": old, "new": new},
    )
    notify(db, "queue")


async def _answer(db: AsyncSession, setting: AnySetting) -> SettingOnWire:
    (found,) = await _now(db, keys=[setting.key])
    return found


async def _now(db: AsyncSession, *, keys: Sequence[str]) -> list[SettingOnWire]:
    row = tables.PlatformSetting
    found = await db.scalars(select(row).where(row.key.in_(keys)).execution_options(populate_existing=True))
    rows = {one.key: one for one in found}
    return [convert.to_wire(REGISTRY[key], rows.get(key)) for key in keys]
