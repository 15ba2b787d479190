"""Storage limits while nothing starts: people are told once when homes come near them, and when they pass.

What runs goes on. There is some room below each level, so that a home that grows and shrinks a little tells
nobody twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from remotegpu.types.quotas import QuotaResource, QuotaSubject
from remotegpu_server.authz import SYSTEM
from remotegpu_server.db import tables
from remotegpu_server.events import service as events
from remotegpu_server.loops import Loop, Work, by_itself
from remotegpu_server.notifications import service as notifications
from remotegpu_server.platform_settings import service as platform_settings
from remotegpu_server.platform_settings.registry import QUOTA_STORAGE_WARN_PERCENT
from remotegpu_server.quotas import queries, refusals

_ROOM_PERCENT = 5.0
"""So far below a level the use has to fall before passing it again is news."""


@dataclass(frozen=True, slots=True)
class _Meter:
    """A storage limit and what is used of it."""

    quota: tables.Quota
    limit: int
    used: int

    @property
    def percent(self) -> float:
        """Of a limit of 0, anything is all of it."""
        return 100 * self.used / self.limit if self.limit else 100.0 * (self.used > 0)


async def tell_of_storage(work: Work) -> None:
    """One short transaction for each limit whose use is high, or was."""
    async with work.session() as db:
        warn = await platform_settings.value(db, QUOTA_STORAGE_WARN_PERCENT)
        ids = [quota_id for kind in _KINDS for quota_id in await db.scalars(_watched(kind, warn))]
    for quota_id in ids:
        with by_itself("storage-limits", str(quota_id)):
            async with work.session() as db:
                await _judge(db, quota_id=quota_id, warn=warn)


_KINDS = (QuotaSubject.USER, QuotaSubject.WORKSPACE, QuotaSubject.CUSTOMER)


def _watched(kind: QuotaSubject, warn: float) -> Any:
    row = tables.Quota
    told = or_(row.warned_at.is_not(None), row.exceeded_at.is_not(None))
    high = queries.storage_bytes(kind, row.subject_id) >= func.greatest(row.limit_value * warn / 100, 1)
    return select(row.id).where(
        row.resource == str(QuotaResource.STORAGE_BYTES),
        row.subject_type == str(kind),
        row.limit_value.is_not(None),
        or_(told, high),
    )


async def _judge(db: AsyncSession, *, quota_id: int, warn: float) -> None:
    """Note where a limit stands, and tell people what is new."""
    meter = await _read(db, quota_id=quota_id)
    if meter is None:
        return
    was_warned, was_exceeded = meter.quota.warned_at is not None, meter.quota.exceeded_at is not None
    exceeded = meter.percent >= 100 - (_ROOM_PERCENT if was_exceeded else 0)
    warned = exceeded or meter.percent >= warn - (_ROOM_PERCENT if was_warned else 0)
    if exceeded and not was_exceeded:
        await _tell(db, meter, what="exceeded", more=_EXCEEDED)
    elif warned and not was_warned:
        await _tell(db, meter, what="warning", more=_WARNING)
    if (warned, exceeded) != (was_warned, was_exceeded):
        await _note(db, meter, warned=warned, exceeded=exceeded)


_WARNING = "At the limit nothing new starts."
_EXCEEDED = "What runs goes on; nothing new starts until files are deleted. See `remotegpu volume list`."


async def _read(db: AsyncSession, *, quota_id: int) -> _Meter | None:
    row = tables.Quota
    kind = await db.scalar(select(row.subject_type).where(row.id == quota_id))
    if kind is None:
        return None
    found = (
        await db.execute(
            select(row, queries.effective(), queries.storage_bytes(kind, row.subject_id))
            .where(row.id == quota_id)
            .with_for_update(of=row)
            .execution_options(populate_existing=True)
        )
    ).one_or_none()
    if found is None or found[1] is None:
        return None
    return _Meter(found[0], found[1], int(found[2] or 0))


async def _note(db: AsyncSession, meter: _Meter, *, warned: bool, exceeded: bool) -> None:
    row = tables.Quota
    await db.execute(
        update(row)
        .where(row.id == meter.quota.id)
        .values(
            warned_at=func.coalesce(row.warned_at, func.now()) if warned else None,
            exceeded_at=func.coalesce(row.exceeded_at, func.now()) if exceeded else None,
        )
        .execution_options(synchronize_session=False)
    )


async def _tell(db: AsyncSession, meter: _Meter, *, what: str, more: str) -> None:
    quota = meter.quota
    owner: Any = {f"{quota.subject_type}_id": quota.subject_id}
    news: dict[str, Any] = {
        "kind": f"quota.storage_{what}",
        "subject_type": "quota",
        "subject_id": quota.subject_id,
        "message": (
            f"Homes take {refusals.disk(meter.used)} of the {refusals.disk(meter.limit)} that this"
            f" {quota.subject_type} may use. {more}"
        ),
        "data": {"subject": quota.subject_type, "limit": meter.limit, "used": meter.used},
    }
    await notifications.tell(db, user_ids=await _people(db, quota), level="warning", **news)
    await events.record(db, actor=SYSTEM, **news, **owner)


async def _people(db: AsyncSession, quota: tables.Quota) -> list[str]:
    """The user; of a workspace whom it belongs to; of a customer its owners."""
    user, workspace = tables.User, tables.Workspace
    owns = (user.role == "owner") & (user.customer_id == quota.subject_id)
    personal = user.id.in_(select(workspace.personal_of).where(workspace.id == quota.subject_id))
    return list(await db.scalars(select(user.id).where(owns | personal | (user.id == quota.subject_id))))


LOOP = Loop(name="storage-limits", every_s=30.0, run=tell_of_storage)
