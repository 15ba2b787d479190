"""Events: pages and streams that never hide a row, and show it only to who may see it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import httpx
import pytest
import sqlalchemy as sa
from fastapi import FastAPI

from remotegpu.types.identity import Scope, TokenKind
from remotegpu_server import streams
from remotegpu_server.authz import SYSTEM
from remotegpu_server.db.engine import Database
from remotegpu_server.events import service, stream
from remotegpu_server.events.stream import Filter
from remotegpu_server.testing import Actors
from remotegpu_server.tokens import service as tokens


async def _record(database: Database, subject_id: str, **who: str) -> None:
    async with database.sessions() as db:
        await service.record(
            db,
            kind="host.changed",
            subject_type="host",
            subject_id=subject_id,
            actor=SYSTEM,
            message=f"about {subject_id}",
            **who,
        )
        await db.commit()


async def _settled(database: Database) -> None:
    """Wait until readers may see what was committed: a transaction in any database holds that back."""
    async with asyncio.timeout(10):
        while True:
            async with database.sessions() as db:
                hidden = await db.scalar(
                    sa.text(
                        "SELECT count(*) FROM events WHERE xid >= pg_snapshot_xmin(pg_current_snapshot())"
                    )
                )
            if not hidden:
                return
            await asyncio.sleep(0.02)


async def test_page_after_page_sees_every_event_once(
    client: httpx.AsyncClient, app: FastAPI, actors: Actors
) -> None:
    admin = await actors.admin()
    for number in range(7):
        await _record(app.state.database, f"host-{number}")
    await _settled(app.state.database)
    seen: list[str] = []
    cursor: str | None = "0"
    while cursor:
        page = (await client.get(f"/v1/events?limit=3&cursor={cursor}", headers=admin.headers)).json()
        seen += [item["subject_id"] for item in page["items"]]
        cursor = page["next_cursor"]
    assert seen == [f"host-{number}" for number in range(7)]


async def test_transaction_that_commits_late_is_not_hidden(
    client: httpx.AsyncClient, app: FastAPI, actors: Actors
) -> None:
    admin = await actors.admin()
    database: Database = app.state.database
    async with database.sessions() as slow:
        await service.record(
            slow, kind="host.changed", subject_type="host", subject_id="early", actor=SYSTEM, message=""
        )
        await slow.flush()
        await _record(database, "late")
        # "early" took the lower position and has not committed: nobody may read past it yet.
        page = (await client.get("/v1/events?after=0", headers=admin.headers)).json()
        assert page["items"] == []
        await slow.commit()
    await _settled(database)
    page = (await client.get("/v1/events?after=0", headers=admin.headers)).json()
    assert [item["subject_id"] for item in page["items"]] == ["early", "late"]


@pytest.mark.parametrize(
    "after", ["x", "1", "1.2.3", "-1.0", "99999999999999999999.1", "1.9999999999999999999"]
)
async def test_position_that_is_none_is_refused(
    client: httpx.AsyncClient, actors: Actors, after: str
) -> None:
    admin = await actors.admin()
    answer = await client.get("/v1/events", params={"after": after}, headers=admin.headers)
    assert (answer.status_code, answer.json()["error"]) == (422, "invalid")


async def test_who_sees_what(client: httpx.AsyncClient, app: FastAPI, actors: Actors) -> None:
    ada = await actors.user("ada")
    owner = await actors.user("olga", role="owner")
    stranger = await actors.user("eve", role="owner", customer="physics")
    admin = await actors.admin()
    database: Database = app.state.database
    await _record(database, "of-ada", user_id=ada.id, customer_id=ada.customer_id)
    await _record(database, "of-customer", customer_id=ada.customer_id)
    await _record(database, "of-nobody")
    await _settled(database)

    async def subjects(headers: dict[str, str]) -> list[str]:
        page = (await client.get("/v1/events?after=0", headers=headers)).json()
        return [item["subject_id"] for item in page["items"]]

    assert await subjects(ada.headers) == ["of-ada"]
    assert await subjects(owner.headers) == ["of-ada", "of-customer"]
    assert await subjects(stranger.headers) == []
    assert await subjects(admin.headers) == ["of-ada", "of-customer", "of-nobody"]


async def _follow(
    app: FastAPI, secret: str, *, after: streams.Position | None, wanted: Filter | None = None
) -> AsyncIterator[str]:
    """Subjects of a stream's events; httpx's ASGI transport cannot stream, so the generator is asked."""
    database: Database = app.state.database
    frames = streams.follow(
        database.sessions,
        database.signals,
        key=service.STREAM_KEY,
        read=stream.frames(wanted or Filter()),
        after=after,
        identify=lambda db: tokens.authenticate(db, secret),
    )
    async for frame in frames:
        if b"data: " not in frame:
            continue  # the start position
        fields = dict(line.split(": ", 1) for line in frame.decode().strip().splitlines())
        yield json.loads(fields["data"])["subject_id"] if "id" in fields else f"end:{fields['data']}"


async def test_stream_resumes_across_a_late_commit_without_loss(app: FastAPI, actors: Actors) -> None:
    admin = await actors.admin()
    database: Database = app.state.database
    await _record(database, "first")
    events = _follow(app, admin.secret, after=streams.BEGINNING)
    assert await anext(events) == "first"
    async with database.sessions() as slow:
        await service.record(
            slow, kind="host.changed", subject_type="host", subject_id="slow", actor=SYSTEM, message=""
        )
        await slow.flush()
        await _record(database, "quick")
        waiting = asyncio.ensure_future(anext(events))
        done, _ = await asyncio.wait([waiting], timeout=0.3)
        assert not done
        await slow.commit()
    assert await waiting == "slow"
    assert await anext(events) == "quick"


async def test_stream_without_position_starts_now(app: FastAPI, actors: Actors) -> None:
    admin = await actors.admin()
    await _record(app.state.database, "before")
    events = _follow(app, admin.secret, after=None)
    waiting = asyncio.ensure_future(anext(events))
    await asyncio.wait([waiting], timeout=0.2)
    await _record(app.state.database, "after")
    assert await waiting == "after"


async def test_stream_cut_before_its_first_event_resumes_without_loss(app: FastAPI, actors: Actors) -> None:
    admin = await actors.admin()
    database: Database = app.state.database
    frames = streams.follow(
        database.sessions,
        database.signals,
        key=service.STREAM_KEY,
        read=stream.frames(Filter()),
        after=None,
        identify=lambda db: tokens.authenticate(db, admin.secret),
    )
    async with asyncio.timeout(5):
        given = (await anext(frames)).decode()
    await frames.aclose()  # type: ignore[attr-defined]
    await _record(database, "meanwhile")
    position = streams.parse_position(given.removeprefix("id: ").strip())
    async with asyncio.timeout(5):
        assert await anext(_follow(app, admin.secret, after=position)) == "meanwhile"


async def test_revoked_token_ends_the_stream_within_five_seconds(app: FastAPI, actors: Actors) -> None:
    ada = await actors.user("ada")
    database: Database = app.state.database
    events = _follow(app, ada.secret, after=None)
    waiting = asyncio.ensure_future(anext(events))
    await asyncio.wait([waiting], timeout=0.2)
    async with database.sessions() as db:
        await tokens.revoke(db, sa.true())
        await db.commit()
    async with asyncio.timeout(5):
        assert await waiting == "end:token_invalid"


async def test_shutdown_ends_the_stream(app: FastAPI, actors: Actors) -> None:
    ada = await actors.user("ada")
    events = _follow(app, ada.secret, after=None)
    waiting = asyncio.ensure_future(anext(events))
    await asyncio.wait([waiting], timeout=0.2)
    app.state.database.signals.stop_waiting()
    async with asyncio.timeout(2):
        with pytest.raises(StopAsyncIteration):
            await waiting


async def test_quiet_stream_sends_keep_alive(
    app: FastAPI, actors: Actors, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "KEEP_ALIVE_S", 0.05)
    ada = await actors.user("ada")
    database: Database = app.state.database
    frames = streams.follow(
        database.sessions,
        database.signals,
        key=service.STREAM_KEY,
        read=stream.frames(Filter()),
        after=None,
        identify=lambda db: tokens.authenticate(db, ada.secret),
    )
    async with asyncio.timeout(5):
        assert (await anext(frames)).startswith(b"id: ")
        assert await anext(frames) == b": keep-alive\n\n"
    await frames.aclose()  # type: ignore[attr-defined]


async def test_agent_may_not_read_events(client: httpx.AsyncClient, app: FastAPI) -> None:
    database: Database = app.state.database
    async with database.sessions() as db:
        await db.execute(sa.text("INSERT INTO hosts (id, name) VALUES ('host-1', 'one')"))
        minted = await tokens.mint(db, kind=TokenKind.AGENT, scopes=[Scope.AGENT], host_id="host-1")
        await db.commit()
    answer = await client.get("/v1/events", headers={"Authorization": f"Bearer {minted.secret}"})
    assert answer.status_code == 403


@pytest.mark.parametrize(
    "statement", ["UPDATE events SET message = 'x'", "DELETE FROM events", "TRUNCATE events"]
)
async def test_events_cannot_be_changed(app: FastAPI, statement: str) -> None:
    await _record(app.state.database, "host-1")
    async with app.state.database.sessions() as db:
        with pytest.raises(sa.exc.IntegrityError, match="append-only"):
            await db.execute(sa.text(statement))


async def test_hint_of_another_process_wakes_a_waiter(app: FastAPI, settings: object) -> None:
    from remotegpu_server.db.engine import connect

    database: Database = app.state.database
    other = connect(database.url.render_as_string(hide_password=False))
    other.signals.start()
    async with asyncio.timeout(10):
        await database.signals.connected.wait()
    with database.signals.watch("host:1") as watch:
        other.signals.publish(["host:1"])
        assert await watch.wait(5)
    await other.close()
