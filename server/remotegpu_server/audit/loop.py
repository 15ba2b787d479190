"""Sealing the audit trail."""

from __future__ import annotations

from remotegpu_server.audit import chain
from remotegpu_server.loops import Loop, Work

_BATCHES_PER_PASS = 20


async def seal(work: Work) -> None:
    """Seal what was written since the last pass. Rows are locked that nobody else ever writes."""
    for _ in range(_BATCHES_PER_PASS):
        async with work.session() as db:
            if await chain.seal(db) < chain.BATCH:
                return


LOOP = Loop(name="audit-seal", every_s=5.0, run=seal)
