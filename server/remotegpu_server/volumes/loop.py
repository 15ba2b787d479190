"""Asks hosts for the sizes of homes."""

from __future__ import annotations

from remotegpu_server.loops import Loop, Work, by_itself
from remotegpu_server.platform_settings import service as platform_settings
from remotegpu_server.platform_settings.registry import VOLUME_MEASURE_EVERY_S
from remotegpu_server.volumes import measuring


async def ask_for_sizes(work: Work) -> None:
    """A short transaction for each host that has any to measure."""
    async with work.session() as db:
        every_s = await platform_settings.value(db, VOLUME_MEASURE_EVERY_S)
        found = await measuring.due(db, every_s=every_s)
    for host_id, volume_ids in found.items():
        with by_itself("volumes", host_id):
            async with work.session() as db:
                await measuring.ask(db, host_id=host_id, volume_ids=volume_ids)


LOOP = Loop(name="volumes", every_s=15.0, run=ask_for_sizes)
