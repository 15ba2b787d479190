"""Users: made by admins and owners, suspended, given new passwords."""

from __future__ import annotations

from sqlalchemy import or_, select, tuple_
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from remotegpu.errors import Forbidden, Invalid, NameTaken, NotFound, StateConflict
from remotegpu.types.identity import User, UserCreate, UserCreated, UserRole, UserUpdate
from remotegpu.types.wire import Page
from remotegpu_server import pagination
from remotegpu_server.auth import passwords
from remotegpu_server.authz import Action, Actor, require, visibility
from remotegpu_server.customers import service as customers
from remotegpu_server.db import tables
from remotegpu_server.events import service as events
from remotegpu_server.tokens import service as tokens
from remotegpu_server.users.convert import to_wire
from remotegpu_server.users.queries import UserWithCustomer, users_with_customers
from remotegpu_server.workspaces import service as workspaces


async def list_users(db: AsyncSession, actor: Actor, *, limit: int, cursor: str | None) -> Page[User]:
    """By user name: all for admins, those of the own customer for owners."""
    require(actor, Action.USER_LIST, customer_id=actor.customer_id)
    query = users_with_customers()
    seen = visibility(actor)
    if not seen.everything:
        query = query.where(tables.User.customer_id == seen.customer_id)
    if cursor is not None:
        (after,) = pagination.decode(cursor, 1)
        query = query.where(tuple_(tables.User.username) > tuple_(str(after)))
    rows = (await db.execute(query.order_by(tables.User.username).limit(limit + 1))).all()
    found = [UserWithCustomer(*row) for row in rows[:limit]]
    following = pagination.encode([found[-1].user.username]) if len(rows) > limit else None
    return Page[User](items=[to_wire(one) for one in found], next_cursor=following)


async def get_user(db: AsyncSession, actor: Actor, reference: str) -> User:
    """One user by id or name."""
    return to_wire(await _find(db, actor, Action.USER_READ, reference))


async def create_user(db: AsyncSession, actor: Actor, body: UserCreate) -> UserCreated:
    """A new login. Without a password in ``body`` a one-time password is made and answered once."""
    require(actor, Action.USER_CREATE, customer_id=actor.customer_id, noun="customer")
    customer = await _customer_for(db, actor, body.customer)
    require(actor, Action.USER_CREATE, customer_id=customer.id, noun="customer")
    _require_grantable(actor, body.role)
    one_time = None if body.password else passwords.make_one_time_password()
    password = body.password.get_secret_value() if body.password else (one_time or "")
    user = await db.scalar(
        insert(tables.User)
        .values(
            id=tables.new_id("usr"),
            username=body.username,
            display_name=body.display_name,
            email=body.email,
            role=str(body.role),
            customer_id=customer.id,
            password_hash=await passwords.hash_password(password),
        )
        .on_conflict_do_nothing(index_elements=[tables.User.username])
        .returning(tables.User)
    )
    if user is None:
        raise NameTaken(f"There is a user {body.username!r} already.", data={"username": body.username})
    await workspaces.make_personal(db, user_id=user.id, customer_id=customer.id, username=user.username)
    await _record(db, actor, user, "user.created", f"{actor.name} made the user {user.username}.")
    return UserCreated(user=to_wire(UserWithCustomer(user, customer)), one_time_password=one_time)


async def update_user(db: AsyncSession, actor: Actor, reference: str, body: UserUpdate) -> User:
    """Change what ``body`` names."""
    found = await _find(db, actor, Action.USER_WRITE, reference, lock=True)
    user = found.user
    changes = {name: getattr(body, name) for name in body.model_fields_set}
    for name in ("display_name", "role"):
        if name in changes and changes[name] is None:
            raise Invalid(f"{name} cannot be null.")
    if "role" in changes:
        _require_grantable(actor, changes["role"])
        await _keep_an_admin(db, user, becomes=changes["role"])
    before = user.role
    for name, value in changes.items():
        setattr(user, name, str(value) if name == "role" else value)
    if changes:
        message = f"{actor.name} changed {', '.join(sorted(changes))} of {user.username}."
        data: dict[str, object] = {"changed": sorted(changes)}
        if before != user.role:
            data |= {"role_from": before, "role_to": user.role}
        await _record(db, actor, user, "user.changed", message, data=data)
    await db.flush()
    return to_wire(found)


async def suspend_user(db: AsyncSession, actor: Actor, reference: str) -> User:
    """Nothing the user holds works any more, at once; running environments are kept."""
    found = await _find(db, actor, Action.USER_WRITE, reference, lock=True)
    user = found.user
    if user.id == actor.user_id:
        raise StateConflict("You cannot suspend yourself.")
    await _keep_an_admin(db, user, becomes=None)
    if user.status != "suspended":
        user.status = "suspended"
        ended = await tokens.revoke(db, tables.Token.user_id == user.id, tables.Token.kind == "user")
        message = f"{actor.name} suspended {user.username}; {len(ended)} tokens ended."
        await _record(db, actor, user, "user.suspended", message, data={"tokens_revoked": len(ended)})
        await db.flush()
    return to_wire(found)


async def resume_user(db: AsyncSession, actor: Actor, reference: str) -> User:
    """The user may sign in again; old sessions stay ended."""
    found = await _find(db, actor, Action.USER_WRITE, reference, lock=True)
    if found.user.status != "active":
        found.user.status = "active"
        await _record(db, actor, found.user, "user.resumed", f"{actor.name} resumed {found.user.username}.")
        await db.flush()
    return to_wire(found)


async def reset_password(db: AsyncSession, actor: Actor, reference: str) -> UserCreated:
    """A one-time password, answered to the admin once; every session of the user ends."""
    await _find(db, actor, Action.USER_WRITE, reference)  # refuse before the work, lock after it
    one_time = passwords.make_one_time_password()
    new_hash = await passwords.hash_password(one_time)
    found = await _find(db, actor, Action.USER_WRITE, reference, lock=True)
    found.user.password_hash = new_hash
    ended = await tokens.revoke(db, tables.Token.user_id == found.user.id, tables.Token.kind == "user")
    message = f"{actor.name} set a new password for {found.user.username}; {len(ended)} tokens ended."
    await _record(db, actor, found.user, "user.password_reset", message, data={"tokens_revoked": len(ended)})
    await db.flush()
    return UserCreated(user=to_wire(found), one_time_password=one_time)


async def _find(
    db: AsyncSession, actor: Actor, action: Action, reference: str, *, lock: bool = False
) -> UserWithCustomer:
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


def _require_grantable(actor: Actor, role: UserRole) -> None:
    if role is UserRole.UNKNOWN:
        raise Invalid("role: must be admin, owner or member.")
    if role is UserRole.ADMIN and not actor.is_admin:
        raise Forbidden("Only platform admins may make a platform admin.")


async def _keep_an_admin(db: AsyncSession, user: tables.User, *, becomes: UserRole | None) -> None:
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


async def _record(
    db: AsyncSession,
    actor: Actor,
    user: tables.User,
    kind: str,
    message: str,
    *,
    data: dict[str, object] | None = None,
) -> None:
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
