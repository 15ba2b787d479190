"""Writing the audit trail, in the transaction of what it records.

Every mutating route writes one record by itself (``routing.py``); a read writes one when its service noted
something. Services add facts with :func:`note`; never a secret.
"""

from __future__ import annotations

import json
from typing import Any, cast

from sqlalchemy import insert
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.requests import Request

from remotegpu_server.auth.client_address import client_address
from remotegpu_server.authz import Actor
from remotegpu_server.db import tables
from remotegpu_server.db.session import SAFE_METHODS

_NOTED = "remotegpu_audit"


def note(db: AsyncSession, *, resource_id: str | None = None, **facts: Any) -> None:
    """Add facts to the record of this request: ``old`` and ``new`` values, counts, reasons.

    ``resource_id`` names what the path does not (the id of something new). In a read it makes the record.
    """
    noted = cast("dict[str, Any]", db.sync_session.info.setdefault(_NOTED, {}))
    noted |= facts
    if resource_id is not None:
        noted["resource_id"] = resource_id


async def record_request(
    request: Request, *, resource_type: str, action: str, status: int, routine: bool
) -> None:
    """The record of a request that succeeded. ``routine`` ones leave one only if their service noted
    something; so do reads.
    """
    db: AsyncSession | None = getattr(request.state, "db", None)
    if db is None:
        return
    noted = cast("dict[str, Any]", db.sync_session.info.pop(_NOTED, {}))
    if (routine or request.method in SAFE_METHODS) and not noted:
        return
    actor: Actor | None = getattr(request.state, "actor", None)
    path_ids = list(request.path_params.values())
    resource_id = noted.pop("resource_id", path_ids[0] if path_ids else None)
    await record(
        db,
        actor=actor,
        action=action,
        outcome="done",
        status=status,
        address=client_address(
            request, request.app.state.settings, forwarder_is_trusted=actor is not None and actor.is_service
        ),
        request_id=request.state.request_id,
        resource_type=resource_type,
        resource_id=resource_id,
        detail=noted,
    )


async def record(
    db: AsyncSession,
    *,
    actor: Actor | None,
    action: str,
    outcome: str,
    status: int = 0,
    address: str | None = None,
    request_id: str = "",
    resource_type: str,
    resource_id: str | None = None,
    detail: dict[str, Any] | None = None,
) -> None:
    """Write one record. ``actor`` is ``None`` for somebody who did not sign in."""
    acts_for = actor.username if actor is not None and actor.is_service else None
    await db.execute(
        insert(tables.AuditRecord).values(
            action=action,
            outcome=outcome,
            status=status,
            actor=actor.name if actor is not None else "anonymous",
            acted_for=acts_for,
            token_id=actor.token_id or None if actor is not None else None,
            customer_id=actor.customer_id if actor is not None else None,
            address=address,
            request_id=request_id,
            resource_type=resource_type,
            resource_id=resource_id,
            detail=json.loads(json.dumps(detail or {}, default=str)),
        )
    )
