"""Sends changed keys to the hosts, whatever changed them: a key, a membership, a role, a suspension.

A host whose authorised keys are not those that its agent was last told of gets a new revision of its desired
set. Requests only hint at this pass; without the hint it comes a few seconds later.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Select, func, literal_column, select, update
from sqlalchemy.dialects.postgresql import aggregate_order_by

from remotegpu_server import holds
from remotegpu_server.db import tables
from remotegpu_server.loops import Loop, Work, by_itself
from remotegpu_server.ssh_keys import service


def _digests() -> Select[str, str]:
    """For each host with live placements of environments, one digest of who may enter what there."""
    held, opens = tables.Placement, service.authorised().subquery()
    entry = opens.c.id + ":" + opens.c.fingerprint
    in_order: Any = aggregate_order_by(literal_column("','"), entry)
    return (
        select(held.host_id, func.md5(func.coalesce(func.string_agg(entry, in_order), "")).label("digest"))
        .outerjoin(opens, opens.c.id == held.environment_id)
        .where(held.released_at.is_(None), held.environment_id.is_not(None))
        .group_by(held.host_id)
    )


async def send_changed_keys(work: Work) -> None:
    """Bump the revision of every host whose keys changed."""
    host, now = tables.Host, _digests().subquery()
    changed = select(host.id).join(now, now.c.host_id == host.id)
    changed = changed.where(host.keys_digest.is_distinct_from(now.c.digest)).order_by(host.id)
    async with work.session() as db:
        host_ids = (await db.scalars(changed)).all()
    for host_id in host_ids:
        with by_itself("ssh-keys", host_id):
            async with work.session() as db:
                await holds.lock_host(db, host_id=host_id)
                digest = await db.scalar(select(now.c.digest).where(now.c.host_id == host_id))
                await db.execute(
                    update(host)
                    .where(host.id == host_id)
                    .values(keys_digest=digest)
                    .execution_options(synchronize_session=False)
                )
                await holds.bump_revision(db, host_id=host_id)


LOOP = Loop(name="ssh-keys", every_s=5.0, run=send_changed_keys, wake=service.CHANGED)
