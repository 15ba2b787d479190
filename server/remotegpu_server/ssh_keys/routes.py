"""Endpoints of SSH keys."""

from __future__ import annotations

from remotegpu.types.ssh_keys import SshKey, SshKeyCreate
from remotegpu.types.wire import Page
from remotegpu_server.deps import Caller, Cursor, Db, Limit
from remotegpu_server.idempotency import IDEMPOTENT
from remotegpu_server.routing import api_router
from remotegpu_server.ssh_keys import service

router = api_router("ssh_keys")


@router.get("/v1/ssh-keys", summary="List the own SSH keys")
async def list_ssh_keys(db: Db, caller: Caller, limit: Limit = 50, cursor: Cursor = None) -> Page[SshKey]:
    """Oldest first."""
    return await service.list_keys(db, actor=caller, limit=limit, cursor=cursor)


@router.post("/v1/ssh-keys", status_code=201, summary="Register an SSH key", dependencies=[IDEMPOTENT])
async def create_ssh_key(body: SshKeyCreate, db: Db, caller: Caller) -> SshKey:
    """It opens the caller's environments within one heartbeat, those of team workspaces too."""
    return await service.create_key(db, actor=caller, body=body)


@router.get("/v1/ssh-keys/{key_id}", summary="Get an own SSH key")
async def get_ssh_key(key_id: str, db: Db, caller: Caller) -> SshKey:
    """404 for anybody else's."""
    return await service.get_key(db, actor=caller, key_id=key_id)


@router.delete("/v1/ssh-keys/{key_id}", status_code=204, summary="Remove an SSH key")
async def delete_ssh_key(key_id: str, db: Db, caller: Caller) -> None:
    """It opens nothing any more within one heartbeat. Sessions that are open stay open."""
    await service.delete_key(db, actor=caller, key_id=key_id)
