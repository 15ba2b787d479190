"""When an environment ends by itself: the times that were asked for, within the platform's limits."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Interval, cast, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from remotegpu.errors import Invalid, StateConflict
from remotegpu.types.environments import Environment, EnvironmentExtend, EnvironmentStatus, IdlePolicy, Reason
from remotegpu_server.audit import service as audit
from remotegpu_server.authz import Action, Actor
from remotegpu_server.db import tables
from remotegpu_server.environments import convert, lifecycle, queries
from remotegpu_server.environments.service.stop import locked
from remotegpu_server.events import service as events
from remotegpu_server.platform_settings import registry
from remotegpu_server.platform_settings import service as platform_settings
from remotegpu_server.queue import extensions

NOT_IDLE: dict[str, Any] = {"idle_since": None, "idle_stage": None, "idle_stop_at": None}
"""Columns of an environment that is in use, or of which that is not known."""
Status = EnvironmentStatus
_EXTENDABLE = frozenset({Status.STARTING, Status.RUNNING, Status.UNREACHABLE})


@dataclass(frozen=True, slots=True)
class Ceiling:
    """The longest that something may run, and who says so."""

    max_lifetime_s: float
    binding: str
    """``platform``, ``workspace`` or ``image``."""
    where: str
    """The same for a sentence."""


async def ceiling(db: AsyncSession, *, workspace_id: str, image_id: str) -> Ceiling | None:
    """The smallest of the platform's, the workspace's and the image's ceiling; ``None``: none is set."""
    space, image = tables.Workspace, tables.Image
    of_space, space_name, of_image, image_name = (
        await db.execute(
            select(space.max_lifetime_s, space.name, image.max_lifetime_s, image.name)
            .join(image, image.id == image_id)
            .where(space.id == workspace_id)
        )
    ).one()
    of_platform = await platform_settings.value(db, registry.ENVIRONMENT_MAX_LIFETIME_S)
    known = (
        (of_platform, "platform", "on this platform"),
        (of_space, "workspace", f"in the workspace {space_name}"),
        (of_image, "image", f"from the image {image_name}"),
    )
    found = [Ceiling(limit_s, *words) for limit_s, *words in known if limit_s]
    return min(found, key=lambda one: one.max_lifetime_s, default=None)


async def columns(
    db: AsyncSession,
    *,
    stop_at: datetime | None,
    max_lifetime_s: float | None,
    idle: IdlePolicy | None,
    limit: Ceiling | None,
) -> dict[str, Any]:
    """The columns of a new start. Raises :class:`Invalid` for a time that is over or above the ceiling."""
    usual = await platform_settings.value(db, registry.ENVIRONMENT_DEFAULT_LIFETIME_S)
    ceiling_s = limit.max_lifetime_s if limit is not None else None
    if limit is not None and max_lifetime_s is not None and max_lifetime_s > limit.max_lifetime_s:
        raise Invalid(
            f"max_lifetime_s: what starts {limit.where} runs {limit.max_lifetime_s:g} s at most.",
            hint="Leave it out, or ask for less; near its end an environment can be extended up to that.",
            data={"max_lifetime_s": limit.max_lifetime_s, "binding": limit.binding},
        )
    if stop_at is not None and stop_at <= await queries.now(db):
        raise Invalid("stop_at: this time is over.", hint="Name a time in the future.")
    wanted = max_lifetime_s or usual or ceiling_s
    return {
        "stop_at": stop_at,
        "max_lifetime_s": (min(wanted, ceiling_s) if wanted and ceiling_s else wanted) or None,
        "deadline_at": stop_at,
        "deadline_warned_s": None,
        "idle_policy": await _idle_policy(db, idle),
        **NOT_IDLE,
    }


async def _idle_policy(db: AsyncSession, wanted: IdlePolicy | None) -> dict[str, Any] | None:
    if wanted is None:
        after_s = await platform_settings.value(db, registry.ENVIRONMENT_IDLE_AFTER_S)
        wanted = IdlePolicy(after_s=after_s)
    return wanted.model_dump() if wanted.after_s else None


def deadline_from_now() -> ColumnElement[datetime]:
    """The deadline of an environment that becomes ready in this statement: its own row's columns decide."""
    row = tables.Environment
    lifetime = func.make_interval(0, 0, 0, 0, 0, 0, row.max_lifetime_s)
    deadline: ColumnElement[datetime] = func.least(row.stop_at, func.now() + cast(lifetime, Interval))
    return deadline


def reason(environment: tables.Environment) -> Reason:
    """Which of the two the deadline is."""
    by_clock = environment.stop_at is not None and environment.stop_at == environment.deadline_at
    return Reason.STOP_AT if by_clock else Reason.LIFETIME


async def extend(
    db: AsyncSession, *, actor: Actor, environment_id: str, body: EnvironmentExtend
) -> Environment:
    """Put the stop off, and take an announced idle stop back. Legal while it starts or runs.

    Raises :class:`StateConflict` where nothing would stop it, or where the ceiling does not allow it.
    """
    environment = await locked(
        db, actor=actor, action=Action.ENVIRONMENT_WRITE, environment_id=environment_id
    )
    if environment.status not in _EXTENDABLE or environment.desired != "running":
        raise StateConflict(
            f"{environment.name} is {environment.status}; only one that runs can be extended.",
            hint=f"Start it with `remotegpu env start {environment.name}`.",
        )
    if environment.deadline_at is None and environment.idle_since is None:
        raise StateConflict(
            f"Nothing is going to stop {environment.name}.", hint="There is nothing to extend."
        )
    before = environment.deadline_at
    after = await _put_off(db, environment=environment, by_s=body.by_s)
    values = {"deadline_at": after, "deadline_warned_s": None, **NOT_IDLE}
    if environment.stop_at is not None and environment.stop_at == before:
        values["stop_at"] = after
    changed = await queries.store(db, environment, **values)
    until = f"until {after:%Y-%m-%d %H:%M} UTC" if after is not None else "as used"
    await events.record(
        db,
        kind="environment.extended",
        subject_type="environment",
        subject_id=environment.id,
        actor=actor,
        message=f"{actor.name} extended {environment.name} {until}.",
        data={"by_s": body.by_s, "deadline_at": after.isoformat() if after is not None else None},
        customer_id=environment.customer_id,
        user_id=environment.owner_id,
        workspace_id=environment.workspace_id,
    )
    audit.note(db, old={"deadline_at": before}, new={"deadline_at": changed.deadline_at})
    (bundle,) = await queries.bundles(db, ids=[environment.id])
    return convert.to_wire(bundle)


async def _put_off(db: AsyncSession, *, environment: tables.Environment, by_s: float) -> datetime | None:
    """The new deadline. ``None`` where only unused time would stop it."""
    if environment.deadline_at is None:
        return None
    now = await queries.now(db)
    after = max(now, environment.deadline_at) + timedelta(seconds=by_s)
    highest = await ceiling(db, workspace_id=environment.workspace_id, image_id=environment.image_id)
    if highest is not None:
        latest = (environment.started_at or now) + timedelta(seconds=highest.max_lifetime_s)
        if after > latest:
            why = f"what starts {highest.where} runs {highest.max_lifetime_s:g} s at most"
            raise _too_long(environment, latest=latest, why=why)
    bound = await extensions.limit(db, environment=environment, until=after)
    if bound is not None:
        raise _too_long(environment, latest=bound.latest_at, why=bound.why)
    return after


async def stop_at_after_restart(db: AsyncSession, *, environment: tables.Environment) -> datetime | None:
    """``stop_at`` of the next generation in the same place. A lifetime counts anew from its readiness, unless
    that would break what others were promised: then the end that it has now stays.
    """
    if environment.deadline_at is None or environment.max_lifetime_s is None:
        return environment.stop_at
    starting_s = await platform_settings.value(db, registry.ENVIRONMENT_START_SILENCE_S)
    until = await queries.now(db) + timedelta(seconds=starting_s + environment.max_lifetime_s)
    if environment.stop_at is not None:
        until = min(until, environment.stop_at)
    if until <= environment.deadline_at:
        return environment.stop_at
    bound = await extensions.limit(db, environment=environment, until=until)
    return environment.stop_at if bound is None else environment.deadline_at


def _too_long(environment: tables.Environment, *, latest: datetime, why: str) -> StateConflict:
    assert environment.deadline_at is not None, "only a known end is put off"
    left_s = float(max(0, (latest - environment.deadline_at) // timedelta(seconds=1)))
    return StateConflict(
        f"{environment.name} may run until {latest:%Y-%m-%d %H:%M} UTC at most: {why}.",
        hint=f"It can be extended by {left_s:.0f} s." if left_s else "Stop it, and start it again.",
        data={"latest_at": latest.isoformat(), "max_by_s": left_s},
    )


async def warn(db: AsyncSession, *, environment: tables.Environment, actor: Actor) -> None:
    """Tell the owner of a locked environment that its deadline is near; each of the two warnings once."""
    assert environment.deadline_at is not None, "only those with a deadline are looked at"
    left_s = (environment.deadline_at - await queries.now(db)).total_seconds()
    due = [
        before_s
        for before_s in (
            await platform_settings.value(db, registry.ENVIRONMENT_LAST_WARNING_S),
            await platform_settings.value(db, registry.ENVIRONMENT_FIRST_WARNING_S),
        )
        if left_s <= before_s and (environment.deadline_warned_s or float("inf")) > before_s
    ]
    if not due:
        return
    await queries.store(db, environment, deadline_warned_s=min(due))
    await lifecycle.tell_owner(
        db,
        environment=environment,
        kind="environment.stops_soon",
        reason=reason(environment),
        level="warning",
        message=f"{environment.name} stops at {environment.deadline_at:%Y-%m-%d %H:%M} UTC, in "
        f"{max(1, round(left_s / 60))} minutes. `remotegpu env extend {environment.name}` puts it off.",
        data={"stops_at": environment.deadline_at.isoformat(), "warning_s": min(due)},
        actor=actor,
    )
