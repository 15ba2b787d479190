"""Writing the audit trail: what happened in the transaction that it records, what was refused right after.

Every mutating route writes one record by itself (``routing.py``), whether it succeeds or is refused; a read
writes one when its service noted something. Services add facts with :func:`note`; never a secret.
"""

from __future__ import annotations

import json
import re
from contextvars import ContextVar
from typing import Any, cast

import structlog
from sqlalchemy import insert
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.requests import Request

from remotegpu.errors import ApiError
from remotegpu_server import observability
from remotegpu_server.audit.budget import RefusalBudget
from remotegpu_server.auth.client_address import client_address
from remotegpu_server.authz import Actor
from remotegpu_server.db import tables
from remotegpu_server.db.session import SAFE_METHODS
from remotegpu_server.tokens import secret as token_secret

_NOTED = "remotegpu_audit"
_MADE = "remotegpu_audit_made"
_MAX_TEXT = 200
CREATED = 201
_SECRET_NAME = re.compile(r"password|secret|credential|authorization|cookie|private_key", re.IGNORECASE)
_REDACTED = "[redacted]"
_detached: ContextVar[dict[str, Any] | None] = ContextVar("remotegpu_audit", default=None)
_log = structlog.get_logger(__name__)


def note(db: AsyncSession, *, resource_id: str | None = None, **facts: Any) -> None:
    """Add facts to the record of this request: ``old`` and ``new`` values, counts, reasons.

    ``resource_id`` names what the path does not (the id of something new). In a read it makes the record.
    """
    noted = cast("dict[str, Any]", db.sync_session.info.setdefault(_NOTED, {}))
    noted |= facts
    if resource_id is not None:
        noted["resource_id"] = resource_id


def made(db: AsyncSession, resource_id: str) -> None:
    """What the first event of a transaction is about: the record of a create names it, unless noted."""
    db.sync_session.info.setdefault(_MADE, resource_id)


def note_detached(*, actor: Actor | None = None, **facts: Any) -> None:
    """The same for a request that holds no transaction of its own (signing in, changing a password).

    ``actor`` is who it turned out to be, where no token said so. Kept when the request is refused, too.
    """
    noted = _detached.get()
    if noted is not None:
        noted |= facts
        if actor is not None:
            noted["actor"] = actor


def begin() -> dict[str, Any]:
    """Start collecting what :func:`note_detached` says in this request."""
    noted: dict[str, Any] = {}
    _detached.set(noted)
    return noted


async def record_done(
    request: Request,
    *,
    resource_type: str,
    action: str,
    status: int,
    routine: bool,
    detached: dict[str, Any],
) -> None:
    """The record of a request that succeeded, in its transaction where it has one. ``routine`` ones leave
    one only if their service noted something; so do reads.
    """
    db: AsyncSession | None = getattr(request.state, "db", None)
    noted = detached | (db.sync_session.info.pop(_NOTED, {}) if db is not None else {})
    if db is not None and status == CREATED and not request.path_params:
        noted.setdefault("resource_id", db.sync_session.info.pop(_MADE, None))
    if (routine or request.method in SAFE_METHODS) and not noted:
        return
    values = _of_request(request, resource_type=resource_type, action=action, noted=noted)
    if db is not None:
        await record(db, outcome="done", status=status, **values)
        return
    async with request.app.state.database.sessions() as own:
        await _record_and_commit(own, outcome="done", status=status, **values)


async def record_refused(
    request: Request,
    error: ApiError,
    *,
    resource_type: str,
    action: str,
    routine: bool,
    detached: dict[str, Any],
) -> None:
    """The record of a request that was refused or failed, in a transaction of its own, after that of the
    request was rolled back. A budget bounds them, so that a flood cannot fill the disk; what it left out is
    counted in the next record. Never raises: the caller gets the refusal in any case.
    """
    quiet = routine or request.method in SAFE_METHODS
    if quiet and not (error.http_status == 403 or (routine and error.http_status == 401)):
        return
    noted = detached | {"error": error.error}
    values = _of_request(request, resource_type=resource_type, action=action, noted=noted)
    actor: Actor | None = values["actor"]
    budget: RefusalBudget = request.app.state.refusals
    left_out = budget.take(actor.name if actor else None)
    if left_out is None:
        return
    if left_out:
        values["detail"]["left_out_before"] = left_out
    outcome = "failed" if error.http_status >= 500 else "refused"
    try:
        db: AsyncSession | None = getattr(request.state, "db", None)
        if db is not None:
            await db.rollback()  # and its connection is used again: nobody holds two
            await _record_and_commit(db, outcome=outcome, status=error.http_status, **values)
        else:
            async with request.app.state.database.sessions() as own:
                await _record_and_commit(own, outcome=outcome, status=error.http_status, **values)
    except (SQLAlchemyError, OSError) as failure:
        observability.AUDIT_LOST.inc()
        _log.warning("refusal_not_recorded", action=action, error=type(failure).__name__)


async def _record_and_commit(db: AsyncSession, **values: Any) -> None:
    await record(db, **values)
    await db.commit()


def _of_request(
    request: Request, *, resource_type: str, action: str, noted: dict[str, Any]
) -> dict[str, Any]:
    actor: Actor | None = noted.pop("actor", None) or getattr(request.state, "actor", None)
    path_ids = list(request.path_params.values())
    return {
        "actor": actor,
        "action": action,
        "address": client_address(
            request, request.app.state.settings, forwarder_is_trusted=actor is not None and actor.is_service
        ),
        "request_id": request.state.request_id,
        "resource_type": resource_type,
        "resource_id": noted.pop("resource_id", path_ids[0] if path_ids else None),
        "detail": noted,
    }


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
    name = "anonymous" if actor is None else actor.service_name or actor.name
    await db.execute(
        insert(tables.AuditRecord).values(
            action=action,
            outcome=outcome,
            status=status,
            actor=name,
            acted_for=acts_for,
            token_id=actor.token_id or None if actor is not None else None,
            customer_id=actor.customer_id if actor is not None else None,
            address=address,
            request_id=request_id,
            resource_type=resource_type,
            resource_id=_short(resource_id) if resource_id is not None else None,
            detail=_clean(json.loads(json.dumps(detail or {}, default=str))),
        )
    )


def _clean(value: Any) -> Any:
    """Without secrets at any depth, and with short texts."""
    if isinstance(value, dict):
        return {
            key: _REDACTED if isinstance(inner, str) and _SECRET_NAME.search(key) else _clean(inner)
            for key, inner in value.items()
        }
    if isinstance(value, list):
        return [_clean(inner) for inner in value[:100]]
    return _short(value) if isinstance(value, str) else value


def _short(text: str) -> str:
    text = token_secret.PATTERN.sub(_REDACTED, text).replace("\x00", "")
    return text if len(text) <= _MAX_TEXT else text[: _MAX_TEXT - 1] + "…"
