"""Logins."""

from __future__ import annotations

import pytest
from recording import World

import remotegpu


async def drive(world: World) -> None:
    admin, hub = world.admin, world.hub
    made = await admin.users.create(username="grace", customer="physics", email="grace@example.org")
    assert made.one_time_password
    assert (await admin.users.get("grace")).customer_name == "physics"
    assert (await admin.users.update("grace", role="owner", display_name="Grace")).role == "owner"
    assert (await admin.users.suspend("grace", environments="stop")).status == "suspended"
    assert (await admin.users.resume("grace")).status == "active"
    password = (await admin.users.reset_password(made.user.id)).one_time_password
    assert password != made.one_time_password
    verified = await hub.auth.verify(username="grace", password=password, client_address="192.0.2.7")
    assert verified.username == "grace"
    grace = hub.on_behalf_of("grace")
    assert (await grace.me.get()).user.username == "grace"
    await _grace_changes_password(world, password)
    for token in [token async for token in await admin.users.tokens("grace")]:
        await admin.tokens.delete(token.id)
    assert not [token async for token in await admin.users.tokens("grace")]
    assert "grace" in {user.username async for user in await admin.users.list(limit=1)}
    assert (await world.anonymous.auth.methods()).oidc_issuer is None
    with pytest.raises(remotegpu.NotFound, match="identity provider"):
        await world.anonymous.auth.start_oidc()
    with pytest.raises(remotegpu.NotFound, match="identity provider"):
        await world.anonymous.auth.finish_oidc(state="s" * 32, code="c")
    await world.anonymous.auth.request_password_reset("grace")
    link = await admin.users.create_password_reset("grace")
    secret = link.secret
    await world.anonymous.auth.finish_password_reset(secret=secret, new_password="horse correct staple")
    await admin.users.create(username="leaver", password="staple correct horse")
    await admin.users.delete("leaver", environments="stop_after_grace", grace_s=60)
    assert [user.username async for user in await admin.users.list(status="deleted")] == ["leaver"]


async def _grace_changes_password(world: World, password: str) -> None:
    anonymous = world.anonymous
    session = await anonymous.auth.login(username="grace", password=password, expires_in_s=3600)
    grace = world.recorder.client(session.secret)
    with pytest.raises(remotegpu.PasswordChangeRequired):
        await grace.environments.list()
    await grace.me.change_password(current_password=password, new_password="staple correct horse")
    assert (await grace.me.update(phone="+44 20 7946 0018")).phone == "+44 20 7946 0018"
    with pytest.raises(remotegpu.InvalidCredentials):
        await anonymous.auth.login(username="grace", password=password)
