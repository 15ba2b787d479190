"""Hosts from a CSV sheet and into one."""

from __future__ import annotations

import asyncio
import csv
import io
from typing import Any

import httpx
import pytest
from hollow_agent import Fleet

HEAD = "name,hostname,ip_address,labels\n"


async def _import(fleet: Fleet, text: str, **more: Any) -> httpx.Response:
    return await fleet.client.post("/v1/hosts:import", headers=fleet.admin, json={"csv": text, **more})


async def _names(fleet: Fleet) -> list[str]:
    found = await fleet.client.get("/v1/hosts", headers=fleet.admin)
    return [host["name"] for host in found.json()["items"]]


async def test_good_lines_are_added_and_bad_ones_named(fleet: Fleet) -> None:
    answer = await _import(
        fleet,
        HEAD
        + "a,a.example.org,192.0.2.1,rack=a1;region=north\n"
        + "b,,,\n"
        + "Not A Name,,,\n"
        + "c,,192.0.2.3,\n"
        + "d,,192.0.2.1,\n"
        + "\n"
        + "e,,,no-value\n"
        + "f,too,few\n"
        + "g,,,\n",
    )
    found = answer.json()
    assert found["succeeded"] == ["a", "b", "c", "g"]
    assert set(found["failed"]) == {"4", "6", "8", "9"}
    assert "192.0.2.1" in found["failed"]["6"]
    assert await _names(fleet) == ["a", "b", "c", "g"]
    host = (await fleet.client.get("/v1/hosts/a", headers=fleet.admin)).json()
    assert (host["hostname"], host["ip_address"]) == ("a.example.org", "192.0.2.1")
    assert host["labels"] == {"rack": "a1", "region": "north"}


async def test_dry_run_says_the_same_and_adds_nothing(fleet: Fleet) -> None:
    text = "name,ip_address\na,192.0.2.1\nb,192.0.2.1\n"
    tried = (await _import(fleet, text, dry_run=True)).json()
    assert await _names(fleet) == []
    assert (await _import(fleet, text)).json() == tried
    assert (tried["succeeded"], set(tried["failed"])) == (["a"], {"3"})


@pytest.mark.parametrize(
    "text",
    [
        "hostname\na\n",
        "name,colour\na,red\n",
        "name,name\na,b\n",
        "\n",
        'name\n"a\n',
        "name\n" + "a\n" * 1001,
    ],
)
async def test_sheet_that_makes_no_sense_is_refused_as_a_whole(fleet: Fleet, text: str) -> None:
    answer = await _import(fleet, text)
    assert (answer.status_code, answer.json()["error"]) == (422, "invalid")


async def test_one_address_imported_twice_at_once_is_added_once(fleet: Fleet) -> None:
    answers = await asyncio.gather(
        *(_import(fleet, f"name,ip_address\nhost-{number},192.0.2.9\n") for number in range(6))
    )
    assert sum(len(answer.json()["succeeded"]) for answer in answers) == 1
    assert sum(len(answer.json()["failed"]) for answer in answers) == 5


async def test_export_is_what_an_import_takes_and_runs_no_formula(fleet: Fleet) -> None:
    await _import(fleet, HEAD + "a,,192.0.2.1,note==1+1\nb,,,\n")
    await fleet.client.patch("/v1/hosts/b", headers=fleet.admin, json={"labels": {"x": "1,2"}})
    text = (await fleet.client.get("/v1/hosts:export", headers=fleet.admin)).text
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["name"] for row in rows] == ["a", "b"]
    assert not [cell for row in rows for cell in row.values() if cell.startswith(("=", "+", "-", "@"))]
    for name in ("a", "b"):
        await fleet.client.delete(f"/v1/hosts/{name}", headers=fleet.admin)
    assert (await _import(fleet, text)).json()["failed"] == {}
    assert (await fleet.client.get("/v1/hosts:export", headers=fleet.admin)).text == text
