"""Saves that will not end by themselves: their environment ended, or the host says nothing for too long."""

from __future__ import annotations

from sqlalchemy import select

from remotegpu_server.authz import SYSTEM
from remotegpu_server.db import tables
from remotegpu_server.image_saves import lifecycle, service
from remotegpu_server.loops import Loop, Work, by_itself


async def follow(work: Work) -> None:
    """One short transaction for each live save; there are few."""
    row = tables.ImageSave
    async with work.session() as db:
        live = (await db.scalars(select(row.id).where(row.status.in_(lifecycle.LIVE)).order_by(row.id))).all()
    for save_id in live:
        with by_itself("image-saves", save_id):
            async with work.session() as db:
                await service.give_up(db, save_id=save_id, actor=SYSTEM)


LOOP = Loop(name="image-saves", every_s=5.0, run=follow)
