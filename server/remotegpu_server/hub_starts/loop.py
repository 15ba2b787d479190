"""Asks the hub to start the servers whose turn has come: at least once, with bounded retries."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import timedelta
from urllib.parse import quote

import httpx
import structlog
from sqlalchemy import ColumnElement, delete, func, select, text, update

from remotegpu.types.environments import Reason
from remotegpu_server.authz import SYSTEM
from remotegpu_server.db import tables
from remotegpu_server.environments import queries
from remotegpu_server.environments.service import stop
from remotegpu_server.hub_starts.service import WAKE
from remotegpu_server.loops import Loop, Work, by_itself
from remotegpu_server.notifications import service as notifications
from remotegpu_server.settings import Settings

ATTEMPTS = 6
CLAIM_S = 60.0
"""From an accepted request until the hub's spawner must have taken the place over."""
PAUSE_S = 5.0
"""Before the second attempt; doubled for each further one."""
ANSWER_S = 30.0
"""How long the hub may take to answer: it waits for ten seconds before it says that the start goes on."""
AT_ONCE = 20
"""Servers that one pass asks for, all at the same time: a hub that hangs must not outlast the pass."""
_SAID = 300
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Due:
    environment_id: str
    generation: int
    hub_user: str
    hub_server: str
    attempts: int
    last_error: str | None


async def start_due(work: Work) -> None:
    """One pass. An attempt is written down before it is made, so a crash repeats it later, not at once."""
    due = await _claim(work)
    await asyncio.gather(*(_attempt(work, one) for one in due if one.attempts <= ATTEMPTS))
    for one in due:
        if one.attempts > ATTEMPTS:
            with by_itself("hub-starts", one.environment_id):
                await _give_up(work, one)


async def _claim(work: Work) -> list[_Due]:
    row = tables.HubStart
    async with work.session() as db:
        await db.execute(
            text(
                """
                DELETE FROM hub_starts h USING environments e
                WHERE e.id = h.environment_id
                  AND (e.status <> 'pending' OR e.desired <> 'running' OR e.generation <> h.generation)
                """
            )
        )
        first = (
            select(row.environment_id)
            .where(row.state == "due", row.next_attempt_at <= func.now())
            .order_by(row.next_attempt_at)
            .limit(AT_ONCE)
        )
        claimed = await db.execute(
            update(row)
            .where(row.environment_id.in_(first))
            .values(attempts=row.attempts + 1, next_attempt_at=func.now() + timedelta(seconds=CLAIM_S))
            .returning(
                row.environment_id,
                row.generation,
                row.hub_user,
                row.hub_server,
                row.attempts,
                row.last_error,
            )
            .execution_options(synchronize_session=False)
        )
        return [_Due(*one) for one in claimed]


async def _attempt(work: Work, one: _Due) -> None:
    with by_itself("hub-starts", one.environment_id):
        error = await ask(work.settings, hub_user=one.hub_user, hub_server=one.hub_server)
        if error is not None:
            await _later(work, one, error)


async def ask(settings: Settings, *, hub_user: str, hub_server: str) -> str | None:
    """Ask the hub for the start; the error in words, or ``None`` when the hub has taken it on."""
    if not settings.hub_api_url:
        return "REMOTEGPU_HUB_API_URL is not set"
    server = f"servers/{quote(hub_server, safe='')}" if hub_server else "server"
    url = f"{settings.hub_api_url}/users/{quote(hub_user, safe='')}/{server}"
    try:
        async with httpx.AsyncClient(timeout=ANSWER_S, trust_env=False) as client:
            answer = await client.post(url, headers={"Authorization": f"token {settings.hub_api_token}"})
    except httpx.HTTPError as error:
        return f"the hub does not answer ({type(error).__name__})"
    return None if answer.is_success else _said(answer)


def _said(answer: httpx.Response) -> str:
    """The refusal in the hub's words, where it is the hub that answers."""
    try:
        words = answer.json()["message"]
    except (ValueError, KeyError, TypeError):
        words = None
    return (
        f"the hub answered {answer.status_code}: {words[:_SAID]}"
        if isinstance(words, str) and words
        else f"the hub answered {answer.status_code}"
    )


async def _later(work: Work, one: _Due, error: str) -> None:
    _log.warning("hub_start_failed", environment=one.environment_id, attempt=one.attempts, error=error)
    row = tables.HubStart
    async with work.session() as db:
        await db.execute(
            update(row)
            .where(_same(one))
            .values(
                last_error=error,
                next_attempt_at=func.now() + timedelta(seconds=PAUSE_S * 2 ** (one.attempts - 1)),
            )
            .execution_options(synchronize_session=False)
        )


def _same(one: _Due) -> ColumnElement[bool]:
    """Nobody has taken the place over since this attempt was written down, nor kept it anew."""
    row = tables.HubStart
    return (
        (row.environment_id == one.environment_id)
        & (row.generation == one.generation)
        & (row.state == "due")
        & (row.attempts == one.attempts)
    )


async def _give_up(work: Work, one: _Due) -> None:
    """Nobody came for the place: let the next one have it, and tell the owner."""
    row = tables.HubStart
    async with work.session() as db:
        environment = await queries.lock(db, environment_id=one.environment_id)
        ours = await db.scalar(
            delete(row)
            .where(_same(one))
            .returning(row.environment_id)
            .execution_options(synchronize_session=False)
        )
        if environment is None or environment.status != "pending" or ours is None:
            return
        why = one.last_error or "its start never came through"
        message = f"Its turn came, but the hub did not start it: {why}. Start it again from the hub."
        await stop.end(
            db,
            environment=environment,
            desired="stopped",
            reason=Reason.HUB_GAVE_UP,
            message=message,
            actor=SYSTEM,
        )
        await notifications.tell(
            db,
            user_ids=[environment.owner_id],
            kind="environment.hub_gave_up",
            level="error",
            message=f"{environment.name}: {message}",
            subject_type="environment",
            subject_id=environment.id,
        )


LOOP = Loop(name="hub-starts", every_s=5.0, run=start_due, wake=WAKE)
