"""Endpoints of limits."""

from __future__ import annotations

from remotegpu.types.quotas import Quota, QuotaSubject, QuotaUpdate
from remotegpu_server.deps import Caller, Db
from remotegpu_server.quotas import service
from remotegpu_server.routing import api_router

router = api_router("quotas")


@router.get("/v1/quota", summary="The caller's limits and their use")
async def get_quota(db: Db, caller: Caller) -> Quota:
    """The own limits and those of the customer."""
    return await service.get_quota(db, actor=caller)


@router.get("/v1/quotas/{subject}/{subject_id}", summary="Limits of a user or customer")
async def get_quota_of(subject: QuotaSubject, subject_id: str, db: Db, caller: Caller) -> Quota:
    """By id or name. Owners read those of their customer and its users."""
    return await service.get_quota_of(db, actor=caller, subject=subject, subject_id=subject_id)


@router.put("/v1/quotas/{subject}/{subject_id}", summary="Set limits (admins)")
async def set_quota(
    subject: QuotaSubject, subject_id: str, body: QuotaUpdate, db: Db, caller: Caller
) -> Quota:
    """0 allows none, `null` is unlimited, what is left out stays. Nothing running is stopped."""
    return await service.set_quota(db, actor=caller, subject=subject, subject_id=subject_id, body=body)
