"""SSH keys: parsed and written anew, the owner's only, and sent to exactly the environments they open."""

from __future__ import annotations

import asyncio
import base64
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from hollow_agent import Fleet
from sqlalchemy import text

from remotegpu.errors import Invalid
from remotegpu_server.loops import Work
from remotegpu_server.ssh_keys import loop
from remotegpu_server.ssh_keys.parse import parse
from remotegpu_server.testing import Actors, Person


def make_key(folder: Path, name: str = "key", *options: str) -> str:
    """A public key as ssh-keygen writes it."""
    kind = options or ("-t", "ed25519")
    subprocess.run(
        ["ssh-keygen", "-q", *kind, "-N", "", "-C", f"{name}@box", "-f", str(folder / name)], check=True
    )
    return (folder / f"{name}.pub").read_text()


@pytest.mark.parametrize(
    "options",
    [
        ("-t", "ed25519"),
        ("-t", "rsa", "-b", "2048"),
        ("-t", "ecdsa", "-b", "256"),
        ("-t", "ecdsa", "-b", "384"),
        ("-t", "ecdsa", "-b", "521"),
    ],
)
def test_key_of_ssh_keygen_is_written_anew_with_its_fingerprint(
    tmp_path: Path, options: tuple[str, ...]
) -> None:
    line = make_key(tmp_path, "key", *options)
    found = parse(line)
    shown = subprocess.run(
        ["ssh-keygen", "-l", "-f", str(tmp_path / "key.pub")], capture_output=True, text=True, check=True
    )
    assert found.fingerprint == shown.stdout.split()[1]
    assert found.line == line.rpartition(" ")[0]
    assert found.key_type == line.split()[0]


def wire(*fields: bytes) -> str:
    return base64.b64encode(b"".join(len(one).to_bytes(4) + one for one in fields)).decode()


@pytest.mark.parametrize(
    ("key_type", "fields"),
    [
        ("sk-ssh-ed25519@openssh.com", (bytes(32), b"ssh:")),
        ("sk-ecdsa-sha2-nistp256@openssh.com", (b"nistp256", b"\x04" + bytes(64), b"ssh:")),
    ],
)
def test_key_of_a_security_key_is_taken(key_type: str, fields: tuple[bytes, ...]) -> None:
    assert parse(f"{key_type} {wire(key_type.encode(), *fields)}").key_type == key_type


_ED = wire(b"ssh-ed25519", bytes(range(32)))
_RSA_1024 = wire(b"ssh-rsa", b"\x01\x00\x01", b"\x00" + b"\xff" * 128)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (f'command="sh" ssh-ed25519 {_ED}', "Options"),
        (f"restrict,pty ssh-ed25519 {_ED}", "Options"),
        (f"ssh-ed25519 {_ED}\nssh-ed25519 {_ED}", "one line"),
        (f"ssh-ed25519 {_ED[:-8]}", "cut short"),
        (f"ssh-ed25519 {_ED}!", "no valid"),
        (f"ssh-rsa {_ED}", "another one"),
        (f"ssh-ed25519 {wire(b'ssh-ed25519', bytes(32), b'more')}", "follows"),
        (f"ssh-rsa {_RSA_1024}", "1024 bits"),
        (f"ecdsa-sha2-nistp256 {wire(b'ecdsa-sha2-nistp256', b'nistp384', bytes(97))}", "curve"),
        ("ssh-dss AAAA", "weak"),
        ("ssh-ed25519-cert-v01@openssh.com AAAA", "Certificates"),
        ("-----BEGIN OPENSSH PRIVATE KEY-----", "private key"),
        ("ssh-ed25519", "missing"),
        ("hello", "no key type"),
        ("   ", "one line"),
    ],
)
def test_line_that_is_no_plain_key_is_refused_with_what_is_wrong(line: str, says: str) -> None:
    with pytest.raises(Invalid, match=says):
        parse(line)


async def add(client: httpx.AsyncClient, person: Person, line: str, name: str = "key") -> httpx.Response:
    return await client.post("/v1/ssh-keys", headers=person.headers, json={"name": name, "public_key": line})


async def test_adding_one_key_twice_at_once_makes_one(
    client: httpx.AsyncClient, actors: Actors, tmp_path: Path, app: FastAPI
) -> None:
    ada, bob = await actors.user("ada"), await actors.user("bob")
    line = make_key(tmp_path)
    answers = await asyncio.gather(*(add(client, ada, line, f"key {number}") for number in range(8)))
    assert sorted(answer.status_code for answer in answers) == [201] + [409] * 7
    assert (await add(client, bob, line)).status_code == 201, "unique for each user, not for all"
    assert "@box" not in answers[0].text
    records = await _rows(app, "SELECT action, outcome FROM audit_records WHERE resource_type = 'ssh_keys'")
    assert records.count(("ssh_keys.create_ssh_key", "done")) == 2


async def test_key_of_somebody_else_is_not_found(
    client: httpx.AsyncClient, actors: Actors, tmp_path: Path
) -> None:
    ada, admin = await actors.user("ada"), await actors.admin()
    made = (await add(client, ada, make_key(tmp_path))).json()
    for method in ("GET", "DELETE"):
        answer = await client.request(method, f"/v1/ssh-keys/{made['id']}", headers=admin.headers)
        assert answer.status_code == 404
    assert (await client.get("/v1/ssh-keys", headers=admin.headers)).json()["items"] == []
    assert (await client.get(f"/v1/ssh-keys/{made['id']}", headers=ada.headers)).status_code == 200


async def test_keys_reach_the_owners_environments_and_are_gone_after_removal_or_suspension(
    fleet: Fleet, actors: Actors, client: httpx.AsyncClient, app: FastAPI, work: Work, tmp_path: Path
) -> None:
    agent = await fleet.host("h1", gpus=2)
    ada, bob = await actors.user("ada"), await actors.user("bob")
    line = make_key(tmp_path).rpartition(" ")[0]
    mine = (await fleet.create(ada.headers)).json()["id"]
    others = (await fleet.create(bob.headers)).json()["id"]
    key = (await add(client, ada, line)).json()["id"]
    assert await _keys(agent, work) == {mine: [line], others: []}
    before = agent.revision
    assert await _keys(agent, work) == {mine: [line], others: []}
    assert agent.revision == before, "nothing changed, so nobody is woken"

    await _execute(app, "UPDATE users SET status = 'suspended' WHERE username = 'ada'")
    assert (await _keys(agent, work))[mine] == []
    assert agent.revision != before
    await _execute(app, "UPDATE users SET status = 'active' WHERE username = 'ada'")
    assert (await _keys(agent, work))[mine] == [line]
    assert (await client.delete(f"/v1/ssh-keys/{key}", headers=ada.headers)).status_code == 204
    assert (await _keys(agent, work))[mine] == []


@pytest.mark.parametrize(
    ("role", "status", "enters"),
    [
        ("admin", "active", True),
        ("member", "active", True),
        ("viewer", "active", False),
        ("member", "suspended", False),
        ("member", "invited", False),
    ],
)
async def test_environment_of_a_team_is_opened_by_its_active_members_that_are_no_viewers(
    fleet: Fleet,
    actors: Actors,
    client: httpx.AsyncClient,
    app: FastAPI,
    work: Work,
    tmp_path: Path,
    role: str,
    status: str,
    enters: bool,
) -> None:
    agent = await fleet.host("h1", gpus=2)
    ada, bob = await actors.user("ada"), await actors.user("bob")
    lines = {person.username: make_key(tmp_path, person.username).rpartition(" ")[0] for person in (ada, bob)}
    for person in (ada, bob):
        await add(client, person, lines[person.username])
    await _execute(
        app,
        "INSERT INTO workspaces (id, customer_id, name, kind) VALUES ('wsp-t', :customer, 't', 'team')",
        customer=ada.customer_id,
    )
    for member, part in ((ada, ("owner", "active")), (bob, (role, status))):
        await _execute(
            app,
            "INSERT INTO workspace_members (workspace_id, user_id, role, status)"
            " VALUES ('wsp-t', :user, :role, :status)",
            user=member.id,
            role=part[0],
            status=part[1],
        )
    shared = (await fleet.create(ada.headers, "shared", workspace="wsp-t")).json()["id"]
    private = (await fleet.create(ada.headers, "private")).json()["id"]
    found = await _keys(agent, work)
    assert found[private] == [lines["ada"]]
    assert found[shared] == sorted([lines["ada"], lines["bob"]] if enters else [lines["ada"]])
    await _execute(app, "DELETE FROM workspace_members WHERE user_id = :user", user=bob.id)
    assert (await _keys(agent, work))[shared] == [lines["ada"]]


async def _keys(agent: Any, work: Work) -> dict[str, list[str]]:
    """What the host is told after a pass of the loop, by environment."""
    await loop.send_changed_keys(work)
    return {key: workload["authorized_keys"] for key, workload in (await agent.desired()).items()}


async def _execute(app: FastAPI, statement: str, **values: str) -> None:
    async with app.state.database.sessions() as db:
        await db.execute(text(statement), values)
        await db.commit()


async def _rows(app: FastAPI, query: str) -> list[tuple[Any, ...]]:
    async with app.state.database.sessions() as db:
        return [tuple(row) for row in await db.execute(text(query))]
