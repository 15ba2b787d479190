"""What Prometheus is told about the fleet: hosts, GPUs, who waits, and how well things go.

Told by the server that leads alone, so that nothing is counted twice over several servers.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from remotegpu import exposition
from remotegpu.exposition import family, labels
from remotegpu_server.db import samples

Row = Any

_HOSTS = text("""
    SELECT id, name, connection, operational, health, coalesce(hostname, name) AS hostname,
           extract(epoch FROM now() - last_heartbeat_at)::float8 AS age_s
    FROM hosts WHERE operational <> 'retired' ORDER BY name
""")

_GPUS = text("""
    SELECT g.uuid, g.index, g.host_id, g.product, g.model, g.simulated, g.health, g.mig_enabled,
           coalesce(h.hostname, h.name) AS hostname, h.connection,
           EXISTS (SELECT FROM allocations a WHERE a.gpu_id = g.id AND a.released_at IS NULL) AS held
    FROM gpus g JOIN hosts h ON h.id = g.host_id
    WHERE h.operational <> 'retired' AND g.health <> 'missing' ORDER BY h.name, g.index, g.uuid
""")

_HELD = text("""
    SELECT g.uuid, coalesce(h.hostname, h.name) AS hostname, w.name AS workspace, c.name AS customer,
           g.simulated, sum(a.gpu_fraction) AS fraction
    FROM allocations a JOIN gpus g ON g.id = a.gpu_id JOIN hosts h ON h.id = g.host_id
    JOIN workspaces w ON w.id = a.workspace_id JOIN customers c ON c.id = a.customer_id
    WHERE a.released_at IS NULL GROUP BY 1, 2, 3, 4, 5 ORDER BY 2, 1
""")

_WAITING = text("""
    SELECT kind, count(at) AS waiting, coalesce(extract(epoch FROM now() - min(at)), 0)::float8 AS longest_s
    FROM (VALUES ('environment'), ('task')) AS kinds (kind) LEFT JOIN (
        SELECT 'environment' AS kind, created_at AS at FROM environments WHERE status = 'pending'
        UNION ALL SELECT 'task', created_at FROM tasks WHERE status = 'pending'
    ) asks USING (kind) GROUP BY kind ORDER BY kind
""")

_STATES = text("""
    SELECT 'environment' AS kind, status, count(*) AS n FROM environments
    WHERE status NOT IN ('deleted', 'stopped') GROUP BY 1, 2
    UNION ALL
    SELECT 'task', status, count(*) FROM tasks
    WHERE status IN ('pending', 'assigned', 'running') GROUP BY 1, 2
    ORDER BY 1, 2
""")

_STARTS = text("""
    SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY extract(epoch FROM p.placed_at - p.queued_at))
               AS wait_s,
           percentile_cont(0.5) WITHIN GROUP (ORDER BY extract(epoch FROM e.started_at - p.placed_at))
               FILTER (WHERE e.started_at >= p.placed_at AND e.generation = p.generation) AS spawn_s,
           count(*) AS starts
    FROM placements p LEFT JOIN environments e ON e.id = p.environment_id
    WHERE p.placed_at > now() - interval '1 hour'
""")

IDLE_BELOW_PERCENT = 1.0

_HOST_VALUES = (
    ("cpu_ratio", "Share of all CPUs in use.", "cpu_percent", 0.01),
    ("memory_used_bytes", "Memory in use.", "memory_used_bytes", 1),
    ("memory_total_bytes", "Memory.", "memory_total_bytes", 1),
    ("disk_used_bytes", "Used of the file system of the homes.", "disk_used_bytes", 1),
    ("disk_total_bytes", "Size of the file system of the homes.", "disk_total_bytes", 1),
    ("root_disk_used_bytes", "Used of the root file system.", "root_disk_used_bytes", 1),
    ("root_disk_total_bytes", "Size of the root file system.", "root_disk_total_bytes", 1),
    ("disk_read_bytes_per_second", "Read from disks.", "disk_read_bytes_per_s", 1),
    ("disk_written_bytes_per_second", "Written to disks.", "disk_write_bytes_per_s", 1),
    ("network_received_bytes_per_second", "Received.", "network_rx_bytes_per_s", 1),
    ("network_sent_bytes_per_second", "Sent.", "network_tx_bytes_per_s", 1),
    ("load1", "Load of one minute.", "load_1m", 1),
)


async def exposed(db: AsyncSession) -> AsyncIterator[str]:
    """The text, in pieces; other requests have their turn between them."""
    hosts = (await db.execute(_HOSTS)).all()
    gpus = (await db.execute(_GPUS)).all()
    measured = await samples.newest(db, host_ids=[host.id for host in hosts])
    for piece in (
        _hosts(hosts),
        _host_values(hosts, measured),
        _gpu_states(gpus, measured),
        await _held(db),
        await _queue(db),
    ):
        yield piece
        await asyncio.sleep(0)
    rows = [(_gpu_labels(gpu), doc) for gpu in gpus if (doc := _document(gpu, measured)) is not None]
    for piece in exposition.gpus(rows):
        yield piece
        await asyncio.sleep(0)


def _gpu_labels(gpu: Row) -> str:
    return exposition.gpu_labels(
        index=gpu.index, uuid=gpu.uuid, product=gpu.product, hostname=gpu.hostname, simulated=gpu.simulated
    )


def _document(gpu: Row, measured: dict[str, samples.Sample]) -> samples.Document | None:
    sample = measured.get(gpu.host_id)
    return None if sample is None else sample.gpus.get(gpu.uuid)


def _hosts(hosts: list[Row] | Any) -> str:
    counts: dict[tuple[str, str], int] = {}
    for host in hosts:
        key = (host.connection, host.operational)
        counts[key] = counts.get(key, 0) + 1
    return "".join(
        [
            *family(
                "remotegpu_hosts",
                "gauge",
                "Hosts by state.",
                (
                    (labels(connection=connection, operational=operational), count)
                    for (connection, operational), count in sorted(counts.items())
                ),
            ),
            *family(
                "remotegpu_host_online",
                "gauge",
                "1 while its agent is heard.",
                ((labels(host=host.name), float(host.connection == "online")) for host in hosts),
            ),
            *family(
                "remotegpu_host_heartbeat_age_seconds",
                "gauge",
                "Since its last heartbeat.",
                ((labels(host=host.name), host.age_s) for host in hosts),
            ),
        ]
    )


def _host_values(hosts: Any, measured: dict[str, samples.Sample]) -> str:
    found = [(labels(host=host.name), measured[host.id].host) for host in hosts if host.id in measured]
    return "".join(
        line
        for name, words, field, scale in _HOST_VALUES
        for line in family(
            f"remotegpu_host_{name}",
            "gauge",
            words,
            ((where, None if doc.get(field) is None else doc[field] * scale) for where, doc in found),
        )
    )


def _gpu_states(gpus: Any, measured: dict[str, samples.Sample]) -> str:
    """Of GPUs and MIG instances that take work themselves."""
    states: dict[tuple[str, str, str], int] = {}
    idle: dict[str, int] = {}
    free: dict[tuple[str, str], int] = {}
    partly: set[tuple[str, str]] = set()
    for gpu in gpus:
        if gpu.mig_enabled:
            continue
        simulated = str(gpu.simulated).lower()
        place = (gpu.host_id, simulated)
        usable = gpu.health == "healthy" and gpu.connection == "online"
        state = "held" if gpu.held else "free" if usable else "unusable"
        states[gpu.model, simulated, state] = states.get((gpu.model, simulated, state), 0) + 1
        if gpu.held:
            partly.add(place)
            if _is_idle(_document(gpu, measured)):
                idle[simulated] = idle.get(simulated, 0) + 1
            else:
                idle.setdefault(simulated, 0)
        elif usable:
            free[place] = free.get(place, 0) + 1
    broken = {
        simulated: sum(n for place, n in free.items() if place[1] == simulated and place in partly)
        / sum(n for place, n in free.items() if place[1] == simulated)
        for simulated in {place[1] for place in free}
    }
    return "".join(
        [
            *family(
                "remotegpu_gpus",
                "gauge",
                "GPUs and MIG instances by what becomes of them.",
                (
                    (labels(model=model, simulated=simulated, state=state), count)
                    for (model, simulated, state), count in sorted(states.items())
                ),
            ),
            *family(
                "remotegpu_gpus_held_idle",
                "gauge",
                "Held GPUs on which nothing ran since the last heartbeat.",
                ((labels(simulated=simulated), count) for simulated, count in sorted(idle.items())),
            ),
            *family(
                "remotegpu_gpu_fragmentation_ratio",
                "gauge",
                "Share of free GPUs that are on hosts of which others are held.",
                ((labels(simulated=simulated), share) for simulated, share in sorted(broken.items())),
            ),
        ]
    )


def _is_idle(doc: samples.Document | None) -> bool:
    """Measured, and nothing of it: what nobody measured is not idle."""
    if doc is None or doc.get("utilization_percent") is None:
        return False
    highest: float = doc.get("highest", {}).get("utilization_percent", doc["utilization_percent"])
    return highest < IDLE_BELOW_PERCENT


async def _held(db: AsyncSession) -> str:
    return "".join(
        family(
            "remotegpu_gpu_held_ratio",
            "gauge",
            "How much of a GPU a workspace holds.",
            [
                (
                    labels(
                        UUID=row.uuid,
                        Hostname=row.hostname,
                        workspace=row.workspace,
                        customer=row.customer,
                        simulated=str(row.simulated).lower(),
                    ),
                    row.fraction,
                )
                for row in await db.execute(_HELD)
            ],
        )
    )


async def _queue(db: AsyncSession) -> str:
    waiting = (await db.execute(_WAITING)).all()
    states = (await db.execute(_STATES)).all()
    starts = (await db.execute(_STARTS)).one()
    seconds = "Median of the starts of the last hour."
    return "".join(
        [
            *family(
                "remotegpu_queue_length",
                "gauge",
                "Requests that wait for a place.",
                ((labels(kind=row.kind), row.waiting) for row in waiting),
            ),
            *family(
                "remotegpu_queue_longest_wait_seconds",
                "gauge",
                "Of the one that waits longest; 0: nobody waits.",
                ((labels(kind=row.kind), row.longest_s) for row in waiting),
            ),
            *family(
                "remotegpu_workloads",
                "gauge",
                "Environments and tasks that are not over.",
                ((labels(kind=row.kind, status=row.status), row.n) for row in states),
            ),
            *family("remotegpu_starts_last_hour", "gauge", "Placements.", [("", starts.starts)]),
            *family("remotegpu_start_wait_median_seconds", "gauge", seconds, [("", starts.wait_s)]),
            *family("remotegpu_spawn_median_seconds", "gauge", seconds, [("", starts.spawn_s)]),
        ]
    )
