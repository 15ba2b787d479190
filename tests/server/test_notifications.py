"""Notifications: how people are told, mail through a real SMTP server, digests, the stream."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from cryptography.fernet import Fernet
from fastapi import FastAPI
from smtp_server import SmtpServer

from remotegpu_server import streams
from remotegpu_server.loops import Work
from remotegpu_server.notifications import inbox, loop, service
from remotegpu_server.outbox import mail_loop, smtp
from remotegpu_server.outbox import service as outbox
from remotegpu_server.settings import Settings
from remotegpu_server.testing import Actors, Person
from remotegpu_server.tokens import service as tokens


@pytest.fixture
def mail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SmtpServer]:
    server = SmtpServer(tmp_path / "smtp")
    monkeypatch.setenv("SSL_CERT_FILE", str(server.folder / "cert.pem"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    key = Fernet.generate_key().decode()
    return Settings(database_url=database_url, secret_key=key, mail_from="hub@example.org", blob_dir=tmp_path)


@pytest.fixture
async def ada(actors: Actors, client: httpx.AsyncClient) -> Person:
    return await _with_address(actors, client, "ada")


async def _with_address(actors: Actors, client: httpx.AsyncClient, name: str) -> Person:
    person = await actors.user(name)
    await client.patch("/v1/me", json={"email": f"{name}@example.org"}, headers=person.headers)
    return person


async def _tell(app: FastAPI, *people: Person, message: str, level: Any = "error", **more: Any) -> None:
    async with app.state.database.sessions() as db:
        await service.tell(
            db,
            user_ids=[person.id for person in people],
            kind=more.pop("kind", "host.lost"),
            level=level,
            message=message,
            subject_type="host",
            subject_id="host-1",
            **more,
        )
        await db.commit()


async def _sql(app: FastAPI, statement: str) -> list[Any]:
    async with app.state.database.sessions() as db:
        found = await db.execute(sa.text(statement))
        rows = [tuple(row) for row in found] if found.returns_rows else []
        await db.commit()
        return rows


def _at(work: Work, server: SmtpServer) -> Work:
    return replace(work, settings=replace(work.settings, smtp_url=server.url))


async def test_error_is_mailed_once_over_tls_with_a_password(
    app: FastAPI, ada: Person, work: Work, mail: SmtpServer
) -> None:
    await _tell(app, ada, message="Host one is lost:\r\nBcc: eve@example.org", dedupe_key="lost")
    await _tell(app, ada, message="told again", dedupe_key="lost")
    await _tell(app, ada, message="for the inbox", level="info")
    await mail_loop.send_mail(_at(work, mail))
    await mail_loop.send_mail(_at(work, mail))
    (received,) = mail.mails()
    assert (received["To"], received["From"]) == ("ada@example.org", "hub@example.org")
    assert (received["Subject"], received["Bcc"]) == ("Host one is lost: Bcc: eve@example.org", None)
    assert "Host one is lost" in received.get_payload(decode=True).decode()  # type: ignore[union-attr]
    ((message_id, attempts),) = await _sql(
        app, "SELECT id, attempts FROM outbox WHERE delivered_at IS NOT NULL"
    )
    assert (received["Message-ID"], attempts) == (f"<{message_id}@example.org>", 1)


async def test_mail_server_that_was_down_for_an_hour_gets_everything_later(
    app: FastAPI, ada: Person, work: Work, mail: SmtpServer
) -> None:
    mail.stop()
    for number in range(3):
        await _tell(app, ada, message=f"News {number}")
    for _ in range(3):
        await mail_loop.send_mail(_at(work, mail))
    waiting = await _sql(app, "SELECT attempts, error FROM outbox WHERE delivered_at IS NULL ORDER BY id")
    assert [attempts for attempts, _ in waiting] == [1, 1, 1]
    assert all("ConnectionRefusedError" in error for _, error in waiting)
    await mail_loop.send_mail(_at(work, mail))
    assert (await _sql(app, "SELECT max(attempts) FROM outbox"))[0][0] == 1, "not due yet"
    mail.start()
    hour = "interval '1 hour'"
    await _sql(app, f"UPDATE outbox SET created_at = created_at - {hour}, due_at = due_at - {hour}")  # noqa: S608
    await mail_loop.send_mail(_at(work, mail))
    assert sorted(str(one["Subject"]) for one in mail.mails()) == ["News 0", "News 1", "News 2"]


async def test_what_cannot_be_delivered_is_given_up_with_an_event(
    app: FastAPI, actors: Actors, client: httpx.AsyncClient, ada: Person, work: Work, mail: SmtpServer
) -> None:
    nobody = await _with_address(actors, client, "nobody")
    await _tell(app, nobody, message="The address does not exist")
    await mail_loop.send_mail(_at(work, mail))
    ((error, dead),) = await _sql(app, "SELECT error, dead_at IS NOT NULL FROM outbox")
    assert (error, dead) == ("550 no such mailbox", True)
    mail.stop()
    await _tell(app, ada, message="Too old")
    await _sql(app, "UPDATE outbox SET created_at = created_at - interval '25 hours'")
    await mail_loop.send_mail(_at(work, mail))
    events = await _sql(app, "SELECT reason, user_id FROM events WHERE kind = 'outbox.dead' ORDER BY id")
    assert events == [("refused", nobody.id), ("too_old", ada.id)]


async def test_address_that_reads_as_several_or_as_none_fails_alone(
    app: FastAPI,
    client: httpx.AsyncClient,
    actors: Actors,
    ada: Person,
    work: Work,
    mail: SmtpServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    odd = ["nobody@x.org,nobody@y.org", "a@[", "=?utf-8?q?=0A?=@x"]
    people = [await actors.user(f"odd{number}") for number in range(len(odd))]
    for address, person in zip(odd, people, strict=True):
        if not address.startswith("="):  # one that a program could have
            refused = await client.patch("/v1/me", json={"email": address}, headers=person.headers)
            assert refused.status_code == 422
        # Stored before such addresses were refused.
        await _sql(app, f"UPDATE users SET email = '{address}' WHERE id = '{person.id}'")  # noqa: S608
    for person in (*people, ada):
        await _tell(app, person, message="Hello")
    monkeypatch.setattr(mail_loop, "_BATCH", 2)
    await mail_loop.send_mail(_at(work, mail))
    assert [one["To"] for one in mail.mails()] == ["ada@example.org"]
    settled = await _sql(app, "SELECT delivered_at IS NOT NULL, dead_at IS NOT NULL FROM outbox ORDER BY 1")
    assert settled == [(False, True)] * len(odd) + [(True, False)]


async def test_mail_pass_with_a_backlog_ends_before_its_deadline(
    app: FastAPI, ada: Person, work: Work, mail: SmtpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mail_loop, "_CLAIMS_S", 0.0)
    monkeypatch.setattr(mail_loop, "_BATCH", 1)
    for number in range(2):
        await _tell(app, ada, message=f"News {number}")
    for sent in (1, 2):
        await mail_loop.send_mail(_at(work, mail))
        assert len(mail.mails()) == sent


async def test_mail_server_that_says_a_little_all_the_time_is_cut_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def trickle(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 slow\r\n")
        with contextlib.suppress(ConnectionError):
            while True:
                writer.write(b"250-more\r\n")
                await writer.drain()
                await asyncio.sleep(0.05)

    monkeypatch.setattr(smtp, "CUT_S", 0.5)
    server = await asyncio.start_server(trickle, "127.0.0.1", 0)
    url = f"smtp://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    mails = [smtp.Mail(message_id=f"out-{n}", to="ada@example.org", subject="x", text="x") for n in (1, 2)]
    sending = asyncio.to_thread(smtp.send, url, sender="a@example.org", mails=mails)
    first, second = await asyncio.wait_for(sending, 15)
    server.close()
    assert first is not None
    assert "SMTPServerDisconnected" in (first.error or "")
    assert second is None


async def test_password_goes_over_tls_or_stays_here(tmp_path: Path) -> None:
    server = SmtpServer(tmp_path / "smtp", tls=False)
    server.start()
    try:
        mail = smtp.Mail(message_id="out-1", to="ada@example.org", subject="x", text="x")
        away = f"smtp://mailer:secret@127.0.0.2:{server.port}".replace("127.0.0.2", "0.0.0.0")  # noqa: S104
        (refused,) = await asyncio.to_thread(smtp.send, away, sender="a@example.org", mails=[mail])
        assert refused is not None
        assert "offers no TLS" in (refused.error or "")
        (taken,) = await asyncio.to_thread(smtp.send, server.url, sender="a@example.org", mails=[mail])
        assert taken == smtp.Outcome()
    finally:
        server.stop()


async def test_claims_are_leased_and_a_past_claimer_settles_nothing(app: FastAPI, ada: Person) -> None:
    for number in range(3):
        await _tell(app, ada, message=f"News {number}")
    sessions = app.state.database.sessions
    async with sessions() as one, sessions() as other:
        (first,) = await outbox.claim(one, "mail", limit=1)
        rest = await outbox.claim(other, "mail", limit=5)
        assert len(rest) == 2
        assert first.id not in {message.id for message in rest}
        await one.commit()
        await other.commit()
    async with sessions() as db:
        assert await outbox.claim(db, "mail", limit=5) == []
    await _sql(app, "UPDATE outbox SET leased_until = now() - interval '1 second'")
    async with sessions() as db:
        again = await outbox.claim(db, "mail", limit=5)
        assert len(again) == 3
        await db.commit()
    async with sessions() as db:  # who died while delivering comes back to life
        await outbox.failed(db, first, error="late")
        await db.commit()
    ((attempts, error),) = await _sql(
        app,
        f"SELECT attempts, error FROM outbox WHERE id = '{first.id}'",  # noqa: S608
    )
    assert (attempts, error) == (2, None)


async def test_closest_preference_counts_and_floods_become_a_digest(
    app: FastAPI, client: httpx.AsyncClient, ada: Person, work: Work, mail: SmtpServer
) -> None:
    for kind, body in (
        ("*", {"mail": "off"}),
        ("host", {"mail": "now"}),
        ("host.quiet", {"mail": "digest", "in_app": False}),
    ):
        path = f"/v1/notification-preferences/{kind}"
        assert (await client.put(path, json=body, headers=ada.headers)).status_code == 200
    await _tell(app, ada, message="not mailed", kind="task.failed")
    await _tell(app, ada, message="quiet", kind="host.quiet", level="info")
    for number in range(7):
        await _tell(app, ada, message=f"mailed {number}", level="info")
    await mail_loop.send_mail(_at(work, mail))
    assert len(mail.mails()) == 5
    listed = (await client.get("/v1/notifications", headers=ada.headers)).json()["items"]
    assert len(listed) == 8
    assert "quiet" not in {one["message"] for one in listed}
    await client.post(f"/v1/notifications/{listed[0]['id']}:read", headers=ada.headers)  # "mailed 6"
    await loop.write_digests(work)
    assert (await _sql(app, "SELECT count(*) FROM outbox WHERE kind = 'digest'"))[0][0] == 0, "too early"
    await _sql(app, "UPDATE notifications SET created_at = created_at - interval '7 hours'")
    await loop.write_digests(work)
    await loop.write_digests(work)
    await mail_loop.send_mail(_at(work, mail))
    digest = mail.mails()[-1]
    assert (len(mail.mails()), digest["Subject"]) == (6, "2 notifications")
    text = digest.get_payload(decode=True).decode()  # type: ignore[union-attr]
    assert "quiet" in text
    assert "mailed 5" in text
    assert "mailed 6" not in text


async def test_without_a_mail_server_or_an_address_nothing_piles_up(
    app: FastAPI, actors: Actors, ada: Person, work: Work
) -> None:
    await _tell(app, ada, await actors.user("bob"), message="News")
    assert (await _sql(app, "SELECT user_id FROM outbox")) == [(ada.id,)]
    await mail_loop.send_mail(work)
    assert (await _sql(app, "SELECT count(*) FROM outbox")) == [(0,)]


async def _stream(app: FastAPI, person: Person, after: streams.Position | None) -> AsyncIterator[bytes]:
    frames = streams.follow(
        app.state.database.sessions,
        app.state.database.signals,
        key=service.stream_key(person.id),
        read=inbox.frames,
        after=after,
        identify=lambda db: tokens.authenticate(db, person.secret),
    )
    async for frame in frames:
        yield frame


async def test_stream_shows_ones_own_and_resumes_without_loss(app: FastAPI, actors: Actors) -> None:
    ada, bob = await actors.user("ada"), await actors.user("bob")
    stream = _stream(app, ada, None)
    async with asyncio.timeout(20):
        assert (await anext(stream)).startswith(b"id: ")
        await _tell(app, bob, message="for bob")
        await _tell(app, ada, message="first")
        frame = dict(line.split(": ", 1) for line in (await anext(stream)).decode().strip().splitlines())
        assert (frame["event"], json.loads(frame["data"])["message"]) == ("host.lost", "first")
        await stream.aclose()  # type: ignore[attr-defined]
        await _tell(app, ada, message="second")
        again = _stream(app, ada, streams.parse_position(frame["id"]))
        assert b'"message":"second"' in await anext(again)
        await again.aclose()  # type: ignore[attr-defined]


async def test_old_notifications_are_removed(app: FastAPI, ada: Person, work: Work) -> None:
    await _tell(app, ada, message="old")
    await _sql(app, "UPDATE notifications SET created_at = created_at - interval '91 days'")
    await _tell(app, ada, message="new")
    await loop.sweep(work)
    assert await _sql(app, "SELECT message FROM notifications") == [("new",)]
