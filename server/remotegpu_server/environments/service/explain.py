"""What would happen to a request, by a real one that is taken back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import insert
from sqlalchemy.ext.asyncio import AsyncSession

from remotegpu.errors import QuotaExceeded, Unsatisfiable
from remotegpu.types.environments import (
    EnvironmentSpec,
    EnvironmentStatus,
    PlacementExplanation,
    PlacementOutcome,
    Reason,
)
from remotegpu.types.queue import Wait
from remotegpu_server import authz, placement, placing
from remotegpu_server.authz import Action, Actor
from remotegpu_server.capacity import service as capacity
from remotegpu_server.db import tables
from remotegpu_server.environments.service import asking, stop_times
from remotegpu_server.images import service as images
from remotegpu_server.queue import snapshot as snapshots
from remotegpu_server.queue import waits
from remotegpu_server.quotas import service as quotas
from remotegpu_server.reservations import enforcement as reservations
from remotegpu_server.workspaces import service as workspaces


async def explain(db: AsyncSession, *, actor: Actor, body: EnvironmentSpec) -> PlacementExplanation:
    """What would happen to this request now. Same rules as a create, and nothing is kept."""
    authz.require(actor, Action.PLACEMENT_EXPLAIN)
    asking.check_env(actor, body.env, {})
    asking.check_parts(gpus=body.gpus, share=body.gpu_memory_bytes, profile=body.mig_profile)
    assert actor.user_id is not None
    workspace = await workspaces.to_use(db, actor=actor, workspace=body.workspace)
    image = await images.allowed(db, image=body.image, workspace=workspace)
    subjects = await quotas.subjects_of(db, user_id=actor.user_id, workspace_id=workspace.id)
    lines = await quotas.lines(db, subjects=subjects)
    async with db.begin_nested() as trial:
        explained = await _explained(
            db, actor=actor, body=body, image=image, workspace=workspace, subjects=subjects
        )
        await trial.rollback()
    return explained.model_copy(update={"quota": lines})


async def _explained(
    db: AsyncSession,
    *,
    actor: Actor,
    body: EnvironmentSpec,
    image: tables.Image,
    workspace: tables.Workspace,
    subjects: Sequence[quotas.Subject],
) -> PlacementExplanation:
    """The answer by a real request in the real queue, which the caller takes back."""
    reserved = await reservations.columns_of(db, workspace=workspace, body=body)
    body = body.model_copy(update={key: reserved[key] for key in ("stop_at", "start_at") if key in reserved})
    draft = await _draft(
        db,
        actor=actor,
        body=body,
        image=image,
        workspace=workspace,
        reservation_id=reserved.get("reservation_id"),
    )
    known: dict[str, Any] = {
        "error": None,
        "reason": None,
        "queue_position": None,
        "host_name": None,
        "home_note": None,
        "wait": None,
        "quota": [],
    }
    ahead = await snapshots.ahead_of(db, ask_id=draft.id)
    request = await placing.request_for(db, ask=draft, image=image)
    fleet = await capacity.fleet(db)
    kept = (await reservations.look(db)).withheld_from(draft)
    found = placement.choose_all(request, reservations.without(fleet, kept), ahead=ahead)
    if isinstance(found, placement.Refusal) and kept:
        unreserved = placement.choose_all(request, fleet, ahead=ahead)
        found = found if isinstance(unreserved, placement.Refusal) else reservations.refusal(kept)
    if isinstance(found, placement.Refusal) and not found.satisfiable:
        known |= {"error": str(Unsatisfiable.code)}
        return PlacementExplanation(outcome=PlacementOutcome.REFUSED, message=_sentence(found), **known)
    wanted = placing.adding(draft, gpu_fraction=fleet.least_fraction(request))
    try:
        await quotas.check(db, subjects=subjects, adding=wanted, environment_id=draft.id, lock=False)
    except QuotaExceeded as refused:
        known |= {"error": refused.error}
        return PlacementExplanation(outcome=PlacementOutcome.REFUSED, message=str(refused), **known)
    if isinstance(found, placement.Refusal):
        wait = await _would_wait(db, draft=draft, refusal=found)
        known |= {"reason": found.reason, "wait": wait, "queue_position": wait.position if wait else None}
        return PlacementExplanation(outcome=PlacementOutcome.WAITS, message=_sentence(found), **known)
    (choice,) = found
    known |= {"host_name": choice.host.name, "home_note": choice.home_note}
    return PlacementExplanation(
        outcome=PlacementOutcome.STARTS_NOW, message=f"Starts now on {choice.host.name}.", **known
    )


async def _draft(
    db: AsyncSession,
    *,
    actor: Actor,
    body: EnvironmentSpec,
    image: tables.Image,
    workspace: tables.Workspace,
    reservation_id: object,
) -> tables.Environment:
    drafted: tables.Environment | None = await db.scalar(
        insert(tables.Environment)
        .values(
            id=(draft_id := tables.new_id("env")),
            owner_id=actor.user_id,
            customer_id=workspace.customer_id,
            workspace_id=workspace.id,
            name=draft_id,
            display_name="",
            image_id=image.id,
            desired="running",
            status=str(EnvironmentStatus.PENDING),
            reason=str(Reason.REQUESTED),
            message="",
            **await stop_times.columns(
                db,
                stop_at=body.stop_at,
                max_lifetime_s=body.max_lifetime_s,
                idle=body.idle,
                limit=await stop_times.ceiling(db, workspace_id=workspace.id, image_id=image.id),
            ),
            reservation_id=reservation_id,
            **await asking.columns(db, actor=actor, body=body),
        )
        .returning(tables.Environment)
    )
    assert drafted is not None
    return drafted


async def _would_wait(
    db: AsyncSession, *, draft: tables.Environment, refusal: placement.Refusal
) -> Wait | None:
    await waits.store_reason(db, environment_id=draft.id, reason=str(refusal.reason), message=refusal.detail)
    return (await waits.refresh(db, only=frozenset({draft.id}))).get(draft.id)


def _sentence(refusal: placement.Refusal) -> str:
    return f"{refusal.detail} {refusal.hint}" if refusal.hint else refusal.detail
