"""Limits are checked in the transaction that takes, with the limit rows locked in id order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from remotegpu.errors import Invalid, NotFound
from remotegpu.types.quotas import (
    Quota,
    QuotaChange,
    QuotaLine,
    QuotaOverrun,
    QuotaResource,
    QuotaSubject,
    QuotaUpdate,
)
from remotegpu_server import authz
from remotegpu_server.audit import service as audit
from remotegpu_server.authz import Action, Actor
from remotegpu_server.db import tables
from remotegpu_server.db.notify import notify
from remotegpu_server.events import service as events
from remotegpu_server.platform_settings import service as platform_settings
from remotegpu_server.platform_settings.registry import QUOTA_GPU_HOURS_WINDOW_S
from remotegpu_server.quotas import policies, queries, refusals
from remotegpu_server.quotas.queries import RESOURCES, UNBOUND, Bound, Subject
from remotegpu_server.quotas.refusals import Excess

_ROUNDING = 1e-6
"""Thirds of a GPU add up to a little more than one."""

__all__ = ["Subject", "check", "excess", "get_quota", "get_quota_of", "lines", "set_quota", "subjects_of"]


async def check(
    db: AsyncSession,
    *,
    subjects: Sequence[Subject],
    adding: Mapping[QuotaResource, float],
    environment_id: str | None = None,
    lock: bool = True,
) -> None:
    """Lock the limits and raise :class:`QuotaExceeded` for the first that ``adding`` would pass.

    ``subjects`` begins with the user who asks. ``environment_id`` is the environment that asks: it is not
    counted among the ones in use.
    """
    found = await excess(db, subjects=subjects, adding=adding, environment_id=environment_id, lock=lock)
    if found is not None:
        own = await queries.holders(
            db, owner_id=subjects[0].id, resource=found.resource, without_environment=environment_id
        )
        raise refusals.exceeded(found, own=own)


async def excess(
    db: AsyncSession,
    *,
    subjects: Sequence[Subject],
    adding: Mapping[QuotaResource, float],
    environment_id: str | None = None,
    lock: bool = False,
) -> Excess | None:
    """The first limit that ``adding`` would pass, in the order of ``subjects``."""
    bounds = await queries.limits(db, subjects=subjects, lock=lock)
    asked = {resource for resource, amount in adding.items() if amount}
    if QuotaResource.GPUS in asked:
        asked.add(QuotaResource.GPU_HOURS)
    if asked & {QuotaResource.ENVIRONMENTS, QuotaResource.TASKS}:
        asked.add(QuotaResource.STORAGE_BYTES)  # whatever starts writes to a home
    binding = [
        (subject, resource, bounds[key])
        for subject in subjects
        for resource in RESOURCES
        if resource in asked and (key := _key(subject, resource)) in bounds and bounds[key].limit is not None
    ]
    if not binding:
        return None
    used = await queries.used(
        db,
        wanted={_key(subject, resource): bound.window_s for subject, resource, bound in binding},
        without_environment=environment_id,
    )
    for subject, resource, bound in binding:
        held = used[_key(subject, resource)]
        if held is None:
            continue  # not measured: what is not known refuses nobody
        found = Excess(subject, resource, bound, held, adding.get(resource, 0.0))
        if found.used + found.requested > found.limit + _ROUNDING or _is_used_up(found):
            return await _with_retry(db, found)
    return None


def _key(subject: Subject, resource: QuotaResource) -> queries.Key:
    return (str(subject.kind), subject.id, str(resource))


def _is_used_up(found: Excess) -> bool:
    """Hours and disk are not asked for beforehand: something may start while any are left."""
    metered = found.resource in (QuotaResource.GPU_HOURS, QuotaResource.STORAGE_BYTES)
    return metered and found.used >= found.limit


async def _with_retry(db: AsyncSession, found: Excess) -> Excess:
    if found.resource is not QuotaResource.GPU_HOURS or found.bound.window_s is None:
        return found
    now, spans = await queries.gpu_spans(db, subject=found.subject, window_s=found.bound.window_s)
    retry_at = refusals.free_again_at(
        now=now,
        spans=spans,
        window_s=found.bound.window_s,
        limit_hours=found.limit - found.requested,
    )
    return replace(found, retry_at=retry_at)


async def subjects_of(
    db: AsyncSession, *, user_id: str, workspace_id: str | None = None
) -> tuple[Subject, Subject, Subject]:
    """The user, the workspace (left out: the personal one) and its customer, as refusals name them."""
    user, workspace, customer = tables.User, tables.Workspace, tables.Customer
    which = workspace.personal_of == user.id if workspace_id is None else workspace.id == workspace_id
    found = await db.execute(
        select(user.username, workspace.id, workspace.name, customer.id, customer.name)
        .select_from(user)
        .join(workspace, which)
        .join(customer, customer.id == workspace.customer_id)
        .where(user.id == user_id)
    )
    username, found_workspace_id, workspace_name, customer_id, customer_name = found.one()
    return (
        Subject(QuotaSubject.USER, user_id, username),
        Subject(QuotaSubject.WORKSPACE, found_workspace_id, workspace_name),
        Subject(QuotaSubject.CUSTOMER, customer_id, customer_name),
    )


async def lines(db: AsyncSession, *, subjects: Sequence[Subject]) -> list[QuotaLine]:
    """Every limit of the subjects with its use, unlimited ones included: two statements."""
    bounds = await queries.limits(db, subjects=subjects, lock=False)
    default_window_s = await platform_settings.value(db, QUOTA_GPU_HOURS_WINDOW_S)
    keys = {
        _key(subject, resource): (subject, resource)
        for subject in subjects
        for resource in sorted(RESOURCES, key=list(QuotaResource).index)
    }
    windows = {
        key: bounds.get(key, UNBOUND).window_s or default_window_s
        if resource is QuotaResource.GPU_HOURS
        else None
        for key, (_, resource) in keys.items()
    }
    used = await queries.used(db, wanted=windows)
    return [
        line(subject, resource, replace(bounds.get(key, UNBOUND), window_s=windows[key]), used[key])
        for key, (subject, resource) in keys.items()
    ]


def line(subject: Subject, resource: QuotaResource, bound: Bound, used: float | None) -> QuotaLine:
    """One limit as people see it."""
    known = bound.limit is not None and used is not None
    return QuotaLine(
        subject=subject.kind,
        subject_id=subject.id,
        subject_name=subject.name,
        resource=resource,
        limit=bound.limit,
        used=used,
        available=max((bound.limit or 0) - (used or 0.0), 0.0) if known else None,
        window_s=bound.window_s,
        policy=bound.policy,
        raised_until=bound.raised_until,
    )


async def get_quota(db: AsyncSession, *, actor: Actor, workspace: str | None) -> Quota:
    """The limits that bind the caller: its own, those of a workspace of its, and of the customer."""
    authz.require(actor, Action.QUOTA_READ)
    assert actor.user_id is not None, "people and workloads have a user"
    if actor.environment_id is not None:
        row = tables.Environment
        workspace = await db.scalar(select(row.workspace_id).where(row.id == actor.environment_id))
    elif workspace is not None and workspace not in actor.workspaces:
        raise NotFound("There is no such workspace.")
    subjects = await subjects_of(db, user_id=actor.user_id, workspace_id=workspace)
    return Quota(lines=await lines(db, subjects=subjects))


async def get_quota_of(db: AsyncSession, *, actor: Actor, subject: QuotaSubject, subject_id: str) -> Quota:
    """The limits of a user (with its personal workspace and customer), a workspace, or a customer."""
    found = await readable(db, actor=actor, action=Action.QUOTA_READ_OF, kind=subject, given=subject_id)
    return Quota(lines=await lines(db, subjects=await _with_those_above(db, found)))


async def set_quota(
    db: AsyncSession, *, actor: Actor, subject: QuotaSubject, subject_id: str, body: QuotaUpdate
) -> QuotaChange:
    """Set own limits of a subject. One below the present use only refuses what is new."""
    found = await readable(db, actor=actor, action=Action.QUOTA_WRITE, kind=subject, given=subject_id)
    refuse_unknown([*body.limits, *body.reset])
    old = await queries.limits(db, subjects=[found], lock=True)
    for resource in body.reset:
        await policies.forget_own(db, subject=found, resource=resource)
    for resource, limit in sorted(body.limits.items()):
        before = old.get(_key(found, resource), UNBOUND)
        await set_own(
            db, subject=found, resource=resource, limit=limit, window_s=body.window_s or before.window_s
        )
    if body.reset:
        await policies.apply(db, subject_id=found.id)
    new = await queries.limits(db, subjects=[found], lock=False)
    audit.note(db, resource_id=found.id, old=_plain_limits(old), new=_plain_limits(new))
    await record_change(db, actor=actor, subject=found, limits=_plain_limits(new))
    shown = await lines(db, subjects=await _with_those_above(db, found))
    return QuotaChange(lines=shown, over=overruns(one for one in shown if one.subject_id == found.id))


def refuse_unknown(resources: Sequence[QuotaResource]) -> None:
    """Raise :class:`Invalid` for a resource that this server does not know."""
    if QuotaResource.UNKNOWN in resources:
        raise Invalid("This is not a resource.", hint=f"Resources: {', '.join(RESOURCES)}.")


async def set_own(
    db: AsyncSession, *, subject: Subject, resource: QuotaResource, limit: int | None, window_s: int | None
) -> None:
    """Write a limit of the subject's own, which no policy changes."""
    row = tables.Quota
    if resource is not QuotaResource.GPU_HOURS:
        window_s = None
    elif window_s is None:
        window_s = await platform_settings.value(db, QUOTA_GPU_HOURS_WINDOW_S)
    values: dict[str, Any] = {"limit_value": limit, "window_s": window_s, "policy_id": None}
    made = insert(row).values(
        subject_type=str(subject.kind), subject_id=subject.id, resource=str(resource), **values
    )
    await db.execute(
        made.on_conflict_do_update(
            index_elements=["subject_type", "subject_id", "resource"],
            set_={**values, "granted_value": None, "granted_until": None, "changed_at": func.now()},
        )
    )


async def record_change(
    db: AsyncSession, *, actor: Actor, subject: Subject, limits: Mapping[str, int | None]
) -> None:
    """The event of changed limits; the queue looks again."""
    await events.record(
        db,
        kind="quota.changed",
        subject_type="quota",
        subject_id=subject.id,
        actor=actor,
        message=f"Limits of {subject.kind} {subject.name} were changed.",
        data={"subject": str(subject.kind), "limits": dict(limits)},
        customer_id=subject.id if subject.kind is QuotaSubject.CUSTOMER else None,
        user_id=subject.id if subject.kind is QuotaSubject.USER else None,
        workspace_id=subject.id if subject.kind is QuotaSubject.WORKSPACE else None,
    )
    notify(db, "queue")


def overruns(shown: Iterable[QuotaLine]) -> list[QuotaOverrun]:
    """Who holds more than allowed, and what that means."""
    return [
        QuotaOverrun(
            subject=one.subject,
            subject_id=one.subject_id,
            subject_name=one.subject_name,
            resource=one.resource,
            limit=one.limit,
            used=one.used,
            over_by=one.used - one.limit,
            message=refusals.overrun(one, limit=one.limit, used=one.used),
        )
        for one in shown
        if one.limit is not None and one.used is not None and one.used > one.limit
    ]


def _plain_limits(bounds: Mapping[queries.Key, Bound]) -> dict[str, int | None]:
    return {resource: bound.limit for (_, _, resource), bound in bounds.items()}


async def _with_those_above(db: AsyncSession, subject: Subject) -> Sequence[Subject]:
    if subject.kind is QuotaSubject.USER:
        return await subjects_of(db, user_id=subject.id)
    if subject.kind is QuotaSubject.CUSTOMER:
        return [subject]
    workspace, customer = tables.Workspace, tables.Customer
    found = await db.execute(
        select(customer.id, customer.name)
        .select_from(customer)
        .join(workspace, workspace.customer_id == customer.id)
        .where(workspace.id == subject.id)
    )
    return [subject, Subject(QuotaSubject.CUSTOMER, *found.one())]


async def readable(
    db: AsyncSession, *, actor: Actor, action: Action, kind: QuotaSubject, given: str
) -> Subject:
    """The user, workspace or customer of that id or name, if the actor may.

    Names of workspaces are unique within a customer only: those are named by id.
    """
    row: Any
    if kind is QuotaSubject.USER:
        user = tables.User
        row = await db.scalar(select(user).where((user.id == given) | (user.username == given)))
        found = Subject(kind, row.id, row.username) if row else None
        owner = {"user_id": row.id, "customer_id": row.customer_id} if row else {}
    elif kind is QuotaSubject.WORKSPACE:
        row = await db.scalar(select(tables.Workspace).where(tables.Workspace.id == given))
        found = Subject(kind, row.id, row.name) if row else None
        owner = {"workspace_id": row.id, "customer_id": row.customer_id} if row else {}
    elif kind is QuotaSubject.CUSTOMER:
        customer = tables.Customer
        row = await db.scalar(select(customer).where((customer.id == given) | (customer.name == given)))
        found = Subject(kind, row.id, row.name) if row else None
        owner = {"customer_id": row.id} if row else {}
    else:
        raise Invalid("Quotas bind a user, a workspace or a customer.")
    if found is None:
        raise NotFound(f"There is no such {kind}.")
    authz.require(actor, action, noun=str(kind), **owner)
    return found
