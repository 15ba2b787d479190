"""Would the limits allow a request?"""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncSession

from remotegpu.errors import NotFound
from remotegpu.types.quotas import QuotaCheck, QuotaSubject, QuotaVerdict
from remotegpu_server import authz
from remotegpu_server.authz import Action, Actor
from remotegpu_server.db import tables
from remotegpu_server.quotas import queries, refusals, service


async def check_quota(db: AsyncSession, *, actor: Actor, body: QuotaCheck) -> QuotaVerdict:
    """The same rules as a placement, without a lock; nothing is kept."""
    user_id = await _whose(db, actor=actor, user=body.user)
    service.refuse_unknown(list(body.amounts))
    if body.workspace is not None:
        await _require_workspace(db, actor=actor, workspace_id=body.workspace)
    subjects = await service.subjects_of(db, user_id=user_id, workspace_id=body.workspace)
    lines = await service.lines(db, subjects=subjects)
    found = await service.excess(db, subjects=subjects, adding=body.amounts)
    if found is None:
        return QuotaVerdict(
            allowed=True,
            message="Every limit allows it.",
            hint=None,
            binding=None,
            retry_at=None,
            quota=lines,
        )
    own = await queries.holders(db, owner_id=user_id, resource=found.resource, without_environment=None)
    return QuotaVerdict(
        allowed=False,
        message=refusals.detail(found),
        hint=refusals.hint(found, own=own),
        binding=next(
            one
            for one in lines
            if (one.subject, one.subject_id, one.resource)
            == (found.subject.kind, found.subject.id, found.resource)
        ),
        retry_at=found.retry_at,
        quota=lines,
    )


async def _whose(db: AsyncSession, *, actor: Actor, user: str | None) -> str:
    if user is None:
        authz.require(actor, Action.QUOTA_READ)
        assert actor.user_id is not None
        return actor.user_id
    found = await service.readable(
        db, actor=actor, action=Action.QUOTA_READ_OF, kind=QuotaSubject.USER, given=user
    )
    return found.id


async def _require_workspace(db: AsyncSession, *, actor: Actor, workspace_id: str) -> None:
    row = await db.get(tables.Workspace, workspace_id)
    if row is None:
        raise NotFound("There is no such workspace.")
    authz.require(
        actor,
        Action.QUOTA_READ_OF,
        workspace_id=row.id,
        customer_id=row.customer_id,
        noun="workspace",
    )
