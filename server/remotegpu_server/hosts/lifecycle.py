"""What admins want of a host: the table of verbs, and the one place that moves ``operational``.

The legal moves themselves are in ``db.transitions``, and a trigger refuses everything else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import func
from sqlalchemy.ext.asyncio import AsyncSession

from remotegpu.errors import InUse, StateConflict
from remotegpu.types.hosts import HostVerb
from remotegpu_server.authz import Actor
from remotegpu_server.db import tables
from remotegpu_server.db.notify import notify
from remotegpu_server.db.transitions import HOST_EMPTY, HOST_OPERATIONAL
from remotegpu_server.events import service as events
from remotegpu_server.hosts import queries
from remotegpu_server.notifications import service as notifications


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """What a verb does. Admins alone may use any of them."""

    sources: frozenset[str]
    """Where it may start from, narrower than the table of moves: ``:uncordon`` does not end a maintenance."""
    to: str
    sentence: str
    tells_users: bool
    """Whether those whose work is on the host are told."""


OPERATIONS: dict[HostVerb, Operation] = {
    HostVerb.CORDON: Operation(
        sources=frozenset({"pending", "available", "draining", "maintenance"}),
        to="cordoned",
        sentence="was cordoned: it takes no new work, what runs goes on",
        tells_users=True,
    ),
    HostVerb.UNCORDON: Operation(
        sources=frozenset({"cordoned", "draining"}),
        to="available",
        sentence="takes new work again",
        tells_users=False,
    ),
    HostVerb.DRAIN: Operation(
        sources=frozenset({"available", "cordoned", "draining"}),
        to="draining",
        sentence="is being emptied",
        tells_users=True,
    ),
    HostVerb.MAINTENANCE: Operation(
        sources=frozenset({"available", "cordoned", "draining"}),
        to="maintenance",
        sentence="is in maintenance",
        tells_users=False,
    ),
    HostVerb.ACTIVATE: Operation(
        sources=frozenset({"pending", "cordoned", "maintenance"}),
        to="available",
        sentence="is available",
        tells_users=False,
    ),
    HostVerb.RETIRE: Operation(
        sources=frozenset({"pending", "available", "cordoned", "draining", "maintenance"}),
        to="retired",
        sentence="was retired; its credential is revoked",
        tells_users=False,
    ),
}
"""Usage is not among it: it is computed from live placements, so leaving maintenance restores it."""


REJOIN = Operation(
    sources=frozenset({"retired"}),
    to="pending",
    sentence="waits for an agent to join again",
    tells_users=False,
)
"""What ``:activate`` does to a retired host, whose credential is gone."""


async def apply(
    db: AsyncSession,
    *,
    host: tables.Host,
    verb: HostVerb,
    reason: str | None,
    actor: Actor,
    **values: Any,
) -> tables.Host:
    """Do a verb to a locked host, with its event. Raises :class:`StateConflict` and :class:`InUse`.

    A host that is there already stays as it is, unless the verb brings ``values``.
    """
    rejoins = verb is HostVerb.ACTIVATE and host.operational == "retired"
    operation = REJOIN if rejoins else OPERATIONS[verb]
    if host.operational == operation.to and not values:
        return host
    if host.operational not in operation.sources:
        raise StateConflict(
            f"Host {host.name} is {host.operational}; {verb} starts from {_listed(operation.sources)}.",
            data={"operational": host.operational},
        )
    if operation.to in HOST_EMPTY:
        await require_empty(db, host=host, verb=verb)
    return await move(
        db,
        host=host,
        to=operation.to,
        reason=reason,
        kind=f"host.{_PAST.get(verb, verb)}",
        message=f"Host {host.name} {operation.sentence}.{_because(reason)}",
        actor=actor,
        tells_users=operation.tells_users,
        **values,
    )


_PAST = {HostVerb.CORDON: "cordoned", HostVerb.UNCORDON: "uncordoned", HostVerb.DRAIN: "draining"}
"""Kinds of events that are older than the table, or read wrong as a verb."""


def _because(reason: str | None) -> str:
    return f" {reason}" if reason else ""


def _listed(states: frozenset[str]) -> str:
    return ", ".join(state for state in HOST_OPERATIONAL if state in states)


async def require_empty(db: AsyncSession, *, host: tables.Host, verb: str) -> None:
    """Raise :class:`InUse` while anything holds a part of the locked host."""
    live = await queries.count_live(db, host_id=host.id)
    if live:
        raise InUse(
            f"{live} environments hold something on {host.name}; {verb} needs an empty host.",
            hint=f"Drain it first: `remotegpu host drain {host.name}`.",
            data={"environments": live},
        )


async def move(
    db: AsyncSession,
    *,
    host: tables.Host,
    to: str,
    reason: str | None,
    kind: str,
    message: str,
    actor: Actor,
    tells_users: bool = False,
    **values: Any,
) -> tables.Host:
    """Write the state of a locked host with its event; the drain's columns live as long as the drain."""
    before = host.operational
    if to != before and to not in HOST_OPERATIONAL[before]:
        raise StateConflict(f"Host {host.name} is {before}; it cannot become {to}.")
    drain = {"drain_deadline": None, "drained_at": None}
    changed = await queries.change(
        db,
        host,
        operational=to,
        operational_reason=reason,
        operational_since=func.now(),
        **(drain | values),
    )
    data = {"from": before, "to": to}
    if changed.drain_deadline is not None:
        data["deadline"] = changed.drain_deadline.isoformat()
    await events.record(
        db,
        kind=kind,
        subject_type="host",
        subject_id=host.id,
        actor=actor,
        reason=reason,
        message=message,
        data=data,
    )
    if tells_users:
        await notifications.tell(
            db,
            user_ids=await queries.users_on(db, host_id=host.id),
            kind=kind,
            level="warning" if to == "draining" else "info",
            message=message,
            subject_type="host",
            subject_id=host.id,
            data=data,
        )
    notify(db, "queue")
    return changed
