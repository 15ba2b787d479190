"""Endpoints of the agent protocol."""

from __future__ import annotations

import time
from typing import Annotated

from fastapi import Query
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from starlette.requests import Request

from remotegpu.errors import TokenInvalid
from remotegpu.types.agent import (
    DesiredWorkloads,
    Enroll,
    Enrolled,
    GpuCheckAnswer,
    Heartbeat,
    HeartbeatReply,
    ImageSaveReport,
    LogAnswer,
    Observation,
    Session,
    SessionCreate,
    VolumeRemovalAnswer,
    VolumeSize,
)
from remotegpu_server import authz
from remotegpu_server.agents import service
from remotegpu_server.agents.loop import Mark, Rechecks
from remotegpu_server.authz import Action, Actor
from remotegpu_server.db import tables
from remotegpu_server.deps import (
    Caller,
    Db,
    DetachedCaller,
    HeartbeatCaller,
    HeartbeatDb,
    Sessions,
    SettingsDep,
    SignalsDep,
    VaultDep,
)
from remotegpu_server.hosts.service import sessions as host_sessions
from remotegpu_server.placing import Launch
from remotegpu_server.routing import api_router

router = api_router("agent", routine=True)


@router.post("/v1/agent/enroll", status_code=201, summary="Join a host")
async def enroll(body: Enroll, db: Db, caller: Caller) -> Enrolled:
    """The bearer is the enrolment token. The credential of an earlier agent of this host ends."""
    return await service.enroll(db, actor=caller, body=body)


@router.post("/v1/agent/sessions", status_code=201, summary="Register an agent process")
async def create_session(body: SessionCreate, db: Db, caller: Caller, settings: SettingsDep) -> Session:
    """Takes the inventory and answers the epoch that every later write carries."""
    return await service.create_session(db, actor=caller, body=body, settings=settings)


@router.post("/v1/agent/heartbeat", summary="Alive, and measured")
async def heartbeat(
    body: Heartbeat, db: HeartbeatDb, caller: HeartbeatCaller, settings: SettingsDep
) -> HeartbeatReply:
    """The answer says when to come again, and the revision of the desired set."""
    return await service.heartbeat(db, actor=caller, body=body, settings=settings)


@router.get("/v1/agent/workloads", summary="The desired set of the host")
async def get_workloads(
    request: Request,
    caller: DetachedCaller,
    sessions: Sessions,
    signals: SignalsDep,
    settings: SettingsDep,
    vault: VaultDep,
    epoch: Annotated[int, Query(ge=0)],
    since: Annotated[int | None, Query(description="Revision last seen; left out, answers at once.")] = None,
    wait_s: Annotated[float, Query(ge=0, le=55)] = 25.0,
) -> DesiredWorkloads:
    """Held until the revision differs from `since` or `wait_s` is over. No connection is held meanwhile."""
    authz.require(caller, Action.AGENT_REPORT)
    assert caller.host_id is not None, "agent credentials are bound to a host"
    launch = Launch(vault=vault, workload_url=settings.workload_url)
    rechecks: Rechecks = request.app.state.rechecks
    ends = time.monotonic() + wait_s
    with signals.watch(f"host:{caller.host_id}") as watch:
        rechecks.add(watch, Mark(caller.host_id, epoch, since, caller.token_id))
        try:
            while True:
                revision = await _current_revision(sessions, caller=caller, epoch=epoch)
                left = ends - time.monotonic()
                if revision != since or left <= 0 or signals.stopping:
                    break
                await watch.wait(left)
        finally:
            rechecks.remove(watch)
    async with sessions() as db:
        return await service.desired_set(db, host_id=caller.host_id, launch=launch)


async def _current_revision(sessions: async_sessionmaker[AsyncSession], *, caller: Actor, epoch: int) -> int:
    """The revision, if the caller is still the host's agent."""
    host, token = tables.Host, tables.Token
    async with sessions() as db:
        found = (
            await db.execute(
                select(host.epoch, host.revision, token.revoked_at)
                .join(token, token.host_id == host.id)
                .where(host.id == caller.host_id, token.id == caller.token_id)
            )
        ).one_or_none()
    if found is None or found.revoked_at is not None:
        raise TokenInvalid("The token was revoked.")
    if found.epoch != epoch:
        raise host_sessions.stale(found.epoch)
    revision: int = found.revision
    return revision


@router.put("/v1/agent/workloads/{workload_id}/observed", status_code=204, summary="Report a workload")
async def put_observed(workload_id: str, body: Observation, db: Db, caller: Caller) -> None:
    """`absent` is the proof that releases its GPUs. 409 for a past epoch or generation."""
    await service.record_observation(db, actor=caller, workload_id=workload_id, body=body)


@router.put("/v1/agent/gpu-checks/{check_id}", status_code=204, summary="Answer a GPU check")
async def put_gpu_check(check_id: str, body: GpuCheckAnswer, db: Db, caller: Caller) -> None:
    """Passed, it puts an unhealthy GPU back into placement."""
    await service.answer_gpu_check(db, actor=caller, check_id=check_id, body=body)


@router.put("/v1/agent/volume-removals/{removal_id}", status_code=204, summary="Answer a volume removal")
async def put_volume_removal(removal_id: str, body: VolumeRemovalAnswer, db: Db, caller: Caller) -> None:
    """The proof that a home is gone from the host."""
    await service.answer_volume_removal(db, actor=caller, removal_id=removal_id, body=body)


@router.put("/v1/agent/volumes/{volume_id}/size", status_code=204, summary="Report the size of a volume")
async def put_volume_size(volume_id: str, body: VolumeSize, db: Db, caller: Caller) -> None:
    """Of a volume that the desired set names. 404 where another host was asked meanwhile."""
    await service.report_volume_size(db, actor=caller, volume_id=volume_id, body=body)


@router.put("/v1/agent/log-requests/{request_id}", status_code=204, summary="Answer a log request")
async def put_log_answer(request_id: str, body: LogAnswer, db: Db, caller: Caller) -> None:
    """The newest output of a container, for the reader that waits."""
    await service.answer_log_request(db, actor=caller, request_id=request_id, body=body)


@router.put("/v1/agent/image-saves/{save_id}", status_code=204, summary="Report the save of an image")
async def put_image_save(save_id: str, body: ImageSaveReport, db: Db, caller: Caller) -> None:
    """Progress, the finished image, or why there is none. 409: given up, so remove what there is of it."""
    await service.report_image_save(db, actor=caller, save_id=save_id, body=body)
