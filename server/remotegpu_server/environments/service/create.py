"""Asking for an environment: new, again, or only in theory."""

from __future__ import annotations

from typing import Any

from sqlalchemy import func, insert, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from remotegpu.errors import (
    ImageNotAllowed,
    NameTaken,
    NoCapacity,
    NotFound,
    StateConflict,
    Unsatisfiable,
)
from remotegpu.types.environments import (
    Environment,
    EnvironmentCreate,
    EnvironmentSpec,
    EnvironmentStart,
    EnvironmentStatus,
    PlaceKeep,
    Reason,
)
from remotegpu_server import authz, placement, placing
from remotegpu_server.authz import Action, Actor
from remotegpu_server.db import tables
from remotegpu_server.db.session import violated_constraint
from remotegpu_server.environments import convert, lifecycle, queries
from remotegpu_server.environments.service import asking, starting, stop, stop_times
from remotegpu_server.events import service as events
from remotegpu_server.hub_starts import service as hub_starts
from remotegpu_server.images import service as images
from remotegpu_server.placing import Launch
from remotegpu_server.queue import priorities, waits
from remotegpu_server.queue import snapshot as snapshots
from remotegpu_server.reservations import enforcement as reservations
from remotegpu_server.tokens import service as tokens
from remotegpu_server.workspaces import service as workspaces


async def create_environment(
    db: AsyncSession, *, actor: Actor, body: EnvironmentCreate, launch: Launch
) -> Environment:
    """A new environment, started or queued. See :class:`EnvironmentCreate` for what ``queue`` means."""
    authz.require(actor, Action.ENVIRONMENT_CREATE)
    asking.check_env(actor, body.env, body.secret_env)
    asking.check_parts(gpus=body.gpus, share=body.gpu_memory_bytes, profile=body.mig_profile)
    assert actor.user_id is not None
    await tokens.require_active(db, actor.user_id)
    workspace = await workspaces.to_use(db, actor=actor, workspace=body.workspace)
    image = await images.allowed(db, image=body.image, workspace=workspace)
    _require_environments(image)
    environment = await _insert(db, actor=actor, body=body, image=image, workspace=workspace, launch=launch)
    await _begin(db, environment=environment, image=image, queue=body.queue, launch=launch, actor=actor)
    await _warn_of_image(db, environment=environment, image=image, actor=actor)
    (bundle,) = await queries.bundles(db, ids=[environment.id])
    return convert.to_wire(bundle)


async def _insert(
    db: AsyncSession,
    *,
    actor: Actor,
    body: EnvironmentCreate,
    image: tables.Image,
    workspace: tables.Workspace,
    launch: Launch,
) -> tables.Environment:
    reserved = await reservations.columns_of(db, workspace=workspace, body=body)
    body = body.model_copy(update={key: reserved[key] for key in ("stop_at", "start_at") if key in reserved})
    times = await stop_times.columns(
        db,
        stop_at=body.stop_at,
        max_lifetime_s=body.max_lifetime_s,
        idle=body.idle,
        limit=await stop_times.ceiling(db, workspace_id=workspace.id, image_id=image.id),
    )
    try:
        async with db.begin_nested():
            environment: tables.Environment | None = await db.scalar(
                insert(tables.Environment)
                .values(
                    id=tables.new_id("env"),
                    owner_id=actor.user_id,
                    customer_id=workspace.customer_id,
                    workspace_id=workspace.id,
                    name=body.name,
                    display_name=body.display_name,
                    image_id=image.id,
                    env=body.env,
                    **await asking.columns(db, actor=actor, body=body),
                    secret_env=placing.seal_env(launch.vault, body.secret_env),
                    hub_managed=actor.is_service,
                    reservation_id=reserved.get("reservation_id"),
                    **times,
                    desired="running",
                    status=str(EnvironmentStatus.PENDING),
                    reason=str(Reason.REQUESTED),
                    message="Requested.",
                )
                .returning(tables.Environment)
            )
    except IntegrityError as error:
        if violated_constraint(error) == "uq_environments_owner_name":
            raise NameTaken(
                f"You have an environment {body.name} already.",
                hint=f"Start it with `remotegpu env start {body.name}`, or choose another name.",
            ) from error
        raise
    assert environment is not None
    return environment


async def start_environment(
    db: AsyncSession, *, actor: Actor, environment_id: str, body: EnvironmentStart, launch: Launch
) -> Environment:
    """Start a stopped or failed environment. One that is wanted already is answered as it is."""
    owner_id = await queries.owner_id(db, environment_id=environment_id)
    await tokens.require_active(db, *filter(None, (actor.user_id, owner_id)))
    workspace = await workspaces.of_environment(db, environment_id=environment_id)
    environment = await queries.lock(db, environment_id=environment_id)
    if environment is None or workspace is None:
        raise NotFound("There is no such environment.")
    authz.require(
        actor,
        Action.ENVIRONMENT_WRITE,
        user_id=environment.owner_id,
        customer_id=environment.customer_id,
        workspace_id=environment.workspace_id,
        environment_id=environment.id,
        noun="environment",
    )
    asking.check_env(actor, body.env or {}, body.secret_env)
    kept = (
        actor.is_service
        and environment.status == EnvironmentStatus.PENDING
        and await hub_starts.take_over(db, environment_id=environment.id)
    )
    if kept or await _may_start(db, environment=environment):
        workspaces.require_active(workspace)
        image = await images.allowed(db, image=body.image or environment.image_id, workspace=workspace)
        _require_environments(image)
        await _again(db, environment=environment, image=image, body=body, launch=launch, actor=actor)
        await _begin(db, environment=environment, image=image, queue=body.queue, launch=launch, actor=actor)
        await _warn_of_image(db, environment=environment, image=image, actor=actor)
    (bundle,) = await queries.bundles(db, ids=[environment.id])
    return convert.to_wire(bundle)


async def keep_place(
    db: AsyncSession, *, actor: Actor, environment_id: str, body: PlaceKeep, hub_known: bool
) -> Environment:
    """Keep a waiting environment's place for its hub server."""
    environment = await stop.locked(
        db, actor=actor, action=Action.ENVIRONMENT_WRITE, environment_id=environment_id
    )
    if actor.is_service and not hub_known:
        raise StateConflict(
            "The server cannot start servers of the hub, so it keeps no place.",
            hint="An admin sets REMOTEGPU_HUB_API_URL and REMOTEGPU_HUB_API_TOKEN_FILE.",
        )
    await hub_starts.keep(
        db, actor=actor, environment=environment, hub_user=body.hub_user, hub_server=body.hub_server
    )
    await waits.refresh(db, only=frozenset({environment.id}))
    (bundle,) = await queries.bundles(db, ids=[environment.id])
    return convert.to_wire(bundle)


async def _may_start(db: AsyncSession, *, environment: tables.Environment) -> bool:
    """False: it is started already. Raises while the last generation is not proven gone."""
    if environment.status == "deleted":
        raise NotFound("There is no such environment.")
    if environment.status in lifecycle.ENDED:
        if await queries.live_placement(db, environment_id=environment.id) is None:
            return True
        raise StateConflict(
            f"The last start of {environment.name} is still being cleaned up on its host.",
            hint="Try again in a few seconds.",
        )
    if environment.desired == "running":
        return False
    raise StateConflict(f"{environment.name} is being stopped.", hint="Start it again when it has stopped.")


async def _again(
    db: AsyncSession,
    *,
    environment: tables.Environment,
    image: tables.Image,
    body: EnvironmentStart,
    launch: Launch,
    actor: Actor,
) -> None:
    """A new generation with the changed fields, pending."""
    changes: dict[str, Any] = {
        "gpus": body.gpus,
        "gpu_models": body.gpu_models,
        "cpus": body.cpus,
        "memory_bytes": body.memory_bytes,
        "host_labels": body.host_labels,
        "env": body.env,
        "priority": body.priority,
        "preemptible": body.preemptible,
        "min_run_s": body.min_run_s,
    }
    if body.priority is not None:
        await priorities.require(db, actor=actor, priority=body.priority)
    changes = {column: value for column, value in changes.items() if value is not None}
    for column in ("gpu_memory_bytes", "min_gpu_memory_bytes", "max_gpu_memory_bytes", "mig_profile"):
        value = getattr(body, column)
        if value is not None:
            changes[column] = value or None
    asking.check_parts(
        gpus=changes.get("gpus", environment.gpus),
        share=changes.get("gpu_memory_bytes", environment.gpu_memory_bytes),
        profile=changes.get("mig_profile", environment.mig_profile),
    )
    reserved = await _reserved_again(db, environment=environment, body=body)
    body = body.model_copy(update={key: reserved[key] for key in ("stop_at", "start_at") if key in reserved})
    changes["reservation_id"] = reserved.get("reservation_id")
    changes |= await _times_again(db, environment=environment, image=image, body=body)
    if actor.is_service:
        changes["hub_managed"] = True
    await lifecycle.move(
        db,
        environment=environment,
        to=EnvironmentStatus.PENDING,
        reason=Reason.REQUESTED,
        message="Requested.",
        actor=actor,
        image_id=image.id,
        desired="running",
        observed="absent",
        generation=environment.generation + 1,
        queued_at=_age(environment, changes, image),
        start_at=body.start_at,
        preempt_at=None,
        outlook=None,
        started_at=None,
        stopped_at=None,
        exit_code=None,
        log_tail=None,
        address=None,
        progress_percent=None,
        secret_env=placing.seal_env(launch.vault, body.secret_env),
        **changes,
    )


async def _reserved_again(
    db: AsyncSession, *, environment: tables.Environment, body: EnvironmentStart
) -> dict[str, object]:
    """A new start runs in what is reserved now, not in what was."""
    workspace = await db.get(tables.Workspace, environment.workspace_id)
    assert workspace is not None, "environments keep their workspace"
    asked = EnvironmentSpec(
        image=environment.image_id,
        gpus=environment.gpus if body.gpus is None else body.gpus,
        gpu_models=environment.gpu_models if body.gpu_models is None else body.gpu_models,
        gpu_memory_bytes=(
            environment.gpu_memory_bytes if body.gpu_memory_bytes is None else body.gpu_memory_bytes or None
        ),
        stop_at=body.stop_at,
        start_at=body.start_at,
        reservation=body.reservation,
    )
    return await reservations.columns_of(db, workspace=workspace, body=asked)


async def _times_again(
    db: AsyncSession, *, environment: tables.Environment, image: tables.Image, body: EnvironmentStart
) -> dict[str, Any]:
    """Its stop time is not kept, its lifetime and idle policy are."""
    limit = await stop_times.ceiling(db, workspace_id=environment.workspace_id, image_id=image.id)
    kept = environment.max_lifetime_s
    if kept is not None and limit is not None:
        kept = min(kept, limit.max_lifetime_s)
    times = await stop_times.columns(
        db,
        stop_at=body.stop_at,
        max_lifetime_s=body.max_lifetime_s or kept,
        idle=body.idle,
        limit=limit,
    )
    if body.idle is None:
        del times["idle_policy"]
    return times


_WANTED = (
    "gpus",
    "gpu_models",
    "gpu_memory_bytes",
    "min_gpu_memory_bytes",
    "max_gpu_memory_bytes",
    "mig_profile",
    "host_labels",
    "cpus",
    "memory_bytes",
    "priority",
)


def _age(environment: tables.Environment, changes: dict[str, Any], image: tables.Image) -> Any:
    """A place that was kept keeps its age as long as the same is asked for."""
    asked = {column: changes[column] for column in _WANTED if column in changes} | {"image_id": image.id}
    same = all(getattr(environment, column) == value for column, value in asked.items())
    if environment.status == "pending" and same:
        return environment.queued_at
    return func.greatest(func.now(), changes.get("start_at"))


async def _begin(
    db: AsyncSession,
    *,
    environment: tables.Environment,
    image: tables.Image,
    queue: bool,
    launch: Launch,
    actor: Actor,
) -> None:
    """Place the pending environment, or let it wait, or refuse the request."""
    if later := await _later(db, environment=environment):
        reason, message = Reason.START_LATER, later
    else:
        ahead = await snapshots.ahead_of(db, ask_id=environment.id)
        refusal = await starting.place(
            db, environment=environment, image=image, ahead=ahead, launch=launch, actor=actor
        )
        if refusal is None:
            await _record_created(db, environment=environment, actor=actor)
            return
        if not refusal.satisfiable:
            raise Unsatisfiable(refusal.detail, hint=refusal.hint, data=refusal.data)
        if not queue:
            raise await _no_capacity(db, environment=environment, refusal=refusal)
        reason, message = refusal.reason, refusal.detail
    await _record_created(db, environment=environment, actor=actor)
    await lifecycle.move(
        db,
        environment=environment,
        to=EnvironmentStatus.PENDING,
        reason=reason,
        message=message,
        actor=actor,
    )
    await waits.refresh(db, only=frozenset({environment.id}))


async def _later(db: AsyncSession, *, environment: tables.Environment) -> str | None:
    """The words of a request that waits for its own start time."""
    if environment.start_at is None:
        return None
    row = tables.Environment
    future = await db.scalar(select(row.start_at > func.now()).where(row.id == environment.id))
    return f"Takes its place in the queue at {environment.start_at:%Y-%m-%d %H:%M} UTC." if future else None


async def _no_capacity(
    db: AsyncSession, *, environment: tables.Environment, refusal: placement.Refusal
) -> NoCapacity:
    """The refusal of somebody who does not wait, with what waiting would be like."""
    await waits.store_reason(
        db, environment_id=environment.id, reason=str(refusal.reason), message=refusal.detail
    )
    answers = await waits.refresh(db, only=frozenset({environment.id}))
    wait = answers.get(environment.id)
    offers = [offer.message for offer in wait.counter_offers] if wait else []
    return NoCapacity(
        refusal.detail,
        hint=refusal.hint or " ".join([*offers, "Or queue the request."]),
        data=refusal.data
        | {"reason": str(refusal.reason), "wait": wait.model_dump(mode="json") if wait else None},
    )


def _require_environments(image: tables.Image) -> None:
    """Raises :class:`ImageNotAllowed` for one whose hosts run no environments."""
    if image.runtime == "slurm":
        raise ImageNotAllowed(
            f"Image {image.name} is for nodes of Slurm, which run tasks and no environments.",
            hint="Submit a task with it, or choose another image.",
            data={"image": image.name},
        )


async def _warn_of_image(
    db: AsyncSession, *, environment: tables.Environment, image: tables.Image, actor: Actor
) -> None:
    message = images.warning(image)
    if message is not None:
        await events.record(
            db,
            kind="environment.image_deprecated",
            subject_type="environment",
            subject_id=environment.id,
            actor=actor,
            message=message,
            customer_id=environment.customer_id,
            user_id=environment.owner_id,
            workspace_id=environment.workspace_id,
        )


async def _record_created(db: AsyncSession, *, environment: tables.Environment, actor: Actor) -> None:
    if environment.generation > 1:
        return
    await events.record(
        db,
        kind="environment.created",
        subject_type="environment",
        subject_id=environment.id,
        actor=actor,
        message=f"Environment {environment.name} was created.",
        data={"gpus": environment.gpus, "gpu_models": environment.gpu_models},
        customer_id=environment.customer_id,
        user_id=environment.owner_id,
        workspace_id=environment.workspace_id,
    )
