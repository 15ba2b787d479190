"""What must hold at every moment, as SQL that finds the rows where it does not.

The numbers are those of the reliability rules. Every query returns zero rows on a healthy database; tests
run them after every race and fault, an operator can at any time (``remotegpu-server check-invariants``), and
a loop does at a slow pace for ``/metrics``. What no query sees is proven by tests: ``docs/testing.md``.
"""

from __future__ import annotations

import structlog
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from remotegpu_server import observability
from remotegpu_server.db.transitions import TRANSITIONS
from remotegpu_server.loops import Loop, Work

_log = structlog.get_logger(__name__)
_EDGES = ", ".join(f"('{before}', '{after}')" for before in TRANSITIONS for after in TRANSITIONS[before])
_HOLDER = """CASE q.subject_type WHEN 'user' THEN user_id WHEN 'workspace' THEN workspace_id
              ELSE customer_id END"""
_LIMIT = """CASE WHEN q.granted_until > now() THEN greatest(q.limit_value, q.granted_value)
              ELSE q.limit_value END"""
_LIMITED_SINCE = """greatest(q.changed_at, CASE WHEN q.granted_until <= now() THEN q.granted_until END)"""
"""A limit that was lowered, or whose raise lapsed, says nothing about what was granted before."""

CHECKS: dict[str, str] = {
    "I1 one live allocation per GPU, or shares within its memory": """
        SELECT a.gpu_id FROM allocations a JOIN gpus g ON g.id = a.gpu_id WHERE a.released_at IS NULL
        GROUP BY a.gpu_id, g.memory_total_bytes
        HAVING count(*) > 1
           AND (bool_or(a.memory_bytes IS NULL) OR sum(a.memory_bytes) > g.memory_total_bytes)
    """,
    "I1 a GPU that is divided holds nothing itself": """
        SELECT a.id FROM allocations a JOIN gpus g ON g.id = a.gpu_id
        JOIN hosts h ON h.id = g.host_id
        WHERE a.released_at IS NULL AND g.mig_enabled AND a.allocated_at > h.registered_at
    """,
    "I1 one live placement per environment": """
        SELECT environment_id FROM placements WHERE released_at IS NULL AND environment_id IS NOT NULL
        GROUP BY environment_id HAVING count(*) > 1
    """,
    "I2 GPUs within the limit at the last grant": f"""
        SELECT q.id FROM quotas q JOIN LATERAL (
            SELECT sum(gpu_fraction) AS used, max(allocated_at) AS granted FROM allocations
            WHERE released_at IS NULL AND {_HOLDER} = q.subject_id
        ) live ON true
        WHERE q.resource = 'gpus' AND live.used > {_LIMIT} + 1e-6 AND live.granted > {_LIMITED_SINCE}
    """,  # noqa: S608  the parts are ours
    "I2 CPUs and memory within the limit at the last grant": f"""
        SELECT q.id FROM quotas q JOIN LATERAL (
            SELECT sum(cpus) AS cpus, sum(memory_bytes) AS memory_bytes, max(placed_at) AS granted
            FROM placements
            WHERE released_at IS NULL AND {_HOLDER} = q.subject_id
        ) live ON true
        WHERE live.granted > {_LIMITED_SINCE}
          AND (q.resource = 'cpus' AND live.cpus > {_LIMIT}
            OR q.resource = 'memory_bytes' AND live.memory_bytes > {_LIMIT})
    """,  # noqa: S608  the parts are ours
    "I2 environments within the limit at the last request": f"""
        SELECT q.id FROM quotas q JOIN LATERAL (
            SELECT count(*) AS used, max(queued_at) AS granted FROM environments
            WHERE status NOT IN ('stopped', 'failed', 'deleted')
              AND CASE q.subject_type WHEN 'user' THEN owner_id WHEN 'workspace' THEN workspace_id
                  ELSE customer_id END = q.subject_id
        ) live ON true
        WHERE q.resource = 'environments' AND live.used > {_LIMIT} AND live.granted > {_LIMITED_SINCE}
    """,  # noqa: S608  the parts are ours
    "I2 a limit of a policy is what the policy says": """
        SELECT q.id FROM quotas q
        LEFT JOIN quota_policy_limits l ON (l.policy_id, l.resource) = (q.policy_id, q.resource)
        WHERE q.policy_id IS NOT NULL
          AND (q.limit_value, q.window_s) IS DISTINCT FROM (l.limit_value, l.window_s)
    """,
    "I3 a host in maintenance or retired holds nothing": """
        SELECT h.id FROM hosts h JOIN placements p ON p.host_id = h.id AND p.released_at IS NULL
        WHERE h.operational IN ('maintenance', 'retired')
    """,
    "a dedicated host was given to nobody else since": """
        SELECT p.id FROM placements p
        JOIN dedications d ON d.host_id = p.host_id AND d.status IN ('active', 'grace', 'cleaning')
        WHERE p.placed_at > d.activated_at
          AND (p.customer_id <> d.customer_id OR p.workspace_id <> COALESCE(d.workspace_id, p.workspace_id))
    """,
    "a dedication has ended only when each step of its clean-up is done": """
        SELECT d.id FROM dedications d WHERE d.status = 'ended' AND (
            SELECT count(*) FROM dedication_steps s WHERE s.dedication_id = d.id AND s.status = 'done') <> 4
    """,
    "I3 no host is over-booked by a grant": """
        SELECT h.id FROM hosts h JOIN placements p ON p.host_id = h.id AND p.released_at IS NULL
        GROUP BY h.id, h.cpus, h.memory_bytes, h.registered_at
        HAVING (sum(p.cpus) > h.cpus OR sum(p.memory_bytes) > h.memory_bytes)
           AND max(p.placed_at) > h.registered_at
    """,
    "I4 an allocation, its placement and its GPU are on one host": """
        SELECT a.id FROM allocations a
        JOIN placements p ON p.id = a.placement_id JOIN gpus g ON g.id = a.gpu_id
        WHERE a.host_id <> p.host_id OR a.host_id <> g.host_id
           OR a.environment_id IS DISTINCT FROM p.environment_id
           OR a.attempt_id IS DISTINCT FROM p.attempt_id
           OR a.user_id <> p.user_id OR a.customer_id <> p.customer_id
    """,
    "I4 a placement belongs to the owner of its environment and volume": """
        SELECT p.id FROM placements p JOIN environments e ON e.id = p.environment_id
        JOIN volumes v ON v.id = p.volume_id WHERE p.user_id <> e.owner_id OR v.owner_id <> e.owner_id
    """,
    "I4 nothing runs on a home that is being removed": """
        SELECT p.id FROM placements p JOIN volumes v ON v.id = p.volume_id
        WHERE p.released_at IS NULL AND v.removal_requested_at IS NOT NULL
    """,
    "I4 a home is removed on the word of its agent": """
        SELECT v.id FROM volumes v LEFT JOIN volume_removals r ON r.volume_id = v.id
        WHERE v.removal_requested_at IS NOT NULL
        GROUP BY v.id, v.removed_at
        HAVING (v.removed_at IS NOT NULL) <> coalesce(bool_and(r.removed_at IS NOT NULL), false)
    """,
    "I4 a home is measured by a host that reaches it": """
        SELECT v.id FROM volumes v JOIN hosts h ON h.id = v.measuring_host_id
        WHERE v.host_id IS NOT NULL AND v.host_id <> h.id OR v.removal_requested_at IS NOT NULL
    """,
    "I3 an allocation counts as the part of a GPU that it is": """
        SELECT a.id FROM allocations a JOIN gpus g ON g.id = a.gpu_id
        WHERE a.released_at IS NULL AND abs(a.gpu_fraction - CASE WHEN a.memory_bytes IS NULL
            THEN g.gpu_fraction ELSE least(1, a.memory_bytes / g.memory_total_bytes::float) END) > 0.01
    """,
    "I4 a part was asked for, and is of the kind that was asked for": """
        SELECT a.id FROM allocations a JOIN environments e ON e.id = a.environment_id
        JOIN placements p ON p.id = a.placement_id AND p.generation = e.generation
        JOIN gpus g ON g.id = a.gpu_id
        WHERE a.released_at IS NULL AND (a.memory_bytes IS DISTINCT FROM e.gpu_memory_bytes
            OR g.mig_profile IS DISTINCT FROM e.mig_profile
            OR (e.gpu_models <> '{}' AND g.model <> ALL (e.gpu_models)))
    """,
    "I5 an ended environment holds nothing": """
        SELECT p.id FROM placements p JOIN environments e ON e.id = p.environment_id
        WHERE p.released_at IS NULL AND e.status IN ('pending', 'stopped', 'deleted')
    """,
    "I5 a placement holds the GPUs that were asked for": """
        SELECT e.id FROM environments e JOIN placements p ON p.environment_id = e.id AND p.released_at IS NULL
        LEFT JOIN allocations a ON a.placement_id = p.id AND a.released_at IS NULL
        GROUP BY e.id, e.gpus HAVING count(a.id) <> e.gpus
    """,
    "I6 allocations are released with their placement": """
        SELECT a.id FROM allocations a JOIN placements p ON p.id = a.placement_id
        WHERE (a.released_at IS NULL) <> (p.released_at IS NULL)
    """,
    "I6 a live status has a live placement": """
        SELECT e.id FROM environments e
        WHERE e.status IN ('starting', 'running', 'stopping', 'unreachable') AND NOT EXISTS (
            SELECT 1 FROM placements p
            WHERE p.environment_id = e.id AND p.generation = e.generation AND p.released_at IS NULL)
    """,
    "I7 I10 I24 the database's own guards are in place": """
        SELECT guard FROM unnest(ARRAY[
            'environments.environment_transition', 'placements.release_once', 'allocations.release_once',
            'allocations.allocation_fits', 'hosts.epoch_grows',
            'tasks.tasks_status_transition', 'attempts.attempts_status_transition',
            'events.events_append_only', 'audit_records.audit_append_only', 'audit_records.audit_no_truncate'
        ]) AS guard
        EXCEPT
        SELECT tgrelid::regclass || '.' || tgname FROM pg_trigger WHERE tgenabled = 'O'
    """,
    "I10 every move of the last day is in the table": f"""
        SELECT id FROM events
        WHERE kind = 'environment.status' AND at > now() - interval '1 day'
          AND data->>'from' <> data->>'to' AND (data->>'from', data->>'to') NOT IN ({_EDGES})
    """,  # noqa: S608  the edges are ours
    "I11 what has ended says when and why": """
        SELECT id FROM environments
        WHERE status IN ('stopped', 'failed', 'deleted') AND (stopped_at IS NULL OR reason = '')
    """,
    "I12 a placement is of a generation that its environment had": """
        SELECT p.id FROM placements p JOIN environments e ON e.id = p.environment_id
        WHERE p.generation > e.generation OR (p.released_at IS NULL AND p.generation <> e.generation)
    """,
    "I20 nothing is placed before a host's first inventory": """
        SELECT p.id FROM placements p JOIN hosts h ON h.id = p.host_id
        WHERE p.released_at IS NULL AND (h.registered_at IS NULL OR h.epoch = 0)
    """,
    "I3 nothing starts in an archived workspace": """
        SELECT e.id FROM environments e JOIN workspaces w ON w.id = e.workspace_id
        WHERE w.status <> 'active' AND e.status NOT IN ('stopped', 'failed', 'deleted')
    """,
    "I23 secrets are wiped when the generation has ended": """
        SELECT id FROM environments
        WHERE status IN ('stopped', 'failed', 'deleted') AND secret_env IS NOT NULL
    """,
    "I24 the sealed audit trail has no gap": """
        SELECT max(sequence) FROM audit_records WHERE sequence IS NOT NULL
        HAVING max(sequence) - min(sequence) + 1 <> count(*)
    """,
    "I25 a suspended account has no live token": """
        SELECT t.id FROM tokens t JOIN users u ON u.id = t.user_id JOIN customers c ON c.id = u.customer_id
        WHERE t.kind = 'user' AND t.revoked_at IS NULL AND (u.status <> 'active' OR c.status <> 'active')
    """,
    "an ended environment has no stop time, no idle time and nothing that it offers": """
        SELECT id FROM environments
        WHERE status IN ('stopped', 'failed', 'deleted')
          AND (deadline_at IS NOT NULL OR idle_since IS NOT NULL OR endpoints <> '{}')
    """,
    "a row is in its table or in the history, never in both": """
        SELECT id FROM environments JOIN environments_history USING (id)
        UNION ALL SELECT id FROM placements JOIN placements_history USING (id)
        UNION ALL SELECT id FROM allocations JOIN allocations_history USING (id)
    """,
    "a saved image is of one workspace and content; a live save is of a start on its host": """
        SELECT id FROM images WHERE local AND (digest IS NULL OR visibility <> 'workspace')
        UNION ALL SELECT s.id FROM image_saves s LEFT JOIN placements p
            ON p.environment_id = s.environment_id AND p.generation = s.generation AND p.host_id = s.host_id
        WHERE s.status IN ('requested', 'saving') AND p.id IS NULL
    """,
    "I27 SSH keys are one line of type and key": """
        SELECT id FROM ssh_keys WHERE public_key !~ '^[a-z0-9@.-]+ [A-Za-z0-9+/]+=*$'
    """,
    "I2 tasks within the limit at the last grant": f"""
        SELECT q.id FROM quotas q JOIN LATERAL (
            SELECT count(DISTINCT (a.task_id, a.number)) AS used, max(placed_at) AS granted
            FROM placements p JOIN attempts a ON a.id = p.attempt_id
            WHERE released_at IS NULL AND {_HOLDER} = q.subject_id
        ) live ON true
        WHERE q.resource = 'tasks' AND live.used > {_LIMIT} AND live.granted > {_LIMITED_SINCE}
    """,  # noqa: S608  the parts are ours
    "I4 an attempt's placement is on its host, of its number, and its owner's": """
        SELECT p.id FROM placements p JOIN attempts a ON a.id = p.attempt_id JOIN tasks t ON t.id = a.task_id
        WHERE p.host_id <> a.host_id OR p.generation <> a.number OR p.user_id <> t.owner_id
           OR p.workspace_id <> t.workspace_id
    """,
    "I6 a live attempt has a live placement, with the GPUs that were asked for": """
        SELECT a.id FROM attempts a JOIN tasks t ON t.id = a.task_id
        LEFT JOIN placements p ON p.attempt_id = a.id AND p.released_at IS NULL
        LEFT JOIN allocations g ON g.placement_id = p.id AND g.released_at IS NULL
        WHERE a.finished_at IS NULL
        GROUP BY a.id, t.gpus HAVING count(DISTINCT p.id) <> 1 OR count(g.id) <> t.gpus
    """,
    "I8 a task has live attempts exactly while it is assigned or runs, all of its present number": """
        SELECT t.id FROM tasks t LEFT JOIN attempts a ON a.task_id = t.id AND a.finished_at IS NULL
        GROUP BY t.id, t.status, t.generation
        HAVING (count(a.id) > 0) <> (t.status IN ('assigned', 'running'))
            OR bool_or(a.number <> t.generation)
    """,
    "I8 a try has an attempt for each rank, each on a host of its own": """
        SELECT a.task_id FROM attempts a JOIN tasks t ON t.id = a.task_id
        GROUP BY a.task_id, a.number, t.nodes
        HAVING count(*) <> t.nodes OR max(a.rank) + 1 <> t.nodes OR count(DISTINCT a.host_id) <> t.nodes
    """,
    "I8 nothing of a try starts before all of it are ready": """
        SELECT a.id FROM attempts a JOIN tasks t ON t.id = a.task_id AND t.nodes > 1
        JOIN attempts b ON (b.task_id, b.number) = (a.task_id, a.number) AND b.ready_at IS NULL
        WHERE a.started_at IS NOT NULL
    """,
    "I8 rank 0 of several is where the others find it": """
        SELECT a.id FROM attempts a JOIN tasks t ON t.id = a.task_id
        WHERE (a.rendezvous_port IS NOT NULL) <> (t.nodes > 1 AND a.rank = 0)
    """,
    "L1 one failure ends all of a try": """
        SELECT a.id FROM attempts a JOIN attempts b
            ON (b.task_id, b.number) = (a.task_id, a.number) AND b.finished_at < now() - interval '5 minutes'
            AND b.status <> 'succeeded'
        WHERE a.finished_at IS NULL AND a.stop_reason IS NULL
    """,
    "I9 an attempt's number is one that its task has reached": """
        SELECT a.id FROM attempts a JOIN tasks t ON t.id = a.task_id
        WHERE a.number > t.generation OR (t.status <> 'pending' AND t.retries > t.max_retries)
    """,
    "I11 an attempt that has ended says why": """
        SELECT id FROM attempts WHERE finished_at IS NOT NULL AND (reason = '' OR message = '')
    """,
    "I13 a task that succeeded has one attempt that did, on each of its hosts": """
        SELECT t.id FROM tasks t
        LEFT JOIN attempts a ON (a.task_id, a.number, a.status) = (t.id, t.generation, 'succeeded')
        WHERE t.status = 'succeeded' GROUP BY t.id, t.nodes HAVING count(a.id) <> t.nodes
    """,
    "I23 I25 secrets and tokens end with their attempt": """
        SELECT a.id FROM attempts a LEFT JOIN tokens t ON t.attempt_id = a.id AND t.revoked_at IS NULL
        WHERE a.finished_at IS NOT NULL AND (a.secret_env IS NOT NULL OR t.id IS NOT NULL)
    """,
    "L1 what an attempt holds is given back some day": """
        SELECT a.id FROM attempts a JOIN placements p ON p.attempt_id = a.id AND p.released_at IS NULL
        WHERE a.claimed_at IS NOT NULL AND a.lost_at IS NULL
    """,
    "I25 a workload's token ends with its generation": """
        SELECT t.id FROM tokens t JOIN environments e ON e.id = t.environment_id
        WHERE t.kind = 'workload' AND t.revoked_at IS NULL
          AND e.status IN ('pending', 'stopped', 'failed', 'deleted')
    """,
}


async def violations(db: AsyncSession | AsyncConnection) -> dict[str, list[str]]:
    """By invariant, the ids of the rows that break it. Empty when all hold."""
    found: dict[str, list[str]] = {}
    for name in CHECKS:
        rows = await _broken(db, name)
        if rows:
            found[name] = rows
    return found


async def _broken(db: AsyncSession | AsyncConnection, name: str) -> list[str]:
    rows = await db.execute(text(CHECKS[name]))
    return [str(row) for row in rows.scalars()]


async def assert_invariants(db: AsyncSession | AsyncConnection) -> None:
    """Raise :class:`AssertionError` with the broken invariants and their rows."""
    found = await violations(db)
    if found:
        raise AssertionError(f"invariants do not hold: {found}")


async def publish(work: Work) -> None:
    """Check everything, each in a transaction of its own; what is broken is counted and logged."""
    for name in CHECKS:
        async with work.session() as db:
            rows = await _broken(db, name)
        observability.INVARIANT_VIOLATIONS.labels(name).set(len(rows))
        if rows:
            _log.error("invariant_broken", invariant=name, rows=rows[:20], count=len(rows))


LOOP = Loop(name="invariants", every_s=300.0, run=publish)
