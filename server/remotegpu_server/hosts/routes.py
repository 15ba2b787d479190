"""Endpoints of hosts."""

from __future__ import annotations

from remotegpu.types.hosts import EnrollmentToken, EnrollmentTokenCreate, Host, HostCreate, HostUpdate
from remotegpu.types.wire import Page
from remotegpu_server.deps import Caller, Cursor, Db, Limit
from remotegpu_server.hosts import service
from remotegpu_server.idempotency import IDEMPOTENT
from remotegpu_server.routing import api_router

router = api_router("hosts")


@router.get("/v1/hosts", summary="List hosts (admins)")
async def list_hosts(db: Db, caller: Caller, limit: Limit = 50, cursor: Cursor = None) -> Page[Host]:
    """By name."""
    return await service.list_hosts(db, actor=caller, limit=limit, cursor=cursor)


@router.post("/v1/hosts", status_code=201, summary="Add a host (admins)", dependencies=[IDEMPOTENT])
async def create_host(body: HostCreate, db: Db, caller: Caller) -> Host:
    """An entry that an agent joins with an enrolment token."""
    return await service.create_host(db, actor=caller, body=body)


@router.get("/v1/hosts/{host}", summary="Get a host (admins)")
async def get_host(host: str, db: Db, caller: Caller) -> Host:
    """By id or name."""
    return await service.get_host(db, actor=caller, host=host)


@router.patch("/v1/hosts/{host}", summary="Change a host (admins)")
async def update_host(host: str, body: HostUpdate, db: Db, caller: Caller) -> Host:
    """Labels are replaced as a whole."""
    return await service.update_host(db, actor=caller, host=host, body=body)


@router.delete("/v1/hosts/{host}", status_code=204, summary="Delete a host (admins)")
async def delete_host(host: str, db: Db, caller: Caller) -> None:
    """Refused (`in_use`) while anything refers to it."""
    await service.delete_host(db, actor=caller, host=host)


@router.post("/v1/hosts/{host}:cordon", summary="Take no new work (admins)")
async def cordon_host(host: str, db: Db, caller: Caller) -> Host:
    """What runs goes on."""
    return await service.set_cordoned(db, actor=caller, host=host, cordoned=True)


@router.post("/v1/hosts/{host}:uncordon", summary="Take new work again (admins)")
async def uncordon_host(host: str, db: Db, caller: Caller) -> Host:
    """The queue is looked at again at once."""
    return await service.set_cordoned(db, actor=caller, host=host, cordoned=False)


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
    return await service.create_enrollment_token(db, actor=caller, host=host, body=body)
