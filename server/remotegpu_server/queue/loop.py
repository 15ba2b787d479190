"""Keeps what waiting requests are told fresh, and compares estimates with starts. Moves nothing."""

from __future__ import annotations

from remotegpu_server.loops import Loop, Work
from remotegpu_server.queue import waits


async def tell(work: Work) -> None:
    """Everybody's position, estimate and counter-offers; then what came true of older ones."""
    async with work.session() as db:
        await waits.refresh(db)
    async with work.session() as db:
        await waits.compare(db)


OUTLOOK = Loop(name="queue-outlook", every_s=5.0, run=tell)
