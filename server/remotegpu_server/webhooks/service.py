"""Webhooks as their owners keep them."""

from __future__ import annotations

import base64
import secrets
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from remotegpu.errors import Conflict, Forbidden, Invalid, NotFound, StateConflict
from remotegpu.types.webhooks import (
    Webhook,
    WebhookCreate,
    WebhookCreated,
    WebhookDelivery,
    WebhookEvent,
    WebhookUpdate,
)
from remotegpu.types.wire import Page
from remotegpu_server import egress, pagination
from remotegpu_server.audit import service as audit
from remotegpu_server.authz import Action, Actor, require
from remotegpu_server.crypto import Vault
from remotegpu_server.db import tables
from remotegpu_server.events import service as events
from remotegpu_server.outbox import service as outbox
from remotegpu_server.platform_settings import service as platform_settings
from remotegpu_server.platform_settings.registry import WEBHOOK_ALLOWED_NETWORKS
from remotegpu_server.webhooks.convert import delivery_to_wire, to_wire

MOST = 50
"""Webhooks of one person."""
_row, _sent = tables.Webhook, tables.OutboxMessage


async def list_webhooks(db: AsyncSession, *, actor: Actor, limit: int, cursor: str | None) -> Page[Webhook]:
    """The caller's own, the oldest first."""
    require(actor, Action.WEBHOOK_LIST)
    rows, following = await pagination.page(
        db,
        select(_row).where(_row.owner_id == actor.user_id),
        key=(_row.created_at, _row.id),
        limit=limit,
        cursor=cursor,
    )
    return Page[Webhook](items=[to_wire(row) for row in rows], next_cursor=following)


async def create(db: AsyncSession, *, actor: Actor, body: WebhookCreate, vault: Vault) -> WebhookCreated:
    """It is told what its owner may see, from now on."""
    require(actor, Action.WEBHOOK_CREATE)
    await _require_reachable(db, body.url)
    count = await db.scalar(select(func.count()).where(_row.owner_id == actor.user_id))
    if (count or 0) >= MOST:
        raise Conflict(f"You have {MOST} webhooks already.", hint="Delete one first.")
    secret = secrets.token_bytes(32)
    row = await db.scalar(
        insert(_row)
        .values(
            id=tables.new_id("whk"),
            owner_id=actor.user_id,
            url=body.url,
            events=_names(body.events),
            description=body.description,
            secret=vault.seal(secret),
        )
        .returning(_row)
    )
    assert row is not None
    await _record(db, row, actor, "created")
    return WebhookCreated(webhook=to_wire(row), secret=_shown(secret))


async def get(db: AsyncSession, *, actor: Actor, webhook_id: str) -> Webhook:
    """One webhook; 404 for somebody else's."""
    return to_wire(await _found(db, actor, Action.WEBHOOK_READ, webhook_id))


async def change(db: AsyncSession, *, actor: Actor, webhook_id: str, body: WebhookUpdate) -> Webhook:
    """Change what is named; it is tried again at once."""
    row = await _found(db, actor, Action.WEBHOOK_WRITE, webhook_id)
    if body.url is not None:
        _require_own(actor, row, "say where it leads")
        await _require_reachable(db, body.url)
    values: dict[str, Any] = body.model_dump(exclude_none=True, exclude={"events"})
    if body.events is not None:
        values["events"] = _names(body.events)
    audit.note(db, changed=sorted(values))
    row = await _store(db, row, **values, failures=0, failing_since=None, paused_until=None)
    await _record(db, row, actor, "changed")
    return to_wire(row)


async def remove(db: AsyncSession, *, actor: Actor, webhook_id: str) -> None:
    """What was not delivered yet goes with it."""
    row = await _found(db, actor, Action.WEBHOOK_WRITE, webhook_id)
    await _record(db, row, actor, "deleted")
    await db.execute(delete(_row).where(_row.id == row.id))


async def rotate(db: AsyncSession, *, actor: Actor, webhook_id: str, vault: Vault) -> WebhookCreated:
    """A new secret; the old one signs nothing any more."""
    row = await _found(db, actor, Action.WEBHOOK_WRITE, webhook_id)
    _require_own(actor, row, "have its secret")
    secret = secrets.token_bytes(32)
    row = await _store(db, row, secret=vault.seal(secret))
    await _record(db, row, actor, "secret_rotated")
    return WebhookCreated(webhook=to_wire(row), secret=_shown(secret))


async def send_test(db: AsyncSession, *, actor: Actor, webhook_id: str) -> WebhookDelivery:
    """Put a delivery of the kind ``webhook.test`` on its way; the log says how it went."""
    row = await _found(db, actor, Action.WEBHOOK_WRITE, webhook_id)
    if not row.enabled:
        raise StateConflict("This webhook is switched off.", hint="Enable it first.")
    now = datetime.now(UTC).isoformat()
    payload = {"type": "webhook.test", "timestamp": now, "data": {"actor": actor.name}}
    message = outbox.Message(user_id=row.owner_id, webhook_id=row.id, kind="webhook.test", payload=payload)
    (delivery_id,) = await outbox.put(db, "webhook", [message])
    await _store(db, row, paused_until=None)
    audit.note(db, delivery=delivery_id)
    sent = await db.get_one(_sent, delivery_id)
    return delivery_to_wire(sent)


async def list_deliveries(
    db: AsyncSession, *, actor: Actor, webhook_id: str, limit: int, cursor: str | None
) -> Page[WebhookDelivery]:
    """The newest first, as far as they are kept."""
    row = await _found(db, actor, Action.WEBHOOK_READ, webhook_id)
    query = select(_sent).where(_sent.webhook_id == row.id)
    if cursor is not None:
        query = query.where(pagination.before((_sent.created_at, _sent.id), cursor))
    rows = list(await db.scalars(query.order_by(_sent.created_at.desc(), _sent.id.desc()).limit(limit + 1)))
    last = rows[limit - 1] if len(rows) > limit else None
    return Page[WebhookDelivery](
        items=[delivery_to_wire(one) for one in rows[:limit]],
        next_cursor=pagination.encode([last.created_at, last.id]) if last else None,
    )


async def _require_reachable(db: AsyncSession, url: str) -> None:
    allowed = egress.parse_networks(await platform_settings.value(db, WEBHOOK_ALLOWED_NETWORKS))
    try:
        egress.check_url(url, allowed)
    except egress.EgressRefused as error:
        message = f"url: {error}."
        errors = [{"field": "body.url", "message": str(error)}]
        raise Invalid(message, hint="Give a public https:// URL.", data={"errors": errors}) from error


async def _found(db: AsyncSession, actor: Actor, action: Action, webhook_id: str) -> tables.Webhook:
    """The webhook, if the actor may do ``action`` with it. One of a platform admin is told of everybody's
    events, so the owners of the customer that the admin happens to be of have no part in it.
    """
    user = tables.User
    query = select(_row, user.customer_id, user.role).join(user, user.id == _row.owner_id)
    query = query.where(_row.id == webhook_id)
    if action is Action.WEBHOOK_WRITE:
        query = query.with_for_update(of=_row)
    found = (await db.execute(query.execution_options(populate_existing=True))).one_or_none()
    if found is None:
        raise NotFound("There is no such webhook.")
    row, customer_id, role = found
    require(actor, action, user_id=row.owner_id, customer_id=customer_id, noun="webhook")
    result: tables.Webhook = row
    if role == "admin" and not actor.is_admin and actor.user_id != result.owner_id:
        raise NotFound("There is no such webhook.")
    return result


def _require_own(actor: Actor, row: tables.Webhook, what: str) -> None:
    """It is told all that its owner may see, also in workspaces of other customers."""
    if actor.user_id != row.owner_id and not actor.is_admin:
        raise Forbidden(f"Only the owner of a webhook and platform admins may {what}.")


async def _store(db: AsyncSession, row: tables.Webhook, **values: Any) -> tables.Webhook:
    changed = await db.scalar(
        update(_row)
        .where(_row.id == row.id)
        .values(**values)
        .returning(_row)
        .execution_options(populate_existing=True, synchronize_session=False)
    )
    assert changed is not None, "the row is locked"
    return changed


async def _record(db: AsyncSession, row: tables.Webhook, actor: Actor, what: str) -> None:
    await events.record(
        db,
        kind=f"webhook.{what}",
        subject_type="webhook",
        subject_id=row.id,
        actor=actor,
        message=f"{actor.name}: webhook {row.id} {what.replace('_', ' ')}.",
        data={"events": row.events},
        user_id=row.owner_id,
    )


def _names(wanted: list[WebhookEvent]) -> list[str]:
    return sorted({str(one) for one in wanted})


def _shown(secret: bytes) -> str:
    return f"whsec_{base64.b64encode(secret).decode()}"
