"""Customers: the tenants."""

from __future__ import annotations

from sqlalchemy import or_, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from remotegpu.errors import NameTaken, NotFound, StateConflict
from remotegpu.types.identity import Customer, CustomerCreate, CustomerUpdate
from remotegpu.types.wire import Page
from remotegpu_server import pagination
from remotegpu_server.authz import Action, Actor, require
from remotegpu_server.customers.convert import to_wire
from remotegpu_server.db import tables
from remotegpu_server.events import service as events
from remotegpu_server.tokens import service as tokens


async def list_customers(db: AsyncSession, actor: Actor, *, limit: int, cursor: str | None) -> Page[Customer]:
    """By name."""
    require(actor, Action.CUSTOMER_READ)
    rows, following = await pagination.page(
        db, select(tables.Customer), key=(tables.Customer.name,), limit=limit, cursor=cursor
    )
    return Page[Customer](items=[to_wire(row) for row in rows], next_cursor=following)


async def get_customer(db: AsyncSession, actor: Actor, reference: str) -> Customer:
    """One customer by id or name."""
    require(actor, Action.CUSTOMER_READ)
    return to_wire(await find(db, reference))


async def create_customer(db: AsyncSession, actor: Actor, body: CustomerCreate) -> Customer:
    """A new tenant."""
    require(actor, Action.CUSTOMER_WRITE)
    row = await db.scalar(
        insert(tables.Customer)
        .values(id=tables.new_id("cus"), name=body.name, display_name=body.display_name)
        .on_conflict_do_nothing(index_elements=[tables.Customer.name])
        .returning(tables.Customer)
    )
    if row is None:
        raise NameTaken(f"There is a customer {body.name!r} already.", data={"name": body.name})
    await _record(db, actor, row, "customer.created", f"{actor.name} made the customer {row.name}.")
    return to_wire(row)


async def update_customer(db: AsyncSession, actor: Actor, reference: str, body: CustomerUpdate) -> Customer:
    """Change what ``body`` names."""
    require(actor, Action.CUSTOMER_WRITE)
    row = await find(db, reference, lock=True)
    if body.display_name is not None and body.display_name != row.display_name:
        row.display_name = body.display_name
        await _record(db, actor, row, "customer.changed", f"{actor.name} renamed the customer {row.name}.")
        await db.flush()
    return to_wire(row)


async def suspend_customer(db: AsyncSession, actor: Actor, reference: str) -> Customer:
    """No user of it can act any more, at once; running environments are kept."""
    require(actor, Action.CUSTOMER_WRITE)
    row = await find(db, reference, lock=True)
    if row.id == actor.customer_id:
        raise StateConflict("You cannot suspend your own customer.")
    if row.status != "suspended":
        row.status = "suspended"
        users = select(tables.User.id).where(tables.User.customer_id == row.id)
        ended = await tokens.revoke(db, tables.Token.user_id.in_(users), tables.Token.kind == "user")
        message = f"{actor.name} suspended the customer {row.name}; {len(ended)} tokens ended."
        await _record(db, actor, row, "customer.suspended", message, data={"tokens_revoked": len(ended)})
        await db.flush()
    return to_wire(row)


async def resume_customer(db: AsyncSession, actor: Actor, reference: str) -> Customer:
    """Its users may sign in again."""
    require(actor, Action.CUSTOMER_WRITE)
    row = await find(db, reference, lock=True)
    if row.status != "active":
        row.status = "active"
        await _record(db, actor, row, "customer.resumed", f"{actor.name} resumed the customer {row.name}.")
        await db.flush()
    return to_wire(row)


async def find(db: AsyncSession, reference: str, *, lock: bool = False) -> tables.Customer:
    """The customer of this id or name; raises ``NotFound``. Asks nobody whether the caller may see it."""
    query = select(tables.Customer).where(
        or_(tables.Customer.id == reference, tables.Customer.name == reference)
    )
    if lock:
        query = query.with_for_update()
    row = await db.scalar(query.execution_options(populate_existing=True))
    if row is None:
        raise NotFound("There is no such customer.")
    return row


async def _record(
    db: AsyncSession,
    actor: Actor,
    row: tables.Customer,
    kind: str,
    message: str,
    *,
    data: dict[str, object] | None = None,
) -> None:
    await events.record(
        db,
        kind=kind,
        subject_type="customer",
        subject_id=row.id,
        actor=actor,
        message=message,
        data=data,
        customer_id=row.id,
    )
