"""Who may ask for which priority."""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncSession

from remotegpu.errors import Forbidden
from remotegpu_server.authz import Actor
from remotegpu_server.platform_settings import service as platform_settings
from remotegpu_server.platform_settings.registry import QUEUE_BEST_PRIORITY_MEMBER, QUEUE_BEST_PRIORITY_OWNER

USUAL = 5


async def require(db: AsyncSession, *, actor: Actor, priority: int) -> None:
    """Refuse a priority better than the actor may ask for. Admins may ask for any, everybody for worse."""
    if priority >= USUAL or actor.is_admin:
        return
    owns = actor.role == "owner"
    best = await platform_settings.value(
        db, QUEUE_BEST_PRIORITY_OWNER if owns else QUEUE_BEST_PRIORITY_MEMBER
    )
    if priority < best:
        raise Forbidden(
            f"The best priority that you may ask for is {best}; this is {priority} (1 is served first).",
            hint="Ask an admin where the work is urgent.",
            data={"best_priority": best},
        )
