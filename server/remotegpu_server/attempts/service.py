"""What agents do with attempts: claim, accept, start, renew, progress, complete, release.

Every write is fenced by the session epoch and names its attempt. The same request again is answered as the
first time; one that no longer fits is refused, and its agent ends what it runs.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from sqlalchemy import Row, func, select, text, update
from sqlalchemy.ext.asyncio import AsyncSession

from remotegpu.errors import AttemptFinal, AttemptMismatch, LeaseExpired
from remotegpu.types.agent import (
    AttemptInput,
    AttemptLease,
    AttemptOutcome,
    AttemptProgress,
    AttemptRenewal,
    AttemptResult,
    AttemptStart,
    AttemptWrite,
    ClaimedAttempt,
    ClaimedAttempts,
    Gang,
    GrantedAttempt,
    HomeVolume,
    TaskClaim,
)
from remotegpu.types.environments import Reason
from remotegpu.types.tasks import TaskStatus
from remotegpu_server import holds
from remotegpu_server.attempts import lifecycle, tries
from remotegpu_server.attempts.lifecycle import Status
from remotegpu_server.authz import Actor
from remotegpu_server.db import tables
from remotegpu_server.db.notify import notify
from remotegpu_server.events import service as events
from remotegpu_server.hosts.service import sessions
from remotegpu_server.placing import Launch, open_env
from remotegpu_server.platform_settings import service as platform_settings
from remotegpu_server.platform_settings.registry import TASK_ARTIFACTS_MAX_BYTES, TASK_LOG_CAP_BYTES
from remotegpu_server.settings import Settings
from remotegpu_server.tasks import lifecycle as tasks
from remotegpu_server.tasks import queries as task_queries

BARRIER_PACE_S = 1.0
"""Between two questions of a host that waits for the others of its try."""
CLAIM_PAUSE_S = 0.0
"""An agent with free workers may claim again at once: the claim itself waits."""

_CLAIM = text("""
    WITH again AS (
        SELECT id FROM attempts
        WHERE host_id = :host_id AND request_id = :request_id AND status = 'claimed'
    ), picked AS (
        SELECT a.id FROM attempts a JOIN tasks t ON t.id = a.task_id
        WHERE a.host_id = :host_id AND a.status = 'assigned' AND NOT EXISTS (SELECT FROM again)
        ORDER BY t.priority, a.created_at, a.id LIMIT :most FOR UPDATE OF a SKIP LOCKED
    ), claimed AS (
        UPDATE attempts SET status = 'claimed', request_id = :request_id, epoch = :epoch, claimed_at = now(),
            lease_expires_at = now() + make_interval(secs => :lease_s),
            lost_at = now() + make_interval(secs => :lost_s)
        FROM picked WHERE attempts.id = picked.id
        RETURNING attempts.id
    )
    SELECT a.id, a.task_id, a.number, a.rank, a.secret_env, t.name, t.command, t.script, t.working_dir, t.env,
        t.input_sha256, t.input_size_bytes,
        t.array_index, t.max_lifetime_s, t.stop_grace_s, u.username, i.reference, i.digest, i.local,
        t.nodes, m.rendezvous_address, m.rendezvous_port, p.cpus, p.memory_bytes, p.volume_id,
        v.shared_home IS NOT NULL AS shared,
        ARRAY(SELECT g.uuid FROM allocations l JOIN gpus g ON g.id = l.gpu_id
            WHERE l.placement_id = p.id AND l.released_at IS NULL ORDER BY g.index, g.id) AS gpu_uuids,
        (SELECT min(l.memory_bytes) FROM allocations l
            WHERE l.placement_id = p.id AND l.released_at IS NULL) AS share,
        (SELECT value FROM platform_settings WHERE key = :log_cap) AS log_cap,
        (SELECT value FROM platform_settings WHERE key = :artifacts_max) AS artifacts_max
    FROM (SELECT id FROM again UNION ALL SELECT id FROM claimed) mine JOIN attempts a USING (id)
        JOIN tasks t ON t.id = a.task_id JOIN users u ON u.id = t.owner_id
        JOIN images i ON i.id = t.image_id JOIN placements p ON p.attempt_id = a.id
        JOIN volumes v ON v.id = p.volume_id
        LEFT JOIN attempts m ON (m.task_id, m.number, m.rank) = (a.task_id, a.number, 0)
    ORDER BY t.priority, a.created_at, a.id
""")


async def claim(
    db: AsyncSession, *, actor: Actor, body: TaskClaim, launch: Launch, settings: Settings
) -> ClaimedAttempts:
    """Hand out attempts that wait for this host. The same ``request_id`` again answers what it got then.

    Plain SQL, as every idle agent asks: the host is locked first, so that the same request twice at once is
    answered one after the other.
    """
    await sessions.fence(db, actor=actor, epoch=body.epoch)
    found = await db.execute(
        _CLAIM,
        {
            "host_id": actor.host_id,
            "most": body.max_attempts,
            "request_id": body.request_id,
            "epoch": body.epoch,
            "lease_s": settings.attempt_lease_s,
            "lost_s": settings.attempt_lost_s,
            "log_cap": TASK_LOG_CAP_BYTES.key,
            "artifacts_max": TASK_ARTIFACTS_MAX_BYTES.key,
        },
    )
    return ClaimedAttempts(attempts=[_claimed(row, launch) for row in found], next_in_s=CLAIM_PAUSE_S)


def _claimed(row: Row[*tuple[Any, ...]], launch: Launch) -> ClaimedAttempt:
    return ClaimedAttempt(
        id=row.id,
        task_id=row.task_id,
        number=row.number,
        rank=row.rank,
        gang=Gang(nodes=row.nodes, address=row.rendezvous_address, port=row.rendezvous_port)
        if row.nodes > 1
        else None,
        name=row.name,
        owner=row.username,
        image_reference=row.digest if row.local and row.digest else row.reference,
        image_digest=None if row.local else row.digest,
        command=row.command,
        script=row.script,
        working_dir=row.working_dir,
        env=row.env | _told(array_index=row.array_index, share=row.share),
        secret_env=open_env(launch.vault, row.secret_env),
        gpu_uuids=row.gpu_uuids,
        cpus=row.cpus,
        memory_bytes=row.memory_bytes,
        home=HomeVolume(volume_id=row.volume_id, shared=row.shared),
        timeout_s=row.max_lifetime_s,
        stop_grace_s=row.stop_grace_s,
        log_cap_bytes=platform_settings.of_stored(TASK_LOG_CAP_BYTES, row.log_cap),
        artifacts_max_bytes=platform_settings.of_stored(TASK_ARTIFACTS_MAX_BYTES, row.artifacts_max),
        input=None
        if row.input_sha256 is None
        else AttemptInput(sha256=row.input_sha256, size_bytes=row.input_size_bytes),
    )


def _told(*, array_index: int | None, share: int | None) -> dict[str, str]:
    """What a task is told of itself besides its own variables."""
    found = {} if array_index is None else {"REMOTEGPU_ARRAY_INDEX": str(array_index)}
    return found if share is None else found | {"REMOTEGPU_GPU_MEMORY_BYTES": str(share)}


async def _locked(
    db: AsyncSession, *, actor: Actor, attempt_id: str, epoch: int
) -> tuple[str, tables.Task, tables.Attempt]:
    """Host, task and attempt, locked in this order; of the host its name. Raises :class:`EpochStale`,
    :class:`AttemptMismatch`.
    """
    host_name = await sessions.fence(db, actor=actor, epoch=epoch)
    assert actor.host_id is not None, "agent credentials are bound to a host"
    task = await task_queries.lock_tried(db, attempt_id=attempt_id, host_id=actor.host_id)
    if task is None:
        raise AttemptMismatch("This host has no such attempt.", hint="End and remove what runs of it.")
    row = tables.Attempt
    attempt = await db.scalar(
        select(row)
        .where(row.id == attempt_id)
        .with_for_update(key_share=True)
        .execution_options(populate_existing=True)
    )
    assert attempt is not None, "attempts are not deleted"
    return host_name, task, attempt


def _refuse(attempt: tables.Attempt) -> None:
    """Raise for an attempt that has ended."""
    if attempt.status == Status.LOST:
        raise LeaseExpired(
            "The attempt was given up: its host was silent for too long.",
            hint="End and remove what runs of it.",
        )
    if attempt.finished_at is not None:
        raise AttemptFinal(
            f"The attempt is {attempt.status}.",
            hint="End and remove what runs of it, then release it.",
            data={"status": attempt.status},
        )


async def _lease(
    db: AsyncSession, *, task: tables.Task, attempt: tables.Attempt, settings: Settings
) -> AttemptLease:
    go = task.nodes == 1 or await tries.may_start(db, task_id=task.id, number=attempt.number)
    held_up = attempt.ready_at is not None and not go
    return AttemptLease(
        lease_s=settings.attempt_lease_s,
        renew_in_s=BARRIER_PACE_S if held_up else settings.attempt_renew_s,
        fence_s=settings.attempt_fence_s,
        fence_grace_s=settings.attempt_fence_grace_s,
        stop=attempt.stop_reason is not None,
        stop_reason=attempt.stop_reason,
        go=go,
    )


def _lease_columns(epoch: int, settings: Settings) -> dict[str, Any]:
    """What every sign of life of an attempt writes."""
    return {
        "epoch": epoch,
        "lease_expires_at": func.now() + timedelta(seconds=settings.attempt_lease_s),
        "lost_at": func.now() + timedelta(seconds=settings.attempt_lost_s),
    }


async def _renewed(
    db: AsyncSession, *, attempt: tables.Attempt, epoch: int, settings: Settings, **values: Any
) -> tables.Attempt:
    row = tables.Attempt
    renewed: tables.Attempt | None = await db.scalar(
        update(row)
        .where(row.id == attempt.id)
        .values(**_lease_columns(epoch, settings), **values)
        .returning(row)
        .execution_options(populate_existing=True, synchronize_session=False)
    )
    assert renewed is not None, "the row is locked"
    return renewed


async def accept(
    db: AsyncSession, *, actor: Actor, attempt_id: str, body: AttemptWrite, settings: Settings
) -> AttemptLease:
    """The host has it and will run it: from now on a lease runs. Nothing may be started before."""
    _, task, attempt = await _locked(db, actor=actor, attempt_id=attempt_id, epoch=body.epoch)
    _refuse(attempt)
    if attempt.status == Status.ASSIGNED:
        raise AttemptFinal("The attempt was not claimed.", hint="Claim it first.")
    if attempt.status == Status.CLAIMED:
        attempt = await lifecycle.move(
            db,
            attempt=attempt,
            to=Status.ACCEPTED,
            accepted_at=func.now(),
            reason=str(Reason.CREATING),
            **_lease_columns(body.epoch, settings),
        )
    else:
        attempt = await _renewed(db, attempt=attempt, epoch=body.epoch, settings=settings)
    return await _lease(db, task=task, attempt=attempt, settings=settings)


async def start(
    db: AsyncSession, *, actor: Actor, attempt_id: str, body: AttemptStart, settings: Settings
) -> None:
    """Its process runs. The timeout counts from now; with several hosts, from the start of the last one."""
    host_name, task, attempt = await _locked(db, actor=actor, attempt_id=attempt_id, epoch=body.epoch)
    _refuse(attempt)
    if attempt.status == Status.RUNNING:
        return
    if attempt.status != Status.ACCEPTED:
        raise AttemptFinal("The attempt was not accepted.", hint="Accept it first.")
    if task.nodes > 1 and not await tries.may_start(db, task_id=task.id, number=attempt.number):
        raise AttemptFinal(
            "Not all hosts of the task are ready.", hint="Start nothing before an answer says `go`."
        )
    told = body.detail.replace("\x00", "")
    await lifecycle.move(
        db,
        attempt=attempt,
        to=Status.RUNNING,
        started_at=func.now(),
        reason=str(Reason.READY),
        message=told if attempt.stop_reason is None else attempt.message,
        **_lease_columns(body.epoch, settings),
    )
    if task.status == TaskStatus.ASSIGNED and await tries.all_started(db, task=task):
        where = f"{host_name}. {told}" if task.nodes == 1 else f"{task.nodes} hosts."
        await tasks.move(
            db,
            task=task,
            to=TaskStatus.RUNNING,
            reason=Reason.READY,
            message=f"Runs on {where}".rstrip(),
            actor=actor,
            started_at=func.now(),
            deadline_at=func.least(func.now() + timedelta(seconds=task.max_lifetime_s), task.stop_at),
        )


async def renew(
    db: AsyncSession, *, actor: Actor, attempt_id: str, body: AttemptRenewal, settings: Settings
) -> AttemptLease:
    """It is still being worked on. Answers whether it is to be ended, and whether it may start."""
    _, task, attempt = await _locked(db, actor=actor, attempt_id=attempt_id, epoch=body.epoch)
    _refuse(attempt)
    if attempt.status == Status.ASSIGNED:
        raise AttemptFinal("The attempt was not claimed.", hint="Claim it first.")
    ready = {"ready_at": func.now()} if body.ready and attempt.ready_at is None else {}
    attempt = await _renewed(db, attempt=attempt, epoch=body.epoch, settings=settings, **ready)
    return await _lease(db, task=task, attempt=attempt, settings=settings)


async def progress(db: AsyncSession, *, actor: Actor, attempt_id: str, body: AttemptProgress) -> None:
    """What the task says of itself; kept with the task, and told to those who watch it."""
    _, task, attempt = await _locked(db, actor=actor, attempt_id=attempt_id, epoch=body.epoch)
    _refuse(attempt)
    if attempt.rank != 0 or (task.progress, task.progress_message) == (body.progress, body.message):
        return
    row = tables.Task
    await db.execute(
        update(row)
        .where(row.id == task.id)
        .values(progress=body.progress, progress_message=body.message.replace("\x00", ""))
        .execution_options(synchronize_session=False)
    )
    await events.record(
        db,
        kind="task.progress",
        subject_type="task",
        subject_id=task.id,
        actor=actor,
        message=body.message.replace("\x00", ""),
        data={"progress": body.progress, "attempt": attempt.number},
        customer_id=task.customer_id,
        user_id=task.owner_id,
        workspace_id=task.workspace_id,
    )


async def complete(db: AsyncSession, *, actor: Actor, attempt_id: str, body: AttemptResult) -> None:
    """It has ended. The result counts once; what it holds is given back by ``release``."""
    _, task, attempt = await _locked(db, actor=actor, attempt_id=attempt_id, epoch=body.epoch)
    if attempt.status == Status.ASSIGNED:
        raise AttemptFinal("The attempt was not claimed.", hint="Claim it first.")
    outcome = _outcome(attempt, body)
    measured = {
        "exit_code": body.exit_code,
        "peak_gpu_memory_bytes": body.peak_gpu_memory_bytes,
        "peak_memory_bytes": body.peak_memory_bytes,
    }
    if attempt.finished_at is not None:
        if attempt.status == outcome and attempt.exit_code == body.exit_code:
            return
        _refuse(attempt)
    reason = Reason(attempt.stop_reason or body.reason)
    if outcome in (Status.SUCCEEDED, Status.FAILED):
        reason = Reason(body.reason)
    message = body.message.replace("\x00", "") or _PLAIN[outcome]
    if attempt.stop_reason is not None and outcome in (Status.CANCELLED, Status.PREEMPTED):
        message = attempt.message or message  # who wanted its end knows why; its agent only that it did
    attempt = await lifecycle.move(
        db, attempt=attempt, to=outcome, reason=str(reason), message=message, **measured
    )
    await settle(db, task=task, attempt=attempt, actor=actor)


_PLAIN = {
    Status.SUCCEEDED: "Done: exit code 0.",
    Status.FAILED: "It failed.",
    Status.CANCELLED: "Stopped.",
    Status.TIMED_OUT: "It ran longer than its timeout.",
    Status.LOST: "Its agent found nothing of it.",
    Status.PREEMPTED: "Ended here to go on elsewhere.",
}


def _outcome(attempt: tables.Attempt, body: AttemptResult) -> Status:
    """How it ended: a process that ended by itself keeps its result, whoever wanted to stop it meanwhile."""
    if body.status in (AttemptOutcome.SUCCEEDED, AttemptOutcome.FAILED, AttemptOutcome.TIMED_OUT):
        return Status(body.status)
    if body.status is AttemptOutcome.LOST:
        return Status.LOST
    reason = Reason(attempt.stop_reason) if attempt.stop_reason else Reason.CANCELLED
    if reason is Reason.TIMEOUT:
        return Status.TIMED_OUT
    return Status.PREEMPTED if reason in lifecycle.GIVES_WAY else Status.CANCELLED


async def settle(db: AsyncSession, *, task: tables.Task, attempt: tables.Attempt, actor: Actor) -> None:
    """Tell its task of the end of an attempt, once all of the try have ended. Until then a loop looks after
    the others."""
    found = await tries.of(db, task=task)
    if found.live or attempt.number != task.generation:
        notify(db, tries.ENDS)
        return
    verdict = found.verdict()
    row = tables.Task
    current = await db.scalar(
        update(row)
        .where(row.id == task.id)
        .values(exit_code=verdict.exit_code)
        .returning(row)
        .execution_options(populate_existing=True, synchronize_session=False)
    )
    assert current is not None, "the row is locked"
    if current.finished_at is None and current.status != TaskStatus.PENDING:
        await tasks.attempt_ended(
            db,
            task=current,
            outcome=str(verdict.outcome),
            reason=verdict.reason,
            message=verdict.message,
            actor=actor,
        )


async def release(db: AsyncSession, *, actor: Actor, attempt_id: str, body: AttemptWrite) -> None:
    """The proof that nothing of it is left on the host: its GPUs are free."""
    _, task, attempt = await _locked(db, actor=actor, attempt_id=attempt_id, epoch=body.epoch)
    if attempt.finished_at is None:
        if attempt.status == Status.ASSIGNED:
            raise AttemptFinal("The attempt was not claimed.", hint="Claim it first.")
        message = "Its host found nothing of it, and knows no result."
        attempt = await lifecycle.move(
            db, attempt=attempt, to=Status.LOST, reason=str(Reason.PROCESS_LOST), message=message
        )
        await settle(db, task=task, attempt=attempt, actor=actor)
    await lifecycle.release(db, attempt=attempt, proof="absent")


async def granted(db: AsyncSession, *, host_id: str) -> tuple[list[GrantedAttempt], int]:
    """What the host may run, and how many attempts wait to be claimed by it."""
    row = tables.Attempt
    rows = await db.execute(
        select(row.id, row.status, row.stop_reason)
        .where(row.host_id == host_id, row.finished_at.is_(None))
        .order_by(row.id)
    )
    found = rows.all()
    return [
        GrantedAttempt(id=key, stop=reason is not None, stop_reason=reason)
        for key, status, reason in found
        if status != Status.ASSIGNED
    ], sum(status == Status.ASSIGNED for _, status, _ in found)


async def host_rebooted(db: AsyncSession, *, host: tables.Host, actor: Actor) -> int:
    """A new boot id proves that nothing of the old boot runs: end and release all of it."""
    return await _give_up(
        db,
        host_id=host.id,
        attempt_ids=await _unreleased(db, host_id=host.id),
        reason=Reason.HOST_REBOOTED,
        message=f"Host {host.name} was restarted.",
        proof="reboot",
        actor=actor,
    )


async def _unreleased(db: AsyncSession, *, host_id: str) -> list[str]:
    held = tables.Placement
    found = await db.scalars(
        select(tables.Attempt.id)
        .join(held, held.attempt_id == tables.Attempt.id)
        .where(held.host_id == host_id, held.released_at.is_(None), tables.Attempt.claimed_at.is_not(None))
        .order_by(tables.Attempt.id)
    )
    return list(found.all())


async def take_back(db: AsyncSession, *, task: tables.Task, attempt: tables.Attempt, actor: Actor) -> None:
    """End an attempt that its host has never asked for; the task waits again. All are locked."""
    message = "Its host has not asked for it."
    await lifecycle.stop(db, attempt=attempt, reason=Reason.HOST_SILENT, message=message)
    await settle(db, task=task, attempt=attempt, actor=actor)


async def give_up(db: AsyncSession, *, attempt_id: str, actor: Actor) -> bool:
    """Its agent has been silent for so long that the attempt has surely ended there. False: it was heard."""
    row = tables.Attempt
    host_id = await db.scalar(select(row.host_id).where(row.id == attempt_id))
    if host_id is None or await holds.lock_host(db, host_id=host_id) is None:
        return False
    overdue = await db.scalar(select(row.id).where(row.id == attempt_id, row.lost_at < func.now()))
    if overdue is None:
        return False
    done = await _give_up(
        db,
        host_id=host_id,
        attempt_ids=[attempt_id],
        reason=Reason.LEASE_LOST,
        message="Its host was silent for longer than an attempt may go on alone.",
        proof="fence",
        actor=actor,
    )
    return done > 0


async def _give_up(
    db: AsyncSession,
    *,
    host_id: str,
    attempt_ids: list[str],
    reason: Reason,
    message: str,
    proof: str,
    actor: Actor,
) -> int:
    """The host is locked."""
    row = tables.Attempt
    for attempt_id in attempt_ids:
        task_id = await db.scalar(select(row.task_id).where(row.id == attempt_id))
        task = None if task_id is None else await task_queries.lock(db, task_id=task_id)
        attempt = await db.scalar(
            select(row)
            .where(row.id == attempt_id, row.host_id == host_id)
            .with_for_update(key_share=True)
            .execution_options(populate_existing=True)
        )
        assert task is not None, "attempts keep their task"
        assert attempt is not None, "attempts are not deleted"
        if attempt.finished_at is None:
            attempt = await lifecycle.move(
                db, attempt=attempt, to=Status.LOST, reason=str(reason), message=message
            )
            await settle(db, task=task, attempt=attempt, actor=actor)
        await lifecycle.release(db, attempt=attempt, proof=proof)
    return len(attempt_ids)
