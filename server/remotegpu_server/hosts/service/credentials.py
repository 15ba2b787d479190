"""Credentials of agents: renewed with an overlap, revoked at once, and watched for copies."""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from remotegpu.types.hosts import CredentialRotate, Host, HostCredential
from remotegpu.types.identity import Scope, TokenKind
from remotegpu_server import authz
from remotegpu_server.authz import Action, Actor
from remotegpu_server.db import tables
from remotegpu_server.db.notify import notify
from remotegpu_server.events import service as events
from remotegpu_server.hosts import queries
from remotegpu_server.hosts.service import entries, health
from remotegpu_server.notifications import service as notifications
from remotegpu_server.tokens import service as tokens

FLIPS = 3
"""So many sessions may be superseded within :data:`FLIPS_WITHIN`; one more, and the host is quarantined."""
FLIPS_WITHIN = timedelta(minutes=10)


async def rotate(db: AsyncSession, *, actor: Actor, host: str, body: CredentialRotate) -> HostCredential:
    """A second credential; the one in use ends after the overlap."""
    authz.require(actor, Action.HOST_WRITE)
    row = await queries.found(db, host, lock=True)
    token = tables.Token
    ends = func.now() + timedelta(seconds=body.overlap_s)
    await db.execute(
        update(token)
        .where(
            token.host_id == row.id,
            token.kind == str(TokenKind.AGENT),
            token.revoked_at.is_(None),
            token.expires_at.is_(None) | (token.expires_at > ends),
        )
        .values(expires_at=ends)
        .execution_options(synchronize_session=False)
    )
    minted = await tokens.mint(db, kind=TokenKind.AGENT, scopes=[Scope.AGENT], name=row.name, host_id=row.id)
    await _say(db, row, "host.credential_rotated", f"Host {row.name} got a new credential.", actor)
    return HostCredential(host_id=row.id, secret=minted.secret, old_ends_in_s=body.overlap_s)


async def revoke(db: AsyncSession, *, actor: Actor, host: str) -> Host:
    """End the agent's credential now. Workloads run on; the agent must enrol again."""
    authz.require(actor, Action.HOST_WRITE)
    row = await queries.found(db, host, lock=True)
    await tokens.revoke_of_host(db, row.id, kind=TokenKind.AGENT)
    await _say(db, row, "host.credential_revoked", f"The credential of host {row.name} was revoked.", actor)
    notify(db, f"host:{row.id}")
    (changed,) = await entries.to_wire(db, [row])
    return changed


async def watch_for_copies(db: AsyncSession, *, host: tables.Host, actor: Actor) -> None:
    """Called when a session took over from one that was still heard: too often means several agents."""
    event = tables.Event
    enrolled = (
        select(func.max(event.id))
        .where(event.kind == "host.reenrolled", event.subject_type == "host", event.subject_id == host.id)
        .scalar_subquery()
    )
    flips = await db.scalar(
        select(func.count())
        .select_from(event)
        .where(
            event.kind == "host.superseded",
            event.subject_id == host.id,
            event.subject_type == "host",
            event.at > func.now() - FLIPS_WITHIN,
            event.id > func.coalesce(enrolled, 0),
        )
    )
    await _say(db, host, "host.superseded", f"Another agent took over host {host.name}.", actor)
    if (flips or 0) < FLIPS or host.duplicate_since is not None:
        return
    await queries.change(db, host, duplicate_since=func.now())
    message = f"Host {host.name} is quarantined: several agents use its credential. What runs goes on."
    await _say(db, host, "host.duplicate_agent", message, actor)
    await notifications.tell(
        db,
        user_ids=await queries.admins(db),
        kind="host.duplicate_agent",
        level="error",
        message=message,
        subject_type="host",
        subject_id=host.id,
    )


async def forgive(db: AsyncSession, *, host: tables.Host, actor: Actor) -> None:
    """A new enrolment ended every copy of the old credential."""
    if host.duplicate_since is not None:
        await queries.change(db, host, duplicate_since=None)
        await health.refresh(db, host_id=host.id, actor=actor)


async def _say(db: AsyncSession, host: tables.Host, kind: str, message: str, actor: Actor) -> None:
    await events.record(db, kind=kind, subject_type="host", subject_id=host.id, actor=actor, message=message)
