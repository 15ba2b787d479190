"""Usage statistics, for people, programs and spreadsheets."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from remotegpu.errors import Invalid, NotFound
from remotegpu.types.usage import UsageGroup, UsageRecord, UsageReport
from remotegpu_server import authz, spreadsheets
from remotegpu_server.authz import Action, Actor
from remotegpu_server.db import tables
from remotegpu_server.usage import convert, queries

DEFAULT_DAYS = 30
LONGEST_DAYS = 3660
MOST_RECORDS = 50_000
"""A spreadsheet runs a cell that begins so."""


async def get_usage(
    db: AsyncSession,
    *,
    actor: Actor,
    group_by: Sequence[UsageGroup],
    begin: datetime | None,
    end: datetime | None,
    customer: str | None,
) -> UsageReport:
    """Of every customer, or of one; owners get their own customer's."""
    if not actor.is_admin and customer is None:
        customer = actor.customer_id
    customer_id = await _customer_id(db, customer)
    authz.require(actor, Action.USAGE_READ, customer_id=customer_id, noun="customer")
    return await _report(db, group_by=group_by, begin=begin, end=end, customer_id=customer_id, user_id=None)


async def get_own_usage(
    db: AsyncSession,
    *,
    actor: Actor,
    group_by: Sequence[UsageGroup],
    begin: datetime | None,
    end: datetime | None,
) -> UsageReport:
    """What the caller used, in every workspace."""
    authz.require(actor, Action.USAGE_READ_OWN)
    return await _report(db, group_by=group_by, begin=begin, end=end, customer_id=None, user_id=actor.user_id)


async def _report(
    db: AsyncSession,
    *,
    group_by: Sequence[UsageGroup],
    begin: datetime | None,
    end: datetime | None,
    customer_id: str | None,
    user_id: str | None,
) -> UsageReport:
    if UsageGroup.UNKNOWN in group_by:
        raise Invalid("Usage is not broken down by this.", hint=f"Groups: {', '.join(queries.COLUMNS)}.")
    now = (await db.execute(select(func.now()))).scalar_one()
    end = end or now
    begin = begin or end - timedelta(days=DEFAULT_DAYS)
    if not begin < end or end - begin > timedelta(days=LONGEST_DAYS):
        raise Invalid("`from` must lie before `to`, by ten years at most.")
    groups = [group for group in queries.COLUMNS if group in group_by]
    which = queries.Filter(begin, end, customer_id, user_id)
    rows = await queries.records(db, which=which, group_by=groups, limit=MOST_RECORDS + 1)
    if len(rows) > MOST_RECORDS:
        raise Invalid("These are too many records.", hint="Ask for a shorter time or fewer groups.")
    return UsageReport(
        begin_at=begin, end_at=end, group_by=groups, records=[convert.to_wire(row) for row in rows]
    )


async def _customer_id(db: AsyncSession, customer: str | None) -> str | None:
    if customer is None:
        return None
    row = tables.Customer
    found: str | None = await db.scalar(select(row.id).where((row.id == customer) | (row.name == customer)))
    if found is None:
        raise NotFound("There is no such customer.")
    return found


def to_csv(report: UsageReport) -> str:
    """The records with a head. What a spreadsheet would take for a formula gets an apostrophe before it."""
    records = (record.model_dump(mode="json").values() for record in report.records)
    return spreadsheets.line(UsageRecord.model_fields) + "".join(map(spreadsheets.line, records))
