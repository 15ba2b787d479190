"""Endpoints of the queue as a whole."""

from __future__ import annotations

from remotegpu.types.queue import EstimateAccuracy
from remotegpu_server.deps import Caller, Db
from remotegpu_server.queue import waits
from remotegpu_server.routing import api_router

router = api_router("queue")


@router.get("/v1/queue/accuracy", summary="How good the estimated starts were")
async def get_accuracy(db: Db, caller: Caller) -> EstimateAccuracy:
    """First estimates against real starts, over the last 30 days."""
    return await waits.get_accuracy(db, actor=caller)
