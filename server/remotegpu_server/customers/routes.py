"""Customers."""

from __future__ import annotations

from remotegpu.types.identity import Customer, CustomerCreate, CustomerUpdate, Suspension
from remotegpu.types.wire import Page
from remotegpu_server.customers import service
from remotegpu_server.deps import Caller, Cursor, Db, Limit
from remotegpu_server.idempotency import IDEMPOTENT
from remotegpu_server.routing import api_router

router = api_router("customers")


@router.get("/v1/customers", summary="List customers")
async def list_customers(db: Db, caller: Caller, limit: Limit = 50, cursor: Cursor = None) -> Page[Customer]:
    """By name."""
    return await service.list_customers(db, caller, limit=limit, cursor=cursor)


@router.post("/v1/customers", status_code=201, summary="Make a customer", dependencies=[IDEMPOTENT])
async def create_customer(body: CustomerCreate, db: Db, caller: Caller) -> Customer:
    """A new tenant without users."""
    return await service.create_customer(db, caller, body)


@router.get("/v1/customers/{customer}", summary="Get a customer")
async def get_customer(customer: str, db: Db, caller: Caller) -> Customer:
    """By id or name."""
    return await service.get_customer(db, caller, customer)


@router.patch("/v1/customers/{customer}", summary="Change a customer")
async def update_customer(customer: str, body: CustomerUpdate, db: Db, caller: Caller) -> Customer:
    """Fields left out stay as they are."""
    return await service.update_customer(db, caller, customer, body)


@router.post("/v1/customers/{customer}:suspend", summary="Suspend a customer")
async def suspend_customer(customer: str, db: Db, caller: Caller, body: Suspension | None = None) -> Customer:
    """Ends the tokens of all its users at once. The body says what becomes of what runs; without it, it is
    kept.
    """
    return await service.suspend_customer(db, caller, customer, body or Suspension())


@router.post("/v1/customers/{customer}:resume", summary="Resume a suspended customer")
async def resume_customer(customer: str, db: Db, caller: Caller) -> Customer:
    """Its users may sign in again."""
    return await service.resume_customer(db, caller, customer)
