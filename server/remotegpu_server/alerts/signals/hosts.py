"""Signals of hosts."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from importlib import metadata
from typing import Any

from sqlalchemy import func, select

from remotegpu_server.alerts.signals.reading import UNEXPECTED, Read, Reading, View, percent, signal
from remotegpu_server.db import tables
from remotegpu_server.db.samples import last_measured

_host = tables.Host
_VERSION = metadata.version("remotegpu")


@signal(
    name="host_silent_s",
    object_type="host",
    unit="s",
    maximum=7 * 86400,
    description="Seconds since the last heartbeat of a host that is unreachable or lost.",
    advice="Look at its power, network and agent (`systemctl status remotegpu-agent`). What runs there keeps "
    "its GPUs until it is heard again or an admin releases it.",
)
async def host_silent(view: View) -> list[Reading]:
    """Judged by the liveness loop, which decides nothing while the server itself seems cut off."""
    silent = func.extract("epoch", func.now() - _host.last_heartbeat_at)
    rows = await view.db.execute(
        select(_host.id, _host.name, _host.labels, _host.connection, silent).where(
            _host.connection != "never", _host.operational.not_in(UNEXPECTED)
        )
    )
    return [
        Reading(
            object_id=host_id,
            name=name,
            host_labels=labels,
            value=float(silent_s) if connection in ("unreachable", "lost") else 0.0,
        )
        for host_id, name, labels, connection, silent_s in rows
    ]


@signal(
    name="hosts_silent_percent",
    object_type="fleet",
    unit="%",
    maximum=100,
    description="Share of the hosts that are silent, where there are three or more.",
    advice="So many at once say more about this server's network than about the hosts. Until it is over no "
    "host is judged.",
)
async def hosts_silent(view: View) -> list[Reading]:
    """By the heartbeats alone: the liveness loop holds still in this case."""
    silent = _host.last_heartbeat_at < func.now() - timedelta(seconds=view.settings.unreachable_after_s)
    total, quiet = (
        await view.db.execute(
            select(func.count(), func.count().filter(silent)).where(
                _host.connection != "never", _host.operational.not_in(UNEXPECTED)
            )
        )
    ).one()
    value = 100.0 * quiet / total if total >= 3 else 0.0
    return [Reading(object_id="all", name="all hosts", value=value, detail=f"{quiet} of {total}")]


@signal(
    name="agent_outdated",
    object_type="host",
    unit="",
    maximum=1,
    description="1 where the agent's version is not the server's.",
    advice="Upgrade the agent: `remotegpu host add` does it again, and what runs goes on.",
    every_s=60.0,
)
async def agent_outdated(view: View) -> list[Reading]:
    rows = await view.db.execute(
        select(_host.id, _host.name, _host.labels, _host.agent_version).where(
            _host.connection == "online", _host.agent_version.is_not(None)
        )
    )
    return [
        Reading(
            object_id=host_id,
            name=name,
            host_labels=labels,
            value=float(version != _VERSION),
            detail=f"{version}, not {_VERSION}" if version != _VERSION else "",
        )
        for host_id, name, labels, version in rows
    ]


_HOST_VALUES: dict[str, Callable[[dict[str, Any], tables.Host], float | None]] = {
    "host_cpu_percent": lambda sample, _: sample.get("cpu_percent"),
    "host_memory_percent": lambda sample, host: percent(sample.get("memory_used_bytes"), host.memory_bytes),
    "host_disk_percent": lambda sample, _: percent(
        sample.get("disk_used_bytes"), sample.get("disk_total_bytes")
    ),
}


def _host_value(name: str) -> Read:
    async def read(view: View) -> list[Reading]:
        samples = await view.samples()
        return [
            Reading(
                object_id=host.id,
                name=host.name,
                host_labels=host.labels,
                value=_HOST_VALUES[name](samples[host.id].host, host) if host.id in samples else None,
            )
            for host in await view.hosts()
        ]

    return read


for _name, _what, _advice in (
    ("host_cpu_percent", "CPU use of the host.", "See what runs there; ask for fewer CPUs, or spread it."),
    (
        "host_memory_percent",
        "Memory use of the host.",
        "See what runs there. The kernel kills something when it is full.",
    ),
    (
        "host_disk_percent",
        "Use of the disk that holds the homes.",
        "Remove old homes and images (`remotegpu volume list --host HOST`), or add space.",
    ),
):
    signal(name=_name, object_type="host", unit="%", maximum=100, description=_what, advice=_advice)(
        _host_value(_name)
    )


@signal(
    name="metrics_missing_s",
    object_type="host",
    unit="s",
    maximum=86400,
    description="Seconds since the last measurement of a host that is online.",
    advice="Look at the agent's log on the host.",
)
async def metrics_missing(view: View) -> list[Reading]:
    hosts = [host for host in await view.hosts() if host.connection == "online"]
    samples = await view.samples()
    silent = [host.id for host in hosts if host.id not in samples]
    measured = await last_measured(view.db, host_ids=silent) if silent else {}
    now = await view.db.scalar(select(func.now()))
    assert now is not None
    readings = []
    for host in hosts:
        last = samples[host.id].at if host.id in samples else measured.get(host.id, host.registered_at)
        value = None if last is None else max((now - last).total_seconds(), 0.0)
        readings.append(Reading(object_id=host.id, name=host.name, host_labels=host.labels, value=value))
    return readings
