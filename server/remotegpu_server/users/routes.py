"""Users."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query

from remotegpu.types.identity import (
    AccountStatus,
    RunningWork,
    Suspension,
    User,
    UserCreate,
    UserCreated,
    UserUpdate,
)
from remotegpu.types.wire import Page
from remotegpu_server.deps import Caller, Cursor, Db, Limit
from remotegpu_server.idempotency import IDEMPOTENT
from remotegpu_server.routing import api_router
from remotegpu_server.users import deletion, service

router = api_router("users")


@router.get("/v1/users", summary="List users")
async def list_users(
    db: Db, caller: Caller, status: AccountStatus | None = None, limit: Limit = 50, cursor: Cursor = None
) -> Page[User]:
    """By user name. Owners see those of their customer. Deleted ones only with `status=deleted`."""
    return await service.list_users(db, caller, status=status, limit=limit, cursor=cursor)


@router.post("/v1/users", status_code=201, summary="Make a user", dependencies=[IDEMPOTENT])
async def create_user(body: UserCreate, db: Db, caller: Caller) -> UserCreated:
    """Without a password, a one-time password is made and answered this once."""
    return await service.create_user(db, caller, body)


@router.get("/v1/users/{user}", summary="Get a user")
async def get_user(user: str, db: Db, caller: Caller) -> User:
    """By id or user name."""
    return await service.get_user(db, caller, user)


@router.patch("/v1/users/{user}", summary="Change a user")
async def update_user(user: str, body: UserUpdate, db: Db, caller: Caller) -> User:
    """Fields left out stay as they are."""
    return await service.update_user(db, caller, user, body)


@router.delete("/v1/users/{user}", status_code=204, summary="Delete a user")
async def delete_user(
    user: str,
    db: Db,
    caller: Caller,
    environments: Annotated[RunningWork, Query(description="What becomes of what runs.")] = RunningWork.STOP,
    grace_s: Annotated[int, Query(ge=0, le=30 * 86400)] = 3600,
) -> None:
    """For good: nothing of the account works any more, and its name stays taken. Files stay on their hosts.
    409 while the user owns a team workspace.
    """
    policy = Suspension(environments=environments, grace_s=grace_s)
    await deletion.delete_user(db, caller, user, policy)


@router.post("/v1/users/{user}:suspend", summary="Suspend a user")
async def suspend_user(user: str, db: Db, caller: Caller, body: Suspension | None = None) -> User:
    """Ends the user's tokens at once and refuses new sign-ins. The body says what becomes of what runs;
    without it, it is kept.
    """
    return await service.suspend_user(db, caller, user, body or Suspension())


@router.post("/v1/users/{user}:resume", summary="Resume a suspended user")
async def resume_user(user: str, db: Db, caller: Caller) -> User:
    """The user may sign in again."""
    return await service.resume_user(db, caller, user)


@router.post("/v1/users/{user}:reset-password", summary="Set a one-time password")
async def reset_password(user: str, db: Db, caller: Caller) -> UserCreated:
    """Answered this once; every session of the user ends."""
    return await service.reset_password(db, caller, user)
