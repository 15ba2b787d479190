"""Keeping a place, giving it back to the hub's spawner, and asking the hub for the start.

A row is the whole memory of it: made by the hub's spawner when it stops waiting, ``due`` when the turn has
come, gone when the spawner has taken the place over or the environment waits no more.
"""

from __future__ import annotations

from sqlalchemy import delete, func, select, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncSession

from remotegpu.errors import Forbidden, StateConflict
from remotegpu_server.authz import Actor
from remotegpu_server.db import tables
from remotegpu_server.db.notify import notify

WAKE = "hub-starts"


async def keep(
    db: AsyncSession, *, actor: Actor, environment: tables.Environment, hub_user: str, hub_server: str
) -> None:
    """Keep the place of a locked, waiting environment. Its secrets go: the next start brings new ones."""
    if not actor.is_service:
        raise Forbidden("Only the hub keeps a place: it starts the server when the turn comes.")
    if environment.status != "pending" or environment.desired != "running":
        raise StateConflict(f"{environment.name} is {environment.status} and has no place in the queue.")
    await _write(db, environment=environment, hub_user=hub_user, hub_server=hub_server)


async def keep_again(db: AsyncSession, *, environment: tables.Environment) -> None:
    """Keep the place of a hub's environment that the server itself put back into the queue.

    The hub's default server is the environment ``default``; others have their server's name.
    """
    owner = await db.scalar(select(tables.User.username).where(tables.User.id == environment.owner_id))
    assert owner is not None
    server = "" if environment.name == "default" else environment.name
    await _write(db, environment=environment, hub_user=owner, hub_server=server)


async def _write(
    db: AsyncSession, *, environment: tables.Environment, hub_user: str, hub_server: str
) -> None:
    row = tables.HubStart
    kept = upsert(row).values(
        environment_id=environment.id,
        generation=environment.generation,
        hub_user=hub_user,
        hub_server=hub_server,
    )
    await db.execute(
        kept.on_conflict_do_update(
            index_elements=["environment_id"],
            set_={
                "generation": environment.generation,
                "state": "waiting",
                "attempts": 0,
                "last_error": None,
            },
        )
    )
    await db.execute(
        update(tables.Environment)
        .where(tables.Environment.id == environment.id)
        .values(secret_env=None)
        .execution_options(synchronize_session=False)
    )
    notify(db, "queue")


async def take_over(db: AsyncSession, *, environment_id: str) -> bool:
    """The hub's spawner is back for its place. False: none was kept."""
    row = tables.HubStart
    taken = await db.scalar(
        delete(row)
        .where(row.environment_id == environment_id)
        .returning(row.environment_id)
        .execution_options(synchronize_session=False)
    )
    return taken is not None


async def set_due(db: AsyncSession, *, environment_id: str) -> None:
    """Its turn has come: the hub is asked from now on."""
    row = tables.HubStart
    await db.execute(
        update(row)
        .where(row.environment_id == environment_id, row.state == "waiting")
        .values(state="due", attempts=0, next_attempt_at=func.now())
        .execution_options(synchronize_session=False)
    )
    notify(db, WAKE)


async def kept_ids(db: AsyncSession, *, ids: list[str]) -> set[str]:
    """Which of these environments have a kept place."""
    row = tables.HubStart
    return set((await db.scalars(select(row.environment_id).where(row.environment_id.in_(ids)))).all())
