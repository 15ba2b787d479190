"""Endpoints of hosts."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query, Response
from pydantic import StringConstraints

from remotegpu.types.hosts import (
    Connection,
    CredentialRotate,
    EnrollmentToken,
    EnrollmentTokenCreate,
    Host,
    HostBatch,
    HostCreate,
    HostCredential,
    HostDrain,
    HostHealth,
    HostImport,
    HostReason,
    HostUpdate,
    HostVerb,
    Operational,
)
from remotegpu.types.wire import BatchResult, Page
from remotegpu_server.deps import Caller, Cursor, Db, Limit
from remotegpu_server.hosts.service import credentials, entries, operate, sheet
from remotegpu_server.idempotency import IDEMPOTENT
from remotegpu_server.routing import api_router

router = api_router("hosts")


@router.get("/v1/hosts", summary="List hosts (admins)")
async def list_hosts(
    db: Db,
    caller: Caller,
    operational: Operational | None = None,
    connection: Connection | None = None,
    health: HostHealth | None = None,
    label: Annotated[
        list[Annotated[str, StringConstraints(max_length=200)]],
        Query(max_length=16, description="`key=value`, or `key` for any value; repeatable, all must fit."),
    ] = [],  # noqa: B006  FastAPI copies it
    gpu_model: Annotated[
        str | None, Query(min_length=1, max_length=64, description="Part of a model name.")
    ] = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> Page[Host]:
    """By name."""
    filters = entries.Filters(
        operational=operational, connection=connection, health=health, labels=label, gpu_model=gpu_model
    )
    return await entries.list_hosts(db, actor=caller, filters=filters, limit=limit, cursor=cursor)


@router.post("/v1/hosts:batch", summary="Do a verb to many hosts (admins)")
async def operate_hosts(body: HostBatch, db: Db, caller: Caller) -> BatchResult:
    """Each by itself; the answer says which failed, and why."""
    return await operate.batch(db, actor=caller, body=body)


@router.post("/v1/hosts:import", summary="Add hosts from CSV (admins)")
async def import_hosts(body: HostImport, db: Db, caller: Caller) -> BatchResult:
    """Each line by itself; `failed` says by line number what is wrong with it."""
    return await sheet.import_csv(db, actor=caller, body=body)


@router.get(
    "/v1/hosts:export",
    summary="All hosts as CSV (admins)",
    response_class=Response,
    responses={200: {"content": {"text/csv": {}}}},
)
async def export_hosts(db: Db, caller: Caller) -> Response:
    """In the columns that an import takes. What a spreadsheet would take for a formula is marked as text."""
    return Response(await sheet.export_csv(db, actor=caller), media_type="text/csv")


@router.post("/v1/hosts", status_code=201, summary="Add a host (admins)", dependencies=[IDEMPOTENT])
async def create_host(body: HostCreate, db: Db, caller: Caller) -> Host:
    """An entry that an agent joins with an enrolment token."""
    return await entries.create_host(db, actor=caller, body=body)


@router.get("/v1/hosts/{host}", summary="Get a host (admins)")
async def get_host(host: str, db: Db, caller: Caller) -> Host:
    """By id or name."""
    return await entries.get_host(db, actor=caller, host=host)


@router.patch("/v1/hosts/{host}", summary="Change a host (admins)")
async def update_host(host: str, body: HostUpdate, db: Db, caller: Caller) -> Host:
    """Labels are replaced as a whole."""
    return await entries.update_host(db, actor=caller, host=host, body=body)


@router.delete("/v1/hosts/{host}", status_code=204, summary="Delete a host (admins)")
async def delete_host(host: str, db: Db, caller: Caller) -> None:
    """Refused (`in_use`) while anything refers to it."""
    await entries.delete_host(db, actor=caller, host=host)


def _reason(body: HostReason | None) -> str | None:
    return body.reason or None if body is not None else None


@router.post("/v1/hosts/{host}:cordon", summary="Take no new work (admins)")
async def cordon_host(host: str, db: Db, caller: Caller, body: HostReason | None = None) -> Host:
    """What runs goes on, and its users are told."""
    return await operate.operate(db, actor=caller, host=host, verb=HostVerb.CORDON, reason=_reason(body))


@router.post("/v1/hosts/{host}:uncordon", summary="Take new work again (admins)")
async def uncordon_host(host: str, db: Db, caller: Caller, body: HostReason | None = None) -> Host:
    """Ends a cordon or a drain. The queue is looked at again at once."""
    return await operate.operate(db, actor=caller, host=host, verb=HostVerb.UNCORDON, reason=_reason(body))


@router.post("/v1/hosts/{host}:drain", summary="Empty a host (admins)")
async def drain_host(host: str, body: HostDrain, db: Db, caller: Caller) -> Host:
    """Its users are told; what is left at the deadline is stopped. The event `host.drained` ends it."""
    return await operate.drain(db, actor=caller, host=host, body=body)


@router.post("/v1/hosts/{host}:maintenance", summary="Out of service for work on it (admins)")
async def maintenance_host(host: str, db: Db, caller: Caller, body: HostReason | None = None) -> Host:
    """Refused (`in_use`) while anything runs there."""
    return await operate.operate(db, actor=caller, host=host, verb=HostVerb.MAINTENANCE, reason=_reason(body))


@router.post("/v1/hosts/{host}:activate", summary="Into service (admins)")
async def activate_host(host: str, db: Db, caller: Caller, body: HostReason | None = None) -> Host:
    """Ends a maintenance. A retired host waits for an agent to join again."""
    return await operate.operate(db, actor=caller, host=host, verb=HostVerb.ACTIVATE, reason=_reason(body))


@router.post("/v1/hosts/{host}:retire", summary="Out of service for good (admins)")
async def retire_host(host: str, db: Db, caller: Caller, body: HostReason | None = None) -> Host:
    """Refused (`in_use`) while anything runs there or it is dedicated. Its credential is revoked."""
    return await operate.operate(db, actor=caller, host=host, verb=HostVerb.RETIRE, reason=_reason(body))


@router.post(
    "/v1/hosts/{host}/enrollment-tokens",
    status_code=201,
    summary="Let an agent join (admins)",
    dependencies=[IDEMPOTENT],
)
async def create_enrollment_token(
    host: str, body: EnrollmentTokenCreate, db: Db, caller: Caller
) -> EnrollmentToken:
    """Single use, at most one hour. A new one revokes the older ones of this host."""
    return await entries.create_enrollment_token(db, actor=caller, host=host, body=body)


@router.post(
    "/v1/hosts/{host}:rotate-credential", summary="A new credential (admins)", dependencies=[IDEMPOTENT]
)
async def rotate_credential(host: str, body: CredentialRotate, db: Db, caller: Caller) -> HostCredential:
    """Shown once. The one in use ends after the overlap."""
    return await credentials.rotate(db, actor=caller, host=host, body=body)


@router.post("/v1/hosts/{host}:revoke-credential", summary="End the agent's credential (admins)")
async def revoke_credential(host: str, db: Db, caller: Caller) -> Host:
    """At once. Workloads run on; the agent has to enrol again."""
    return await credentials.revoke(db, actor=caller, host=host)
