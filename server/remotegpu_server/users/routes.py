"""Users."""

from __future__ import annotations

from remotegpu.types.identity import User, UserCreate, UserCreated, UserUpdate
from remotegpu.types.wire import Page
from remotegpu_server.deps import Caller, Cursor, Db, Limit
from remotegpu_server.idempotency import IDEMPOTENT
from remotegpu_server.routing import api_router
from remotegpu_server.users import service

router = api_router("users")


@router.get("/v1/users", summary="List users")
async def list_users(db: Db, caller: Caller, limit: Limit = 50, cursor: Cursor = None) -> Page[User]:
    """By user name. Owners see those of their customer."""
    return await service.list_users(db, caller, limit=limit, cursor=cursor)


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


@router.post("/v1/users/{user}:suspend", summary="Suspend a user")
async def suspend_user(user: str, db: Db, caller: Caller) -> User:
    """Ends the user's tokens at once and refuses new sign-ins; running environments are kept."""
    return await service.suspend_user(db, caller, user)


@router.post("/v1/users/{user}:resume", summary="Resume a suspended user")
async def resume_user(user: str, db: Db, caller: Caller) -> User:
    """The user may sign in again."""
    return await service.resume_user(db, caller, user)


@router.post("/v1/users/{user}:reset-password", summary="Set a one-time password")
async def reset_password(user: str, db: Db, caller: Caller) -> UserCreated:
    """Answered this once; every session of the user ends."""
    return await service.reset_password(db, caller, user)
