"""Forgotten passwords, with a mail server that speaks SMTP."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from dataclasses import replace

import httpx
import pytest
import sqlalchemy as sa
from cryptography.fernet import Fernet
from fastapi import FastAPI

from remotegpu_server.auth import loop
from remotegpu_server.db import tables
from remotegpu_server.loops import Work
from remotegpu_server.settings import Settings, SettingsError
from remotegpu_server.testing import PASSWORD, Actors, Person

NEW = "a password of my own"


class MailServer:
    """Speaks enough SMTP to take a mail; ``refuses`` it as a full one would."""

    def __init__(self) -> None:
        self.mails: list[str] = []
        self.refuses = False
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        def say(line: str) -> None:
            writer.write(f"{line}\r\n".encode())

        say("220 mail.test ESMTP")
        while line := (await reader.readline()).decode().strip():
            verb = line.split()[0].upper()
            if verb == "DATA":
                say("354 go on")
                self.mails.append((await reader.readuntil(b"\r\n.\r\n")).decode())
                say("250 taken")
            elif verb == "QUIT":
                say("221 bye")
                break
            else:
                say("452 full" if verb == "RCPT" and self.refuses else "250 ok")
        await writer.drain()
        writer.close()


@pytest.fixture
async def mail() -> AsyncIterator[MailServer]:
    made = MailServer()
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.url = f"smtp://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    yield made
    server.close()


@pytest.fixture
def settings(database_url: str, mail: MailServer) -> Settings:
    return Settings(
        database_url=database_url,
        secret_key=Fernet.generate_key().decode(),
        smtp_url=mail.url,
        mail_from="hub@example.org",
        password_reset_url="https://hub.example.org/password",
    )


@pytest.fixture
async def ada(actors: Actors, client: httpx.AsyncClient) -> Person:
    person = await actors.user("ada")
    await client.patch("/v1/me", json={"email": "ada@example.org"}, headers=person.headers)
    return person


async def _ask(client: httpx.AsyncClient, user: str) -> httpx.Response:
    return await client.post("/v1/auth/password-reset", json={"user": user})


async def _finish(client: httpx.AsyncClient, secret: str, password: str = NEW) -> httpx.Response:
    body = {"secret": secret, "new_password": password}
    return await client.post("/v1/auth/password-reset:finish", json=body)


async def _login(client: httpx.AsyncClient, password: str) -> int:
    body = {"username": "ada", "password": password}
    return (await client.post("/v1/auth/login", json=body)).status_code


def _secret(mail: str) -> str:
    found = re.search(r"#(rgp_\S+)", mail.replace("=\r\n", "").replace("=3D", "="))
    assert found is not None, mail
    return found.group(1)


async def test_answer_is_the_same_for_known_and_unknown_names_and_holds_nothing(
    client: httpx.AsyncClient, ada: Person
) -> None:
    answers = [await _ask(client, name) for name in ("ada", "ADA@example.org", "nobody")]
    assert {(answer.status_code, answer.content) for answer in answers} == {(204, b"")}


async def test_mailed_secret_sets_a_password_once_and_ends_every_session(
    client: httpx.AsyncClient, ada: Person, mail: MailServer, work: Work, app: FastAPI
) -> None:
    await _ask(client, "Ada@Example.org")
    await loop.send_mail(work)
    await loop.send_mail(work)
    assert len(mail.mails) == 1
    assert "To: ada@example.org" in mail.mails[0]
    secret = _secret(mail.mails[0])
    async with app.state.database.sessions() as db:
        stored = await db.scalar(sa.text("SELECT string_agg(t::text, '') FROM password_resets t"))
    assert secret not in stored
    assert (await _finish(client, secret)).status_code == 204
    assert (await client.get("/v1/me", headers=ada.headers)).status_code == 401
    assert (await _login(client, PASSWORD), await _login(client, NEW)) == (401, 201)
    again = await _finish(client, secret, "yet another password")
    assert (again.status_code, again.json()["error"]) == (400, "password_reset_invalid")


async def test_refusing_mail_server_is_asked_again(
    client: httpx.AsyncClient, ada: Person, mail: MailServer, work: Work
) -> None:
    mail.refuses = True
    await _ask(client, "ada")
    await loop.send_mail(work)
    assert mail.mails == []
    mail.refuses = False
    await loop.send_mail(work)
    assert len(mail.mails) == 1


async def test_nobody_gets_mail_for_suspended_unknown_or_addressless_accounts(
    client: httpx.AsyncClient, actors: Actors, ada: Person, mail: MailServer, work: Work
) -> None:
    admin = await actors.admin()
    await client.post("/v1/users/ada:suspend", headers=admin.headers)
    for name in ("ada", "root", "nobody"):
        await _ask(client, name)
    await loop.send_mail(work)
    assert mail.mails == []


async def test_link_of_an_admin_works_and_ends_the_others(
    client: httpx.AsyncClient, actors: Actors, ada: Person
) -> None:
    admin = await actors.admin()
    path = "/v1/users/ada/password-resets"
    first, second = [(await client.post(path, headers=admin.headers)).json() for _ in range(2)]
    assert first["url"] == f"https://hub.example.org/password#{first['secret']}"
    assert (await client.get("/v1/me", headers=ada.headers)).status_code == 200
    assert (await client.post(path, headers=ada.headers)).status_code == 403
    assert (await _finish(client, second["secret"])).status_code == 204
    assert (await _finish(client, first["secret"])).status_code == 400


async def test_secret_ends_after_half_an_hour_and_is_no_token(
    client: httpx.AsyncClient, actors: Actors, ada: Person, app: FastAPI
) -> None:
    admin = await actors.admin()
    made = await client.post("/v1/users/ada/password-resets", headers=admin.headers)
    secret = made.json()["secret"]
    as_token = await client.get("/v1/me", headers={"Authorization": f"Bearer {secret}"})
    assert as_token.status_code == 401
    async with app.state.database.sessions() as db:
        await db.execute(sa.update(tables.PasswordReset).values(expires_at=sa.func.now()))
        await db.commit()
    assert (await _finish(client, secret)).status_code == 400


async def test_guessing_secrets_and_flooding_mail_is_limited(client: httpx.AsyncClient, ada: Person) -> None:
    for ask in (lambda: _ask(client, "ada"), lambda: _finish(client, f"rgp_{'a' * 12}_{'b' * 43}")):
        statuses = [(await ask()).status_code for _ in range(11)]
        assert statuses[-1] == 429
        assert 429 not in statuses[:10]


async def test_parallel_uses_of_one_secret_set_one_password(
    client: httpx.AsyncClient, actors: Actors, ada: Person
) -> None:
    admin = await actors.admin()
    secret = (await client.post("/v1/users/ada/password-resets", headers=admin.headers)).json()["secret"]
    answers = await asyncio.gather(*[_finish(client, secret, f"password number {n}") for n in range(4)])
    assert sorted(answer.status_code for answer in answers) == [204, 400, 400, 400]


def test_wrong_mail_url_stops_the_start(settings: Settings) -> None:
    with pytest.raises(SettingsError, match="REMOTEGPU_SMTP_URL"):
        replace(settings, smtp_url="http://example.org")
