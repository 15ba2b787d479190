"""Endpoints of webhooks."""

from __future__ import annotations

from remotegpu.types.webhooks import Webhook, WebhookCreate, WebhookCreated, WebhookDelivery, WebhookUpdate
from remotegpu.types.wire import Page
from remotegpu_server.deps import Caller, Cursor, Db, Limit, VaultDep
from remotegpu_server.idempotency import IDEMPOTENT
from remotegpu_server.routing import api_router
from remotegpu_server.webhooks import service

router = api_router("webhooks")


@router.get("/v1/webhooks", summary="List the own webhooks")
async def list_webhooks(db: Db, caller: Caller, limit: Limit = 50, cursor: Cursor = None) -> Page[Webhook]:
    """The oldest first."""
    return await service.list_webhooks(db, actor=caller, limit=limit, cursor=cursor)


@router.post("/v1/webhooks", status_code=201, summary="Make a webhook", dependencies=[IDEMPOTENT])
async def create_webhook(body: WebhookCreate, db: Db, caller: Caller, vault: VaultDep) -> WebhookCreated:
    """It is told what its owner may see. Its secret is shown this once."""
    return await service.create(db, actor=caller, body=body, vault=vault)


@router.get("/v1/webhooks/{webhook_id}", summary="One webhook")
async def get_webhook(webhook_id: str, db: Db, caller: Caller) -> Webhook:
    """Without its secret."""
    return await service.get(db, actor=caller, webhook_id=webhook_id)


@router.patch("/v1/webhooks/{webhook_id}", summary="Change a webhook")
async def update_webhook(webhook_id: str, body: WebhookUpdate, db: Db, caller: Caller) -> Webhook:
    """What is named; what waits is tried again at once."""
    return await service.change(db, actor=caller, webhook_id=webhook_id, body=body)


@router.delete("/v1/webhooks/{webhook_id}", status_code=204, summary="Delete a webhook")
async def delete_webhook(webhook_id: str, db: Db, caller: Caller) -> None:
    """With its log, and what was not delivered yet."""
    await service.remove(db, actor=caller, webhook_id=webhook_id)


@router.post("/v1/webhooks/{webhook_id}:rotate-secret", summary="Give a webhook a new secret")
async def rotate_webhook_secret(webhook_id: str, db: Db, caller: Caller, vault: VaultDep) -> WebhookCreated:
    """Shown this once; the old one signs nothing any more."""
    return await service.rotate(db, actor=caller, webhook_id=webhook_id, vault=vault)


@router.post("/v1/webhooks/{webhook_id}:test", summary="Send a test to a webhook")
async def test_webhook(webhook_id: str, db: Db, caller: Caller) -> WebhookDelivery:
    """Of the type `webhook.test`, signed as any other; the log says how it went."""
    return await service.send_test(db, actor=caller, webhook_id=webhook_id)


@router.get("/v1/webhooks/{webhook_id}/deliveries", summary="What was sent to a webhook")
async def list_webhook_deliveries(
    webhook_id: str, db: Db, caller: Caller, limit: Limit = 50, cursor: Cursor = None
) -> Page[WebhookDelivery]:
    """Newest first; kept for eight days."""
    return await service.list_deliveries(db, actor=caller, webhook_id=webhook_id, limit=limit, cursor=cursor)
