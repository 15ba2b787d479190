"""Fencing: agent writes of one host happen one after the other, and only in its present session."""

from __future__ import annotations

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from remotegpu.errors import EpochStale, NotFound
from remotegpu_server import authz, holds
from remotegpu_server.authz import Action, Actor
from remotegpu_server.db import tables

_SESSION = text("SELECT epoch, name FROM hosts WHERE id = :host_id FOR NO KEY UPDATE")


async def lock(db: AsyncSession, *, host_id: str) -> tables.Host:
    """The host's row, locked."""
    row = await holds.lock_host(db, host_id=host_id)
    if row is None:
        raise NotFound("There is no such host.")
    return row


async def fenced(db: AsyncSession, *, actor: Actor, epoch: int) -> tables.Host:
    """The actor's host, locked, if ``epoch`` is its current session. Raises :class:`EpochStale`."""
    authz.require(actor, Action.AGENT_REPORT)
    assert actor.host_id is not None, "agent credentials are bound to a host"
    host = await lock(db, host_id=actor.host_id)
    if host.epoch != epoch:
        raise stale(host.epoch)
    return host


async def fence(db: AsyncSession, *, actor: Actor, epoch: int) -> str:
    """The same in one plain statement, for those that need nothing of the row but its name, the answer."""
    authz.require(actor, Action.AGENT_REPORT)
    current = (await db.execute(_SESSION, {"host_id": actor.host_id})).one_or_none()
    if current is None:
        raise NotFound("There is no such host.")
    if current.epoch != epoch:
        raise stale(current.epoch)
    return str(current.name)


def stale(current: int) -> EpochStale:
    """The refusal of a past session."""
    return EpochStale(
        "A newer agent session of this host exists.",
        hint="Two agents with one credential? Stop one of them; workloads run on.",
        data={"current_epoch": current},
    )
