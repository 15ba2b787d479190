"""Endpoints of environments, and of the question what a request would get."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query

from remotegpu.types.environments import (
    Environment,
    EnvironmentAccess,
    EnvironmentCreate,
    EnvironmentExtend,
    EnvironmentLogs,
    EnvironmentSpec,
    EnvironmentStart,
    EnvironmentStatus,
    EnvironmentUpdate,
    EnvironmentUsage,
    PlaceKeep,
    PlacementExplanation,
)
from remotegpu.types.wire import Page
from remotegpu_server.crypto import Vault
from remotegpu_server.deps import (
    Caller,
    Cursor,
    Db,
    DetachedCaller,
    Limit,
    Sessions,
    SettingsDep,
    SignalsDep,
    VaultDep,
)
from remotegpu_server.environments.service import access, change, create, explain, read, stop, stop_times
from remotegpu_server.idempotency import IDEMPOTENT
from remotegpu_server.placing import Launch
from remotegpu_server.routing import api_router, dry_run
from remotegpu_server.settings import Settings

router = api_router("environments")


def launch_of(settings: Settings, vault: Vault) -> Launch:
    """What starts take from the app."""
    return Launch(vault=vault, workload_url=settings.workload_url)


@router.post("/v1/placements:explain", summary="What would happen to this request now")
@dry_run
async def explain_placement(body: EnvironmentSpec, db: Db, caller: Caller) -> PlacementExplanation:
    """Starts now, waits or is refused, and why. Nothing is reserved."""
    return await explain.explain(db, actor=caller, body=body)


@router.get("/v1/environments", summary="List environments")
async def list_environments(
    db: Db,
    caller: Caller,
    owner: Annotated[str | None, Query(max_length=64, description="Name or id of the owner.")] = None,
    name: Annotated[str | None, Query(max_length=63)] = None,
    workspace: Annotated[str | None, Query(max_length=64, description="Id of a workspace.")] = None,
    status: Annotated[
        list[EnvironmentStatus] | None, Query(description="Only these; deleted ones only when named here.")
    ] = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> Page[Environment]:
    """Newest first. Members see their own and their workspaces', owners their customer's, admins all."""
    return await read.list_environments(
        db,
        actor=caller,
        owner=owner,
        name=name,
        workspace=workspace,
        statuses=status or [],
        limit=limit,
        cursor=cursor,
    )


@router.post("/v1/environments", status_code=201, summary="Create and start", dependencies=[IDEMPOTENT])
async def create_environment(
    body: EnvironmentCreate, db: Db, caller: Caller, settings: SettingsDep, vault: VaultDep
) -> Environment:
    """Starts at once where something is free; otherwise waits (``queue``) or answers ``no_capacity``."""
    return await create.create_environment(db, actor=caller, body=body, launch=launch_of(settings, vault))


@router.get("/v1/environments/{environment_id}", summary="Get an environment")
async def get_environment(environment_id: str, db: Db, caller: Caller) -> Environment:
    """Its status, reason and what it holds."""
    return await read.get_environment(db, actor=caller, environment_id=environment_id)


@router.patch("/v1/environments/{environment_id}", summary="Rename an environment")
async def update_environment(
    environment_id: str, body: EnvironmentUpdate, db: Db, caller: Caller
) -> Environment:
    """Name and display name. The name of a hub server's environment stays."""
    return await change.rename(db, actor=caller, environment_id=environment_id, body=body)


@router.delete("/v1/environments/{environment_id}", status_code=204, summary="Delete an environment")
async def delete_environment(environment_id: str, db: Db, caller: Caller) -> None:
    """Stops it first where needed. Files in the home stay."""
    await stop.delete_environment(db, actor=caller, environment_id=environment_id)


@router.post("/v1/environments/{environment_id}:start", summary="Start a stopped environment")
async def start_environment(
    environment_id: str,
    body: EnvironmentStart,
    db: Db,
    caller: Caller,
    settings: SettingsDep,
    vault: VaultDep,
) -> Environment:
    """A new generation of a stopped or failed environment; one that runs is answered as it is."""
    return await create.start_environment(
        db, actor=caller, environment_id=environment_id, body=body, launch=launch_of(settings, vault)
    )


@router.post("/v1/environments/{environment_id}:keep-place", summary="Keep its place (the hub)")
async def keep_place(
    environment_id: str, body: PlaceKeep, db: Db, caller: Caller, settings: SettingsDep
) -> Environment:
    """The hub's spawner stops waiting; the server has the hub start it when its turn comes."""
    return await create.keep_place(
        db, actor=caller, environment_id=environment_id, body=body, hub_known=bool(settings.hub_api_url)
    )


@router.post("/v1/environments/{environment_id}:stop", summary="Stop an environment")
async def stop_environment(environment_id: str, db: Db, caller: Caller) -> Environment:
    """Legal in every status. GPUs are free when the host has proven that the container is gone."""
    return await stop.stop_environment(db, actor=caller, environment_id=environment_id)


@router.post("/v1/environments/{environment_id}:restart", summary="Restart in the same place")
async def restart_environment(
    environment_id: str, db: Db, caller: Caller, settings: SettingsDep, vault: VaultDep
) -> Environment:
    """A new generation on the same host with the same GPUs. 409 unless it runs or starts."""
    return await change.restart(
        db, actor=caller, environment_id=environment_id, launch=launch_of(settings, vault)
    )


@router.post(
    "/v1/environments/{environment_id}:extend", summary="Put its stop off", dependencies=[IDEMPOTENT]
)
async def extend_environment(
    environment_id: str, body: EnvironmentExtend, db: Db, caller: Caller
) -> Environment:
    """Within the platform's ceiling. Takes an announced idle stop back as well."""
    return await stop_times.extend(db, actor=caller, environment_id=environment_id, body=body)


@router.get("/v1/environments/{environment_id}/access", summary="How to reach an environment")
async def get_access(
    environment_id: str, db: Db, caller: Caller, settings: SettingsDep, vault: VaultDep
) -> EnvironmentAccess:
    """Notebook, SSH, desktop and ports; 409 unless it runs. No credential is in it."""
    return await access.get_access(
        db, actor=caller, environment_id=environment_id, vault=vault, hub_url=settings.hub_url
    )


@router.post("/v1/environments/{environment_id}:release", summary="Release without proof (admins)")
async def release_environment(environment_id: str, db: Db, caller: Caller) -> Environment:
    """Gives GPUs back although nobody proved that the container is gone. Recorded as an event."""
    return await stop.release_environment(db, actor=caller, environment_id=environment_id)


@router.get("/v1/environments/{environment_id}/logs", summary="Output of the container")
async def get_logs(
    environment_id: str,
    sessions: Sessions,
    signals: SignalsDep,
    caller: DetachedCaller,
    tail_lines: Annotated[int, Query(ge=1, le=10000)] = 200,
) -> EnvironmentLogs:
    """The newest lines, fetched from the host; what was kept of them when the container is gone."""
    return await read.get_logs(
        sessions, signals=signals, actor=caller, environment_id=environment_id, tail_lines=tail_lines
    )


@router.get("/v1/environments/{environment_id}/usage", summary="What the environment uses")
async def get_usage(environment_id: str, db: Db, caller: Caller) -> EnvironmentUsage:
    """GPUs, CPU and memory as the host's agent measured them, with the last ten minutes."""
    return await read.get_usage(db, actor=caller, environment_id=environment_id)
