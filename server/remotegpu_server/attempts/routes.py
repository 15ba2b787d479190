"""Endpoints of attempts, for agents."""

from __future__ import annotations

import time

from starlette.requests import Request
from starlette.responses import Response

from remotegpu.types.agent import (
    AttemptLease,
    AttemptProgress,
    AttemptRenewal,
    AttemptResult,
    AttemptStart,
    AttemptWrite,
    ClaimedAttempts,
    TaskClaim,
)
from remotegpu_server.attempts import service
from remotegpu_server.authz import Actor
from remotegpu_server.deps import Caller, Db, Sessions, SettingsDep, SignalsDep, VaultDep, identify
from remotegpu_server.fault_points import FaultPoints
from remotegpu_server.placing import Launch
from remotegpu_server.routing import api_router
from remotegpu_server.tasks.service.turns import CLAIMABLE

router = api_router("agent", routine=True)


@router.post("/v1/agent/tasks/claim", summary="Claim attempts")
async def claim(
    request: Request,
    body: TaskClaim,
    response: Response,
    sessions: Sessions,
    signals: SignalsDep,
    settings: SettingsDep,
    vault: VaultDep,
) -> ClaimedAttempts:
    """Held while nothing waits, up to `wait_s`. The same `request_id` again answers the same attempts."""
    response.headers["Cache-Control"] = "no-store"
    launch = Launch(vault=vault, workload_url=settings.workload_url)
    fault_points: FaultPoints = request.app.state.fault_points

    async def look() -> tuple[Actor, ClaimedAttempts]:
        async with sessions() as db:
            caller = await identify(request, db)  # its credential may have ended meanwhile
            found = await service.claim(db, actor=caller, body=body, launch=launch, settings=settings)
            fault_points.reach("before_commit")
            await db.commit()
            fault_points.reach("after_commit")
            return caller, found

    ends = time.monotonic() + body.wait_s
    caller, found = await look()
    if found.attempts or body.wait_s == 0:
        return found
    with signals.watch(CLAIMABLE.format(host_id=caller.host_id)) as watch:
        while True:  # looked for once more first: something may have come before the watch
            _, found = await look()
            left = ends - time.monotonic()
            if found.attempts or left <= 0 or signals.stopping:
                return found
            await watch.wait(left)


@router.post("/v1/agent/attempts/{attempt_id}/accept", summary="Accept an attempt")
async def accept(
    attempt_id: str, body: AttemptWrite, db: Db, caller: Caller, settings: SettingsDep
) -> AttemptLease:
    """Before anything of it is started. 409 or 410: forget it."""
    return await service.accept(db, actor=caller, attempt_id=attempt_id, body=body, settings=settings)


@router.post("/v1/agent/attempts/{attempt_id}/start", status_code=204, summary="An attempt has started")
async def start(attempt_id: str, body: AttemptStart, db: Db, caller: Caller, settings: SettingsDep) -> None:
    """Its process runs."""
    await service.start(db, actor=caller, attempt_id=attempt_id, body=body, settings=settings)


@router.post("/v1/agent/attempts/{attempt_id}/renew", summary="Renew the lease of an attempt")
async def renew(
    attempt_id: str, body: AttemptRenewal, db: Db, caller: Caller, settings: SettingsDep
) -> AttemptLease:
    """Answers whether it is to be ended, and whether it may be started. 409 or 410: end it and remove it."""
    return await service.renew(db, actor=caller, attempt_id=attempt_id, body=body, settings=settings)


@router.post("/v1/agent/attempts/{attempt_id}/progress", status_code=204, summary="Report progress")
async def progress(attempt_id: str, body: AttemptProgress, db: Db, caller: Caller) -> None:
    """What the task said of itself."""
    await service.progress(db, actor=caller, attempt_id=attempt_id, body=body)


@router.post("/v1/agent/attempts/{attempt_id}/complete", status_code=204, summary="Report a result")
async def complete(attempt_id: str, body: AttemptResult, db: Db, caller: Caller) -> None:
    """How it ended. The same result again changes nothing, another one is refused."""
    await service.complete(db, actor=caller, attempt_id=attempt_id, body=body)


@router.post("/v1/agent/attempts/{attempt_id}/release", status_code=204, summary="Release an attempt")
async def release(attempt_id: str, body: AttemptWrite, db: Db, caller: Caller) -> None:
    """Nothing of it is left on the host: the proof that frees what it held."""
    await service.release(db, actor=caller, attempt_id=attempt_id, body=body)
