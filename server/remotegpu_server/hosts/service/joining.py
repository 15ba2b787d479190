"""What a registration means for the host's entry."""

from __future__ import annotations

from ipaddress import ip_address

from sqlalchemy import Text, func, literal, text, update
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from remotegpu_server.authz import Actor
from remotegpu_server.db import tables
from remotegpu_server.db.notify import notify
from remotegpu_server.hosts import lifecycle, queries


async def joined(db: AsyncSession, *, host: tables.Host, actor: Actor) -> tables.Host:
    """Into service at the first registration, under the addresses that its inventory tells."""
    facts = host.inventory or {}
    if host.hostname is None and facts.get("hostname"):
        host = await _adopt(db, host, "hostname", facts["hostname"])
    if host.ip_address is None and _routable(facts.get("address")):
        host = await _adopt(db, host, "ip_address", facts["address"])
    if host.operational != "pending":
        return host
    return await lifecycle.move(
        db,
        host=host,
        to="available",
        reason=None,
        kind="host.available",
        message=f"Host {host.name} joined and is available.",
        actor=actor,
    )


async def _adopt(db: AsyncSession, host: tables.Host, column: str, value: str) -> tables.Host:
    """Unless another host has it: two agents on one machine share its name, and an admin may say better."""
    try:
        async with db.begin_nested():
            return await queries.change(db, host, **{column: value})
    except IntegrityError:
        return host


def _routable(address: str | None) -> bool:
    """A numeric address by which others could tell the host: loopback is everybody's."""
    try:
        return address is not None and not ip_address(address).is_loopback
    except ValueError:
        return False


async def add_image(db: AsyncSession, *, host_id: str, reference: str) -> None:
    """Its agent made an image: in the inventory before the agent's next session tells it."""
    host = tables.Host
    known = func.coalesce(host.inventory["images"], text("'[]'::jsonb"))
    images = known.op("||")(func.to_jsonb(literal([reference], ARRAY(Text))))
    await db.execute(
        update(host)
        .where(host.id == host_id)
        .values(inventory=func.jsonb_set(host.inventory, text("'{images}'"), images))
        .execution_options(synchronize_session=False)
    )
    notify(db, "queue")
