"""Workspaces: who may do what with them and with what lives in them."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from hollow_agent import Fleet

from remotegpu_server.testing import Actors, Person

ROLES = ("owner", "admin", "member", "viewer", "stranger", "suspended")


class Team:
    """A workspace with one person of each role; ``stranger`` is of the same customer."""

    def __init__(self, client: httpx.AsyncClient, people: dict[str, Person], workspace: str) -> None:
        self.client, self.people, self.id = client, people, workspace
        self.path = f"/v1/workspaces/{workspace}"

    async def ask(self, who: str, method: str, path: str = "", **body: Any) -> httpx.Response:
        url = path if path.startswith("/v1/") else self.path + path
        return await self.client.request(
            method, url, headers=self.people[who].headers, json=body if method in ("POST", "PATCH") else None
        )

    async def status(self, who: str, method: str, path: str = "", **body: Any) -> int:
        return (await self.ask(who, method, path, **body)).status_code


@pytest.fixture
async def team(client: httpx.AsyncClient, actors: Actors) -> Team:
    people = {role: await actors.user(role) for role in ROLES}
    made = await client.post("/v1/workspaces", json={"name": "Team"}, headers=people["owner"].headers)
    assert made.status_code == 201, made.text
    found = Team(client, people, made.json()["id"])
    for role in ("admin", "member", "viewer"):
        assert await found.status("owner", "POST", "/members", user=role, role=role) == 201
    assert await found.status("owner", "POST", "/members", user="suspended") == 201
    assert await found.status("owner", "PATCH", "/members/suspended", status="suspended") == 200
    return found


READS = {"owner": 200, "admin": 200, "member": 200, "viewer": 200, "stranger": 404, "suspended": 404}
MANAGES = {"owner": 200, "admin": 200, "member": 403, "viewer": 403, "stranger": 404, "suspended": 404}
OWNS = {"owner": 200, "admin": 403, "member": 403, "viewer": 403, "stranger": 404, "suspended": 404}
CASES: dict[str, tuple[dict[str, int], str, str, dict[str, Any]]] = {
    "get": (READS, "GET", "", {}),
    "members": (READS, "GET", "/members", {}),
    "change": (MANAGES, "PATCH", "", {"description": "New"}),
    "change a viewer": (MANAGES, "PATCH", "/members/viewer", {"role": "viewer"}),
    "change an admin": (OWNS, "PATCH", "/members/admin", {"role": "admin"}),
    "restore": (OWNS, "POST", ":restore", {}),
    "archive": (OWNS, "POST", ":archive", {}),
}


@pytest.mark.parametrize("case", CASES)
async def test_guards_of_every_role(team: Team, case: str) -> None:
    expected, method, path, body = CASES[case]
    # The owner last: what it may do alone would change what the others are told.
    for role in reversed(ROLES):
        assert await team.status(role, method, path, **body) == expected[role], role


async def test_list_holds_own_and_joined_ones_newest_first(team: Team) -> None:
    listed = (await team.ask("viewer", "GET", "/v1/workspaces")).json()["items"]
    assert [(one["kind"], one["role"]) for one in listed] == [("team", "viewer"), ("personal", "owner")]
    assert listed[0]["members"] == 4
    for role in ("stranger", "suspended"):
        listed = (await team.ask(role, "GET", "/v1/workspaces")).json()["items"]
        assert [one["kind"] for one in listed] == ["personal"]


async def test_member_list_shows_nothing_private(team: Team) -> None:
    members = (await team.ask("viewer", "GET", "/members")).json()["items"]
    assert {"email", "phone", "full_name"}.isdisjoint(members[0])
    assert [one["username"] for one in members] == ["admin", "member", "owner", "suspended", "viewer"]


async def test_adding_somebody_twice_is_a_conflict(team: Team) -> None:
    assert await team.status("admin", "POST", "/members", user="member") == 409


async def test_parallel_adds_make_one_member(team: Team) -> None:
    answers = await asyncio.gather(
        *[team.status("owner", "POST", "/members", user="stranger") for _ in range(6)]
    )
    assert sorted(answers) == [201] + [409] * 5


async def test_nobody_grants_the_role_of_owner(team: Team) -> None:
    for who in ("owner", "admin"):
        assert await team.status(who, "POST", "/members", user="stranger", role="owner") == 422
        assert await team.status(who, "PATCH", "/members/member", role="owner") == 422


async def test_admin_cannot_touch_owner_or_admins_and_owner_cannot_be_removed(
    team: Team, actors: Actors
) -> None:
    await actors.user("second")
    assert await team.status("admin", "POST", "/members", user="second", role="admin") == 201
    assert await team.status("admin", "DELETE", "/members/second") == 403
    assert await team.status("admin", "DELETE", "/members/owner") == 409
    assert await team.status("owner", "DELETE", "/members/owner") == 409
    assert await team.status("owner", "PATCH", "/members/owner", role="viewer") == 409
    assert await team.status("owner", "DELETE", "/members/second") == 204
    assert await team.status("admin", "DELETE", "/members/viewer") == 204


async def test_member_leaves_but_removes_nobody(team: Team) -> None:
    assert await team.status("member", "DELETE", "/members/viewer") == 403
    assert await team.status("member", "DELETE", "/members/member") == 204
    assert await team.status("member", "GET") == 404


async def test_transfer_leaves_exactly_one_owner(team: Team) -> None:
    for who in ("admin", "member"):
        assert await team.status(who, "POST", ":transfer", user="admin") == 403
    assert await team.status("owner", "POST", ":transfer", user="suspended") == 409
    assert await team.status("owner", "POST", ":transfer", user="stranger") == 404
    assert (await team.ask("owner", "POST", ":transfer", user="member")).json()["owner"] == "member"
    members = (await team.ask("viewer", "GET", "/members")).json()["items"]
    roles = {one["username"]: one["role"] for one in members}
    assert (roles["member"], roles["owner"]) == ("owner", "admin")
    assert list(roles.values()).count("owner") == 1


async def test_membership_ends_at_the_customer_unless_a_platform_admin_adds(
    team: Team, client: httpx.AsyncClient, actors: Actors
) -> None:
    eve = await actors.user("eve", customer="physics")
    root = await actors.admin()
    assert await team.status("owner", "POST", "/members", user="eve") == 404
    added = await client.post(f"{team.path}/members", json={"user": "eve"}, headers=root.headers)
    assert added.status_code == 201
    assert (await client.get(team.path, headers=eve.headers)).json()["role"] == "member"


async def test_customer_owner_and_platform_admin_manage_but_do_not_start_work(
    team: Team, client: httpx.AsyncClient, actors: Actors, fleet: Fleet
) -> None:
    boss = await actors.user("boss", role="owner")
    elsewhere = await actors.user("elsewhere", role="owner", customer="physics")
    for headers in (boss.headers, fleet.admin):
        answer = await client.patch(team.path, json={"description": "x"}, headers=headers)
        assert (answer.status_code, answer.json()["role"]) == (200, None)
        assert (await fleet.create(headers, workspace=team.id)).status_code == 403
    assert (await client.get(team.path, headers=elsewhere.headers)).status_code == 404


async def test_invited_user_sees_nothing_before_joining(team: Team) -> None:
    assert await team.status("owner", "POST", "/members", user="stranger", invite=True) == 201
    assert await team.status("stranger", "GET") == 404
    assert await team.status("viewer", "POST", ":join") == 404
    assert await team.status("stranger", "POST", ":join") == 204
    assert await team.status("stranger", "GET") == 200


async def test_personal_workspace_has_one_member_for_ever(team: Team) -> None:
    mine = (await team.ask("owner", "GET", "/v1/workspaces")).json()["items"][-1]
    path = f"/v1/workspaces/{mine['id']}"
    assert await team.status("owner", "POST", f"{path}/members", user="member") == 409
    for verb in (":archive", ""):
        method = "POST" if verb else "DELETE"
        assert await team.status("owner", method, path + verb) == 409
    assert await team.status("owner", "PATCH", path, name="Mine") == 409


async def test_name_is_unique_among_active_teams_of_a_customer(
    team: Team, client: httpx.AsyncClient, actors: Actors
) -> None:
    taken = await team.ask("member", "POST", "/v1/workspaces", name="Team")
    assert (taken.status_code, taken.json()["error"]) == (409, "name_taken")
    eve = await actors.user("eve", customer="physics")
    elsewhere = await client.post("/v1/workspaces", json={"name": "Team"}, headers=eve.headers)
    assert elsewhere.status_code == 201
    assert await team.status("owner", "POST", ":archive") == 200
    assert await team.status("member", "POST", "/v1/workspaces", name="Team") == 201
    assert (await team.ask("owner", "POST", ":restore")).json()["error"] == "name_taken"


async def test_environments_of_a_workspace_follow_its_roles(team: Team, fleet: Fleet) -> None:
    agent = await fleet.host("h1", gpus=2)
    refused = await fleet.create(team.people["viewer"].headers, workspace=team.id)
    assert refused.status_code == 403
    for role in ("stranger", "suspended"):
        assert (await fleet.create(team.people[role].headers, workspace=team.id)).status_code == 404
    made = await fleet.create(team.people["member"].headers, workspace=team.id, gpus=1)
    assert made.status_code == 201, made.text
    path = f"/v1/environments/{made.json()['id']}"
    for role in ("owner", "admin", "viewer"):
        assert await team.status(role, "GET", path) == 200, role
        listed = (await team.ask(role, "GET", f"/v1/environments?workspace={team.id}")).json()["items"]
        assert [one["id"] for one in listed] == [made.json()["id"]], role
    for role in ("stranger", "suspended"):
        assert await team.status(role, "GET", path) == 404
    assert await team.status("viewer", "POST", f"{path}:stop") == 403
    for refusal in (":archive", ""):
        answer = await team.ask("owner", "POST" if refusal else "DELETE", refusal)
        assert (answer.status_code, answer.json()["data"]["environments"]) == (409, ["default"])
    assert await team.status("admin", "POST", f"{path}:stop") == 200
    assert await team.status("owner", "DELETE") == 409, "its host still has it"
    await agent.obey()

    assert await team.status("owner", "POST", ":archive") == 200
    started = await team.ask("member", "POST", f"{path}:start")
    assert (started.status_code, started.json()["error"]) == (409, "state_conflict")
    assert (await fleet.create(team.people["member"].headers, "x", workspace=team.id)).status_code == 409
    assert await team.status("owner", "DELETE") == 204
    assert await team.status("member", "GET", path) == 404


async def test_member_without_membership_loses_sight_of_own_environment_there(
    team: Team, fleet: Fleet
) -> None:
    made = await fleet.create(team.people["member"].headers, workspace=team.id)
    path = f"/v1/environments/{made.json()['id']}"
    assert await team.status("owner", "PATCH", "/members/member", role="viewer") == 200
    assert await team.status("member", "POST", f"{path}:stop") == 403
    assert await team.status("owner", "PATCH", "/members/member", status="suspended") == 200
    assert await team.status("member", "GET", path) == 404
    assert (await team.ask("member", "GET", "/v1/environments")).json()["items"] == []
    assert await team.status("owner", "POST", f"{path}:stop") == 200


async def test_archive_and_create_at_once_never_leave_work_in_the_archive(team: Team, fleet: Fleet) -> None:
    for number in range(8):
        name = f"race-{number}"
        made = await team.ask("owner", "POST", "/v1/workspaces", name=name)
        path = f"/v1/workspaces/{made.json()['id']}"
        created, archived = await asyncio.gather(
            fleet.create(team.people["owner"].headers, name, workspace=made.json()["id"]),
            team.ask("owner", "POST", f"{path}:archive"),
        )
        assert (created.status_code, archived.status_code) in ((201, 409), (409, 200))
