"""Endpoints of limits, policies and requests for more."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query

from remotegpu.types.quotas import (
    Quota,
    QuotaChange,
    QuotaCheck,
    QuotaPolicy,
    QuotaPolicyCreate,
    QuotaPolicyUpdate,
    QuotaRequest,
    QuotaRequestApprove,
    QuotaRequestCreate,
    QuotaRequestRefuse,
    QuotaRequestStatus,
    QuotaSubject,
    QuotaUpdate,
    QuotaVerdict,
)
from remotegpu.types.wire import Page
from remotegpu_server.deps import Caller, Cursor, Db, Limit
from remotegpu_server.idempotency import IDEMPOTENT
from remotegpu_server.quotas import policies, requests, service, what_if
from remotegpu_server.routing import api_router, dry_run

router = api_router("quotas")

WorkspaceId = Annotated[
    str | None, Query(max_length=64, description="Id of a workspace; left out: the personal one.")
]


@router.get("/v1/quota", summary="The caller's limits and their use")
async def get_quota(db: Db, caller: Caller, workspace: WorkspaceId = None) -> Quota:
    """The own limits, those of a workspace and those of the customer."""
    return await service.get_quota(db, actor=caller, workspace=workspace)


@router.post("/v1/quotas:check", summary="Would the limits allow this?")
@dry_run
async def check_quota(body: QuotaCheck, db: Db, caller: Caller) -> QuotaVerdict:
    """Which limit would bind first, at which level, and what to do. Nothing is reserved."""
    return await what_if.check_quota(db, actor=caller, body=body)


@router.get("/v1/quotas/{subject}/{subject_id}", summary="Limits of a user, workspace or customer")
async def get_quota_of(subject: QuotaSubject, subject_id: str, db: Db, caller: Caller) -> Quota:
    """By id or name, workspaces by id. Owners read those of their customer, members their workspace's."""
    return await service.get_quota_of(db, actor=caller, subject=subject, subject_id=subject_id)


@router.put("/v1/quotas/{subject}/{subject_id}", summary="Set limits (admins)")
async def set_quota(
    subject: QuotaSubject, subject_id: str, body: QuotaUpdate, db: Db, caller: Caller
) -> QuotaChange:
    """0 allows none, `null` is unlimited, what is left out stays. Nothing running is stopped."""
    return await service.set_quota(db, actor=caller, subject=subject, subject_id=subject_id, body=body)


@router.get("/v1/quota-policies", summary="List quota policies (admins)")
async def list_quota_policies(
    db: Db, caller: Caller, limit: Limit = 50, cursor: Cursor = None
) -> Page[QuotaPolicy]:
    """By name."""
    return await policies.list_policies(db, actor=caller, limit=limit, cursor=cursor)


@router.post(
    "/v1/quota-policies", status_code=201, summary="Make a quota policy (admins)", dependencies=[IDEMPOTENT]
)
async def create_quota_policy(body: QuotaPolicyCreate, db: Db, caller: Caller) -> QuotaPolicy:
    """It binds the groups that it names at once."""
    return await policies.create_policy(db, actor=caller, body=body)


@router.get("/v1/quota-policies/{policy}", summary="Get a quota policy (admins)")
async def get_quota_policy(policy: str, db: Db, caller: Caller) -> QuotaPolicy:
    """By id or name."""
    return await policies.get_policy(db, actor=caller, policy=policy)


@router.patch("/v1/quota-policies/{policy}", summary="Change a quota policy (admins)")
async def update_quota_policy(policy: str, body: QuotaPolicyUpdate, db: Db, caller: Caller) -> QuotaPolicy:
    """Counts at once for everybody whom it binds; nothing running is stopped."""
    return await policies.update_policy(db, actor=caller, policy=policy, body=body)


@router.delete("/v1/quota-policies/{policy}", status_code=204, summary="Delete a quota policy (admins)")
async def delete_quota_policy(policy: str, db: Db, caller: Caller) -> None:
    """Limits that were set for one subject stay."""
    await policies.delete_policy(db, actor=caller, policy=policy)


@router.get("/v1/quota-requests", summary="List requests for more")
async def list_quota_requests(
    db: Db,
    caller: Caller,
    status: QuotaRequestStatus | None = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> Page[QuotaRequest]:
    """The own ones, newest first; owners see those of their customer, admins all."""
    return await requests.list_requests(db, actor=caller, status=status, limit=limit, cursor=cursor)


@router.post(
    "/v1/quota-requests", status_code=201, summary="Ask for a higher limit", dependencies=[IDEMPOTENT]
)
async def create_quota_request(body: QuotaRequestCreate, db: Db, caller: Caller) -> QuotaRequest:
    """Those who may decide are told."""
    return await requests.create_request(db, actor=caller, body=body)


@router.get("/v1/quota-requests/{quota_request}", summary="Get a request for more")
async def get_quota_request(quota_request: str, db: Db, caller: Caller) -> QuotaRequest:
    """For whoever asked, owners of the customer and admins."""
    return await requests.get_request(db, actor=caller, request_id=quota_request)


@router.post("/v1/quota-requests/{quota_request}:approve", summary="Grant more (owners, admins)")
async def approve_quota_request(
    quota_request: str, body: QuotaRequestApprove, db: Db, caller: Caller
) -> QuotaRequest:
    """As asked, less, or for a time. It counts at once; whoever asked is told."""
    return await requests.approve(db, actor=caller, request_id=quota_request, body=body)


@router.post("/v1/quota-requests/{quota_request}:refuse", summary="Refuse more (owners, admins)")
async def refuse_quota_request(
    quota_request: str, body: QuotaRequestRefuse, db: Db, caller: Caller
) -> QuotaRequest:
    """With a reason, which whoever asked reads."""
    return await requests.refuse(db, actor=caller, request_id=quota_request, body=body)


@router.post("/v1/quota-requests/{quota_request}:withdraw", summary="Take an own request back")
async def withdraw_quota_request(quota_request: str, db: Db, caller: Caller) -> QuotaRequest:
    """While nobody has decided."""
    return await requests.withdraw(db, actor=caller, request_id=quota_request)
