"""Webhooks; nothing is delivered here, because no loop runs."""

from __future__ import annotations

from recording import World


async def drive(world: World) -> None:
    user = world.user
    made = await user.webhooks.create(url="https://hooks.example.org/x", events=["job.completed"])
    hook = made.webhook.id
    assert made.secret.startswith("whsec_")
    assert (await user.webhooks.rotate_secret(hook)).secret != made.secret
    changed = await user.webhooks.update(hook, events=["job.failed", "job.completed"], description="ci")
    assert (await user.webhooks.get(hook)) == changed
    assert [one.id async for one in await user.webhooks.list()] == [hook]
    sent = await user.webhooks.test(hook)
    assert [one.id async for one in await user.webhooks.deliveries(hook)] == [sent.id]
    await user.webhooks.delete(hook)
