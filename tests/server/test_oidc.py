"""Signing in at a real identity provider: it runs beside the test and signs with a key of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import uvicorn
from cryptography.fernet import Fernet
from cryptography.hazmat.primitives.asymmetric import rsa
from oidc_provider import CLIENT, SECRET, Provider

from remotegpu_server.settings import Settings
from remotegpu_server.testing import Actors

BACK = "https://hub.example.org/oidc"


@pytest.fixture
async def provider() -> AsyncIterator[Provider]:
    made = Provider(back=BACK)
    server = uvicorn.Server(uvicorn.Config(made.app(), port=0, log_config=None, lifespan="off", ws="none"))
    task = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110  uvicorn tells nobody
        await asyncio.sleep(0.01)
    made.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    made.claims = {"preferred_username": "Ada", "groups": ["lab"], "email": "ada@example.org"}
    yield made
    server.should_exit = True
    await task


@pytest.fixture
def settings(database_url: str, provider: Provider) -> Settings:
    return Settings(
        database_url=database_url,
        secret_key=Fernet.generate_key().decode(),
        oidc_issuer=provider.url,
        oidc_client_id=CLIENT,
        oidc_client_secret=SECRET,
        oidc_redirect_uri=BACK,
        oidc_customers={"lab": "physics"},
        oidc_admin_group="admins",
    )


async def _sign_in(client: httpx.AsyncClient, provider: Provider) -> httpx.Response:
    began = (await client.post("/v1/auth/oidc:start")).json()
    state, code = provider.authorize(began["authorization_url"])
    assert state == began["state"]
    return await client.post("/v1/auth/oidc:finish", json={"state": state, "code": code})


async def test_first_sign_in_makes_the_account_and_the_next_finds_it_by_subject(
    client: httpx.AsyncClient, provider: Provider, actors: Actors
) -> None:
    await actors.customer("physics")
    first = await _sign_in(client, provider)
    assert first.status_code == 201, first.text
    user = first.json()["user"]
    assert (user["username"], user["customer_name"], user["role"]) == ("ada", "physics", "member")
    assert user["email"] is None, "the provider did not say that it was verified"
    headers = {"Authorization": f"Bearer {first.json()['secret']}"}
    assert (await client.get("/v1/me", headers=headers)).status_code == 200
    provider.claims["preferred_username"] = "renamed"
    assert (await _sign_in(client, provider)).json()["user"]["id"] == user["id"]


async def test_sign_in_page_is_told_of_the_provider(client: httpx.AsyncClient, provider: Provider) -> None:
    assert (await client.get("/v1/auth/methods")).json() == {"oidc_issuer": provider.url}


async def test_name_in_use_is_never_taken_over(
    client: httpx.AsyncClient, provider: Provider, actors: Actors
) -> None:
    await actors.user("ada", customer="physics", role="owner")
    refused = await _sign_in(client, provider)
    assert (refused.status_code, refused.json()["error"]) == (409, "name_taken")


async def test_groups_decide_who_comes_in_and_who_is_admin(
    client: httpx.AsyncClient, provider: Provider, actors: Actors
) -> None:
    await actors.customer("physics")
    provider.claims["groups"] = ["elsewhere"]
    assert (await _sign_in(client, provider)).status_code == 403
    provider.claims["groups"] = ["lab", "admins"]
    assert (await _sign_in(client, provider)).json()["user"]["role"] == "admin"


async def test_suspended_user_stays_out(
    client: httpx.AsyncClient, provider: Provider, actors: Actors
) -> None:
    await actors.customer("physics")
    await _sign_in(client, provider)
    admin = await actors.admin()
    await client.post("/v1/users/ada:suspend", headers=admin.headers)
    assert (await _sign_in(client, provider)).json()["error"] == "account_suspended"


@pytest.mark.parametrize(
    "claims",
    [
        {"aud": "somebody-else"},
        {"aud": [CLIENT, "somebody-else"]},
        {"iss": "https://evil.example.org"},
        {"exp": 1},
        {"nonce": "another"},
        {"sub": ""},
    ],
)
async def test_token_that_is_not_for_this_sign_in_is_refused(
    client: httpx.AsyncClient, provider: Provider, actors: Actors, claims: dict[str, Any]
) -> None:
    await actors.customer("physics")
    provider.claims |= claims
    refused = await _sign_in(client, provider)
    assert (refused.status_code, refused.json()["error"]) == (401, "invalid_credentials")


async def test_token_signed_by_somebody_else_is_refused(
    client: httpx.AsyncClient, provider: Provider, actors: Actors
) -> None:
    await actors.customer("physics")
    provider.signing_key = rsa.generate_private_key(65537, 2048)
    assert (await _sign_in(client, provider)).json()["error"] == "invalid_credentials"


async def test_state_works_once_and_only_with_its_own_code(
    client: httpx.AsyncClient, provider: Provider, actors: Actors
) -> None:
    await actors.customer("physics")
    began = (await client.post("/v1/auth/oidc:start")).json()
    state, code = provider.authorize(began["authorization_url"])
    other = (await client.post("/v1/auth/oidc:start")).json()
    swapped = await client.post("/v1/auth/oidc:finish", json={"state": other["state"], "code": code})
    assert swapped.json()["error"] == "invalid_credentials"
    again = await client.post("/v1/auth/oidc:finish", json={"state": other["state"], "code": code})
    assert again.status_code == 401
    unknown = await client.post("/v1/auth/oidc:finish", json={"state": "s" * 43, "code": code})
    assert unknown.status_code == 401
    assert state != other["state"]
