"""Policies: sets of limits for groups, kept as limit rows of every subject that they bind.

The rows are what is checked and locked; this module alone writes those with a ``policy_id``. It runs when a
policy changes, when a subject is made, and as a loop for what changed in between (a user's role).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import delete, func, insert, select, text, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from remotegpu.errors import Invalid, NameTaken, NotFound
from remotegpu.types.quotas import (
    Limits,
    PolicyTarget,
    QuotaPolicy,
    QuotaPolicyCreate,
    QuotaPolicyUpdate,
    QuotaResource,
    QuotaSubject,
)
from remotegpu.types.wire import Page
from remotegpu_server import authz
from remotegpu_server.audit import service as audit
from remotegpu_server.authz import Action, Actor
from remotegpu_server.db import tables
from remotegpu_server.db.notify import notify
from remotegpu_server.db.session import violated_constraint
from remotegpu_server.events import service as events
from remotegpu_server.pagination import page
from remotegpu_server.platform_settings import service as platform_settings
from remotegpu_server.platform_settings.registry import QUOTA_DEFAULT_POLICY, QUOTA_GPU_HOURS_WINDOW_S
from remotegpu_server.quotas import convert
from remotegpu_server.quotas.queries import Subject

_WANTED = """
    WITH subjects AS (
        SELECT 'user' AS kind, id, customer_id, role AS group_name FROM users
        UNION ALL SELECT 'workspace', id, customer_id, kind FROM workspaces WHERE status <> 'deleted'
        UNION ALL SELECT 'customer', id, id, NULL FROM customers
    ), targets AS (
        SELECT policy_id, subject_type, customer_id, group_name, id FROM quota_policy_targets
        UNION ALL SELECT id, 'user', NULL, NULL, 0 FROM quota_policies WHERE name = :default_policy
    ), best AS (
        SELECT DISTINCT ON (s.kind, s.id) s.kind, s.id, t.policy_id
        FROM subjects s JOIN targets t ON t.subject_type = s.kind
          AND (t.customer_id IS NULL OR t.customer_id = s.customer_id)
          AND (t.group_name IS NULL OR t.group_name = s.group_name)
        WHERE :subject_id = '' OR s.id = :subject_id
        ORDER BY s.kind, s.id, t.customer_id IS NULL, t.group_name IS NULL, t.id DESC
    ), wanted AS (
        SELECT b.kind, b.id, b.policy_id, l.resource, l.limit_value, l.window_s
        FROM best b JOIN quota_policy_limits l ON l.policy_id = b.policy_id
    )
"""
_REMOVE = f"""{_WANTED}
    DELETE FROM quotas q WHERE q.policy_id IS NOT NULL AND (:subject_id = '' OR q.subject_id = :subject_id)
      AND NOT EXISTS (SELECT 1 FROM wanted w
                      WHERE (w.kind, w.id, w.resource) = (q.subject_type, q.subject_id, q.resource))
    RETURNING q.id
"""  # noqa: S608  the text is ours
_WRITE = f"""{_WANTED}
    INSERT INTO quotas (subject_type, subject_id, resource, limit_value, window_s, policy_id)
    SELECT w.kind, w.id, w.resource, w.limit_value, w.window_s, w.policy_id FROM wanted w
    LEFT JOIN quotas q ON (q.subject_type, q.subject_id, q.resource) = (w.kind, w.id, w.resource)
    WHERE q.id IS NULL OR q.policy_id IS NOT NULL
      AND (q.limit_value, q.window_s, q.policy_id) IS DISTINCT FROM (w.limit_value, w.window_s, w.policy_id)
    ORDER BY q.id NULLS LAST, w.kind, w.id, w.resource
    ON CONFLICT (subject_type, subject_id, resource) DO UPDATE
    SET limit_value = excluded.limit_value, window_s = excluded.window_s, policy_id = excluded.policy_id,
        changed_at = now()
    WHERE quotas.policy_id IS NOT NULL
    RETURNING quotas.id
"""  # noqa: S608  the text is ours


async def apply(db: AsyncSession, *, subject_id: str = "") -> None:
    """Make the limit rows as the policies say, for one subject or for all. Own limits are left alone."""
    given = {
        "default_policy": await platform_settings.value(db, QUOTA_DEFAULT_POLICY),
        "subject_id": subject_id,
    }
    removed = await db.execute(text(_REMOVE), given)
    written = await db.execute(text(_WRITE), given)
    if removed.first() is not None or written.first() is not None:
        notify(db, "queue")


async def forget_own(db: AsyncSession, *, subject: Subject, resource: QuotaResource) -> None:
    """Take an own limit away; :func:`apply` brings the policy's."""
    row = tables.Quota
    await db.execute(
        delete(row).where(
            row.subject_type == str(subject.kind),
            row.subject_id == subject.id,
            row.resource == str(resource),
        )
    )


async def list_policies(
    db: AsyncSession, *, actor: Actor, limit: int, cursor: str | None
) -> Page[QuotaPolicy]:
    """By name."""
    authz.require(actor, Action.QUOTA_POLICY_READ)
    row = tables.QuotaPolicy
    rows, next_cursor = await page(db, select(row), key=(row.name,), limit=limit, cursor=cursor)
    return Page[QuotaPolicy](items=await _to_wire(db, rows), next_cursor=next_cursor)


async def get_policy(db: AsyncSession, *, actor: Actor, policy: str) -> QuotaPolicy:
    """By id or name."""
    authz.require(actor, Action.QUOTA_POLICY_READ)
    (found,) = await _to_wire(db, [await _found(db, policy)])
    return found


async def create_policy(db: AsyncSession, *, actor: Actor, body: QuotaPolicyCreate) -> QuotaPolicy:
    """A new policy, which binds its targets at once."""
    authz.require(actor, Action.QUOTA_POLICY_WRITE)
    try:
        async with db.begin_nested():
            row = await db.scalar(
                insert(tables.QuotaPolicy)
                .values(id=tables.new_id("pol"), name=body.name, description=body.description)
                .returning(tables.QuotaPolicy)
            )
    except IntegrityError as error:
        raise NameTaken(f"There is a policy {body.name} already.") from error
    assert row is not None
    await _replace_limits(db, policy=row, limits=body.limits, window_s=body.window_s)
    await _replace_targets(db, policy=row, targets=body.applies_to)
    return await _changed(db, actor=actor, policy=row, verb="created")


async def update_policy(
    db: AsyncSession, *, actor: Actor, policy: str, body: QuotaPolicyUpdate
) -> QuotaPolicy:
    """Fields left out stay. Whom it binds is bound by the new limits at once; nothing running is stopped."""
    authz.require(actor, Action.QUOTA_POLICY_WRITE)
    row = await _found(db, policy)
    (old,) = await _to_wire(db, [row])
    if body.description is not None:
        await db.execute(
            update(tables.QuotaPolicy)
            .where(tables.QuotaPolicy.id == row.id)
            .values(description=body.description)
        )
        await db.refresh(row)
    if body.limits is not None or body.window_s is not None:
        limits = old.limits if body.limits is None else body.limits
        await _replace_limits(db, policy=row, limits=limits, window_s=body.window_s or old.window_s)
    if body.applies_to is not None:
        await _replace_targets(db, policy=row, targets=body.applies_to)
    audit.note(db, old=old.model_dump(mode="json"))
    return await _changed(db, actor=actor, policy=row, verb="changed")


async def delete_policy(db: AsyncSession, *, actor: Actor, policy: str) -> None:
    """Its limits end at once, where the next policy does not bring others."""
    authz.require(actor, Action.QUOTA_POLICY_WRITE)
    row = await _found(db, policy)
    audit.note(db, resource_id=row.id, old=row.name)
    await db.execute(delete(tables.QuotaPolicy).where(tables.QuotaPolicy.id == row.id))
    await apply(db)
    await _record(db, actor=actor, policy=row, verb="deleted")


async def _changed(db: AsyncSession, *, actor: Actor, policy: tables.QuotaPolicy, verb: str) -> QuotaPolicy:
    await apply(db)
    await _record(db, actor=actor, policy=policy, verb=verb)
    (found,) = await _to_wire(db, [policy])
    audit.note(db, resource_id=policy.id, new=found.model_dump(mode="json"))
    return found


async def _record(db: AsyncSession, *, actor: Actor, policy: tables.QuotaPolicy, verb: str) -> None:
    await events.record(
        db,
        kind=f"quota_policy.{verb}",
        subject_type="quota_policy",
        subject_id=policy.id,
        actor=actor,
        message=f"Quota policy {policy.name} was {verb}.",
    )


async def _replace_limits(
    db: AsyncSession, *, policy: tables.QuotaPolicy, limits: Limits, window_s: int | None
) -> None:
    if QuotaResource.UNKNOWN in limits:
        raise Invalid("This is not a resource.", hint="GET /v1/quota lists the resources.")
    row = tables.QuotaPolicyLimit
    window_s = window_s or await platform_settings.value(db, QUOTA_GPU_HOURS_WINDOW_S)
    await db.execute(delete(row).where(row.policy_id == policy.id))
    if limits:
        await db.execute(
            insert(row),
            [
                {
                    "policy_id": policy.id,
                    "resource": str(resource),
                    "limit_value": limit,
                    "window_s": window_s if resource is QuotaResource.GPU_HOURS else None,
                }
                for resource, limit in limits.items()
            ],
        )


async def _replace_targets(
    db: AsyncSession, *, policy: tables.QuotaPolicy, targets: Sequence[PolicyTarget]
) -> None:
    row = tables.QuotaPolicyTarget
    await db.execute(delete(row).where(row.policy_id == policy.id))
    if not targets:
        return
    rows = [await _target_values(db, policy=policy, target=target) for target in targets]
    try:
        async with db.begin_nested():
            await db.execute(insert(row), rows)
    except IntegrityError as error:
        if violated_constraint(error) == "uq_quota_policy_targets_subject_type_customer_id_group_name":
            raise Invalid(
                "Another policy applies to one of these groups already.",
                hint="Take the group out of that policy first: one policy for each group.",
            ) from error
        raise


async def _target_values(
    db: AsyncSession, *, policy: tables.QuotaPolicy, target: PolicyTarget
) -> dict[str, Any]:
    groups = {
        QuotaSubject.USER: {"admin", "owner", "member"},
        QuotaSubject.WORKSPACE: {"personal", "team"},
        QuotaSubject.CUSTOMER: set(),
    }
    if target.subject not in groups or (target.group and target.group not in groups[target.subject]):
        raise Invalid(f"There is no group {target.group or ''!r} of {target.subject}s.")
    customer = tables.Customer
    customer_id = None
    if target.customer is not None:
        customer_id = await db.scalar(
            select(customer.id).where((customer.id == target.customer) | (customer.name == target.customer))
        )
        if customer_id is None:
            raise NotFound("There is no such customer.")
    return {
        "policy_id": policy.id,
        "subject_type": str(target.subject),
        "customer_id": customer_id,
        "group_name": target.group,
    }


async def _found(db: AsyncSession, policy: str) -> tables.QuotaPolicy:
    row = tables.QuotaPolicy
    found: tables.QuotaPolicy | None = await db.scalar(
        select(row).where((row.id == policy) | (row.name == policy))
    )
    if found is None:
        raise NotFound("There is no such policy.")
    return found


async def _to_wire(db: AsyncSession, rows: Sequence[tables.QuotaPolicy]) -> list[QuotaPolicy]:
    ids = [row.id for row in rows]
    limit, target, quota, customer = (
        tables.QuotaPolicyLimit,
        tables.QuotaPolicyTarget,
        tables.Quota,
        tables.Customer,
    )
    limits = list(
        await db.scalars(
            select(limit).where(limit.policy_id.in_(ids)).execution_options(populate_existing=True)
        )
    )
    targets = (
        await db.execute(
            select(target, customer.name)
            .outerjoin(customer, customer.id == target.customer_id)
            .where(target.policy_id.in_(ids))
            .order_by(target.id)
        )
    ).all()
    subjects = await db.execute(
        select(quota.policy_id, func.count(func.distinct(quota.subject_type + quota.subject_id)))
        .where(quota.policy_id.in_(ids))
        .group_by(quota.policy_id)
    )
    counts: dict[str | None, int] = dict(iter(subjects))
    return [
        convert.policy_to_wire(
            row,
            limits=[one for one in limits if one.policy_id == row.id],
            targets=[(one, name) for one, name in targets if one.policy_id == row.id],
            subjects=counts.get(row.id, 0),
        )
        for row in rows
    ]
