"""Users: made by admins and owners, suspended, given new passwords."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import insert, or_, select, tuple_, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from remotegpu.errors import Forbidden, Invalid, NameTaken, NotFound, StateConflict
from remotegpu.types.identity import (
    AccountStatus,
    ProfileUpdate,
    Suspension,
    User,
    UserCreate,
    UserCreated,
    UserRole,
    UserUpdate,
)
from remotegpu.types.wire import Page
from remotegpu_server import pagination
from remotegpu_server.audit import service as audit
from remotegpu_server.auth import passwords
from remotegpu_server.authz import Action, Actor, require, visibility
from remotegpu_server.customers import service as customers
from remotegpu_server.customers import suspension
from remotegpu_server.db import tables
from remotegpu_server.db.notify import notify
from remotegpu_server.db.session import violated_constraint
from remotegpu_server.events import service as events
from remotegpu_server.tokens import service as tokens
from remotegpu_server.users.convert import to_wire
from remotegpu_server.users.queries import UserWithCustomer, users_with_customers
from remotegpu_server.workspaces import service as workspaces


async def list_users(
    db: AsyncSession, actor: Actor, *, status: AccountStatus | None, limit: int, cursor: str | None
) -> Page[User]:
    """By user name: all for admins, those of the own customer for owners; deleted ones when asked for."""
    require(actor, Action.USER_LIST, customer_id=actor.customer_id)
    row = tables.User
    query = users_with_customers().where(row.status == str(status) if status else row.status != "deleted")
    seen = visibility(actor)
    if not seen.everything:
        query = query.where(row.customer_id == seen.customer_id)
    if cursor is not None:
        (after,) = pagination.decode(cursor, 1)
        query = query.where(tuple_(row.username) > tuple_(str(after)))
    rows = (await db.execute(query.order_by(row.username).limit(limit + 1))).all()
    found = [UserWithCustomer(*one) for one in rows[:limit]]
    audit.note(db, read="users", count=len(found))
    following = pagination.encode([found[-1].user.username]) if len(rows) > limit else None
    return Page[User](items=[to_wire(one) for one in found], next_cursor=following)


async def get_user(db: AsyncSession, actor: Actor, reference: str) -> User:
    """One user by id or name."""
    found = await find(db, actor, Action.USER_READ, reference)
    if found.user.id != actor.user_id:
        audit.note(db, read="user", resource_id=found.user.id)
    return to_wire(found)


async def create_user(db: AsyncSession, actor: Actor, body: UserCreate) -> UserCreated:
    """A new login. Without a password in ``body`` a one-time password is made and answered once; nothing but
    changing it is allowed until then.
    """
    require(actor, Action.USER_CREATE, customer_id=actor.customer_id, noun="customer")
    customer = await _customer_for(db, actor, body.customer)
    require(actor, Action.USER_CREATE, customer_id=customer.id, noun="customer")
    _require_grantable(actor, body.role)
    one_time = None if body.password else passwords.make_one_time_password()
    password = body.password.get_secret_value() if body.password else (one_time or "")
    profile = body.model_dump(include={"username", "display_name", "full_name", "email", "phone", "role"})
    user = await insert_user(
        db,
        profile | {"role": str(body.role)},
        customer_id=customer.id,
        password_hash=await passwords.hash_password(password),
        password_change_required=one_time is not None,
    )
    audit.note(db, resource_id=user.id, new=profile)
    await record(db, actor, user, "user.created", f"{actor.name} made the user {user.username}.")
    return UserCreated(user=to_wire(UserWithCustomer(user, customer)), one_time_password=one_time)


async def insert_user(db: AsyncSession, profile: dict[str, Any], **columns: Any) -> tables.User:
    """A new row with its personal workspace. Raises ``NameTaken`` for a name or address in use."""
    try:
        async with db.begin_nested():
            wanted = insert(tables.User).values(id=tables.new_id("usr"), **profile, **columns)
            user: tables.User | None = await db.scalar(wanted.returning(tables.User))
    except IntegrityError as error:
        raise _taken(error, profile) from error
    assert user is not None
    await workspaces.make_personal(db, user_id=user.id, customer_id=user.customer_id, username=user.username)
    return user


async def update_user(db: AsyncSession, actor: Actor, reference: str, body: UserUpdate) -> User:
    """Change what ``body`` names."""
    found = await find(db, actor, Action.USER_WRITE, reference, lock=True)
    if "role" in body.model_fields_set:
        if body.role is None:
            raise Invalid("role cannot be null.")
        _require_grantable(actor, body.role)
        await keep_an_admin(db, found.user, becomes=body.role)
    return await _change(db, actor, found, body)


async def update_profile(db: AsyncSession, actor: Actor, body: ProfileUpdate) -> User:
    """What people change of their own account."""
    require(actor, Action.PROFILE_CHANGE)
    query = users_with_customers().where(tables.User.id == actor.user_id).with_for_update(of=tables.User)
    return await _change(db, actor, UserWithCustomer(*(await db.execute(query)).one()), body)


async def _change(db: AsyncSession, actor: Actor, found: UserWithCustomer, body: ProfileUpdate) -> User:
    user = found.user
    wanted = body.model_dump(mode="json", include=body.model_fields_set)
    if any(wanted.get(name, "") is None for name in ("display_name", "full_name")):
        raise Invalid("display_name and full_name cannot be null.")
    changes = {name: value for name, value in wanted.items() if getattr(user, name) != value}
    if not changes:
        return to_wire(found)
    old = {name: getattr(user, name) for name in changes}
    try:
        async with db.begin_nested():
            await db.execute(update(tables.User).where(tables.User.id == user.id).values(changes))
    except IntegrityError as error:
        raise _taken(error, changes) from error
    await db.refresh(user)
    audit.note(db, old=old, new=changes)
    message = f"{actor.name} changed {', '.join(sorted(changes))} of {user.username}."
    data: dict[str, object] = {"changed": sorted(changes)}
    if "role" in changes:
        data |= {"role_from": old["role"], "role_to": changes["role"]}
    await record(db, actor, user, "user.changed", message, data=data)
    return to_wire(found)


async def suspend_user(db: AsyncSession, actor: Actor, reference: str, policy: Suspension) -> User:
    """Nothing the user holds works any more, at once; ``policy`` says what becomes of what runs. Suspending
    a suspended one again changes the policy.
    """
    found = await find(db, actor, Action.USER_WRITE, reference, lock=True)
    user = found.user
    if user.id == actor.user_id:
        raise StateConflict("You cannot suspend yourself.")
    refuse_deleted(user)
    await keep_an_admin(db, user, becomes=None)
    ended = await end_account(db, user, status="suspended", policy=policy)
    words = suspension.in_words(policy)
    message = f"{actor.name} suspended {user.username}; {ended} tokens ended, {words}."
    audit.note(db, new=policy.model_dump(mode="json"), tokens_revoked=ended)
    await record(db, actor, user, "user.suspended", message, data={"tokens_revoked": ended})
    return to_wire(found)


async def end_account(db: AsyncSession, user: tables.User, *, status: str, policy: Suspension) -> int:
    """End every token of a locked user, and say when what runs is stopped. The number of tokens."""
    await db.execute(
        update(tables.User)
        .where(tables.User.id == user.id)
        .values(status=status, stop_environments_at=suspension.stop_at(policy))
    )
    await db.refresh(user)
    notify(db, suspension.WAKE)
    return len(await tokens.revoke(db, tables.Token.user_id == user.id, tables.Token.kind == "user"))


async def resume_user(db: AsyncSession, actor: Actor, reference: str) -> User:
    """The user may sign in again; old sessions stay ended, what was going to be stopped is kept."""
    found = await find(db, actor, Action.USER_WRITE, reference, lock=True)
    refuse_deleted(found.user)
    if found.user.status != "active":
        found.user.status = "active"
        found.user.stop_environments_at = None
        await record(db, actor, found.user, "user.resumed", f"{actor.name} resumed {found.user.username}.")
        await db.flush()
    return to_wire(found)


async def reset_password(db: AsyncSession, actor: Actor, reference: str) -> UserCreated:
    """A one-time password, answered to the admin once; every session of the user ends."""
    await find(db, actor, Action.USER_WRITE, reference)  # refuse before the work, lock after it
    one_time = passwords.make_one_time_password()
    new_hash = await passwords.hash_password(one_time)
    found = await find(db, actor, Action.USER_WRITE, reference, lock=True)
    refuse_deleted(found.user)
    found.user.password_hash = new_hash
    found.user.password_change_required = True
    ended = await tokens.revoke(db, tables.Token.user_id == found.user.id, tables.Token.kind == "user")
    message = f"{actor.name} set a new password for {found.user.username}; {len(ended)} tokens ended."
    await record(db, actor, found.user, "user.password_reset", message, data={"tokens_revoked": len(ended)})
    await db.flush()
    return UserCreated(user=to_wire(found), one_time_password=one_time)


async def find(
    db: AsyncSession, actor: Actor, action: Action, reference: str, *, lock: bool = False
) -> UserWithCustomer:
    """The user of this id or name, if the actor may do ``action`` with it."""
    query = users_with_customers().where(or_(tables.User.id == reference, tables.User.username == reference))
    if lock:
        query = query.with_for_update(of=tables.User)
    row = (await db.execute(query)).first()
    if row is None:
        raise NotFound("There is no such user.")
    user, customer = row
    require(actor, action, user_id=user.id, customer_id=customer.id, noun="user")
    if action is Action.USER_WRITE and user.role == "admin" and not actor.is_admin:
        raise Forbidden("Only platform admins may change a platform admin.")
    return UserWithCustomer(user, customer)


async def _customer_for(db: AsyncSession, actor: Actor, reference: str | None) -> tables.Customer:
    if reference is not None:
        return await customers.find(db, reference)
    return await db.get_one(tables.Customer, actor.customer_id)


def refuse_deleted(user: tables.User) -> None:
    """Nothing brings a deleted account back."""
    if user.status == "deleted":
        raise StateConflict(f"The account {user.username} was deleted.")


def _taken(error: IntegrityError, values: Mapping[str, object]) -> Exception:
    constraint = violated_constraint(error)
    if constraint == "uq_users_username":
        name = values["username"]
        return NameTaken(f"There is a user {name!r} already.", data={"username": name})
    if constraint == "uq_users_email":
        return NameTaken("Another account has this e-mail address.", data={"email": values["email"]})
    return error


def _require_grantable(actor: Actor, role: UserRole) -> None:
    if role is UserRole.UNKNOWN:
        raise Invalid("role: must be admin, owner or member.")
    if role is UserRole.ADMIN and not actor.is_admin:
        raise Forbidden("Only platform admins may make a platform admin.")


async def keep_an_admin(db: AsyncSession, user: tables.User, *, becomes: UserRole | None) -> None:
    """Refuse what would leave the platform without an active admin. Locks all admins, in id order."""
    if user.role != "admin" or becomes is UserRole.ADMIN:
        return
    admins = await db.scalars(
        select(tables.User.id)
        .where(tables.User.role == "admin", tables.User.status == "active")
        .order_by(tables.User.id)
        .with_for_update()
    )
    if set(admins) <= {user.id}:
        raise StateConflict("This is the last active platform admin.", hint="Make another admin first.")


async def record(
    db: AsyncSession,
    actor: Actor,
    user: tables.User,
    kind: str,
    message: str,
    *,
    data: dict[str, object] | None = None,
) -> None:
    """One event about an account."""
    await events.record(
        db,
        kind=kind,
        subject_type="user",
        subject_id=user.id,
        actor=actor,
        message=message,
        data=data,
        customer_id=user.customer_id,
        user_id=user.id,
    )
