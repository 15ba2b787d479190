"""Customers: the tenants."""

from __future__ import annotations

from sqlalchemy import insert, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from remotegpu.errors import Invalid, NameTaken, NotFound, StateConflict
from remotegpu.types.identity import Customer, CustomerCreate, CustomerUpdate, Suspension
from remotegpu.types.wire import Page
from remotegpu_server import pagination
from remotegpu_server.audit import service as audit
from remotegpu_server.authz import Action, Actor, require
from remotegpu_server.customers import suspension
from remotegpu_server.customers.convert import to_wire
from remotegpu_server.customers.queries import CustomerWithCounts, customers_with_counts
from remotegpu_server.db import tables
from remotegpu_server.db.notify import notify
from remotegpu_server.db.session import violated_constraint
from remotegpu_server.events import service as events
from remotegpu_server.quotas import policies
from remotegpu_server.tokens import service as tokens


async def list_customers(db: AsyncSession, actor: Actor, *, limit: int, cursor: str | None) -> Page[Customer]:
    """By name."""
    require(actor, Action.CUSTOMER_LIST)
    query = customers_with_counts()
    if cursor is not None:
        query = query.where(pagination.after((tables.Customer.name,), cursor))
    rows = (await db.execute(query.order_by(tables.Customer.name).limit(limit + 1))).all()
    found = [CustomerWithCounts(*row) for row in rows[:limit]]
    following = pagination.encode([found[-1].customer.name]) if len(rows) > limit else None
    return Page[Customer](items=[to_wire(one) for one in found], next_cursor=following)


async def get_customer(db: AsyncSession, actor: Actor, reference: str) -> Customer:
    """One customer by id or name, for its owners and for admins."""
    row = await find(db, reference)
    require(actor, Action.CUSTOMER_READ, customer_id=row.id, noun="customer")
    return await _answer(db, row.id)


async def create_customer(db: AsyncSession, actor: Actor, body: CustomerCreate) -> Customer:
    """A new tenant."""
    require(actor, Action.CUSTOMER_WRITE)
    values = body.model_dump()
    try:
        async with db.begin_nested():
            row = await db.scalar(
                insert(tables.Customer).values(id=tables.new_id("cus"), **values).returning(tables.Customer)
            )
    except IntegrityError as error:
        raise _taken(error, body.name, body.code) from error
    assert row is not None
    audit.note(db, resource_id=row.id, new=values)
    await policies.apply(db, subject_id=row.id)
    await _record(db, actor, row, "customer.created", f"{actor.name} made the customer {row.name}.")
    return await _answer(db, row.id)


async def update_customer(db: AsyncSession, actor: Actor, reference: str, body: CustomerUpdate) -> Customer:
    """Change what ``body`` names."""
    require(actor, Action.CUSTOMER_WRITE)
    row = await find(db, reference, lock=True)
    wanted = {name: getattr(body, name) for name in body.model_fields_set}
    if any(wanted.get(name, "") is None for name in ("display_name", "company")):
        raise Invalid("display_name and company cannot be null.")
    changes = {name: value for name, value in wanted.items() if getattr(row, name) != value}
    if changes:
        audit.note(db, old={name: getattr(row, name) for name in changes}, new=changes)
        try:
            async with db.begin_nested():
                await db.execute(update(tables.Customer).where(tables.Customer.id == row.id).values(changes))
        except IntegrityError as error:
            raise _taken(error, row.name, body.code) from error
        message = f"{actor.name} changed {', '.join(sorted(changes))} of the customer {row.name}."
        await _record(db, actor, row, "customer.changed", message, data={"changed": sorted(changes)})
    return await _answer(db, row.id)


async def suspend_customer(db: AsyncSession, actor: Actor, reference: str, policy: Suspension) -> Customer:
    """No user of it can act any more, at once; ``policy`` says what becomes of what runs. Suspending a
    suspended one again changes the policy.
    """
    require(actor, Action.CUSTOMER_WRITE)
    row = await find(db, reference, lock=True)
    if row.id == actor.customer_id:
        raise StateConflict("You cannot suspend your own customer.")
    await _set_status(db, row, status="suspended", stop_environments_at=suspension.stop_at(policy))
    users = select(tables.User.id).where(tables.User.customer_id == row.id)
    ended = await tokens.revoke(db, tables.Token.user_id.in_(users), tables.Token.kind == "user")
    words = suspension.in_words(policy)
    message = f"{actor.name} suspended the customer {row.name}; {len(ended)} tokens ended, {words}."
    audit.note(db, new=policy.model_dump(mode="json"), tokens_revoked=len(ended))
    await _record(db, actor, row, "customer.suspended", message, data={"tokens_revoked": len(ended)})
    notify(db, suspension.WAKE)
    return await _answer(db, row.id)


async def resume_customer(db: AsyncSession, actor: Actor, reference: str) -> Customer:
    """Its users may sign in again; what was going to be stopped is kept."""
    require(actor, Action.CUSTOMER_WRITE)
    row = await find(db, reference, lock=True)
    if row.status != "active":
        await _set_status(db, row, status="active", stop_environments_at=None)
        await _record(db, actor, row, "customer.resumed", f"{actor.name} resumed the customer {row.name}.")
    return await _answer(db, row.id)


async def _set_status(db: AsyncSession, row: tables.Customer, **values: object) -> None:
    await db.execute(update(tables.Customer).where(tables.Customer.id == row.id).values(values))


async def _answer(db: AsyncSession, customer_id: str) -> Customer:
    found = (await db.execute(customers_with_counts().where(tables.Customer.id == customer_id))).one()
    return to_wire(CustomerWithCounts(*found))


def _taken(error: IntegrityError, name: str, code: str | None) -> Exception:
    constraint = violated_constraint(error)
    if constraint == "uq_customers_name":
        return NameTaken(f"There is a customer {name!r} already.", data={"name": name})
    if constraint == "uq_customers_code":
        return NameTaken(f"Another customer has the code {code!r}.", data={"code": code})
    return error


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
