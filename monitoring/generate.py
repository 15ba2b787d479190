"""Writes the rules of Prometheus and the dashboards of Grafana; ``--check`` says whether they are current.

Rules and dashboards are made from the tables below, so that a metric is named in one place, and a test asks a
real Prometheus for every expression. Thresholds: docs/metrics.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One alert."""

    name: str
    expr: str
    duration: str
    severity: str
    says: str
    do: str


GPU = "GPU {{ $labels.gpu }} ({{ $labels.UUID }}) of {{ $labels.Hostname }}"
HOST = "Host {{ $labels.host }}"
_DISK = "100 * remotegpu_host_disk_used_bytes / remotegpu_host_disk_total_bytes"
_FB = "100 * DCGM_FI_DEV_FB_USED / (DCGM_FI_DEV_FB_USED + DCGM_FI_DEV_FB_FREE)"
_PERCENT = '{{ printf "%.0f" $value }} %'
_ERRORS = (
    'sum(rate(remotegpu_http_request_seconds_count{status=~"5.."}[5m]))'
    " / sum(rate(remotegpu_http_request_seconds_count[5m]))"
)
_P99 = (
    "histogram_quantile(0.99, sum by (le) (rate(remotegpu_http_request_seconds_bucket"
    '{route!~".*(workloads|claim|stream|follow|events).*"}[5m])))'
)

RULES: dict[str, tuple[Rule, ...]] = {
    "gpu": (
        Rule(
            name="GpuTemperatureHigh",
            expr="DCGM_FI_DEV_GPU_TEMP > 85",
            duration="3m",
            severity="warning",
            says=f"{GPU} is at {{{{ $value }}}} °C.",
            do="Look at its cooling and its power limit.",
        ),
        Rule(
            name="GpuTemperatureCritical",
            expr="DCGM_FI_DEV_GPU_TEMP > 95",
            duration="1m",
            severity="critical",
            says=f"{GPU} is at {{{{ $value }}}} °C.",
            do="Drain the host; the GPU throttles or switches itself off.",
        ),
        Rule(
            name="GpuMemoryUsageHigh",
            expr=f"{_FB} > 90",
            duration="5m",
            severity="warning",
            says=f"{_PERCENT} of the memory of {GPU} are in use.",
            do="Nothing, if its holder knows; a larger GPU or a smaller batch helps against out-of-memory.",
        ),
        Rule(
            name="GpuXidError",
            expr="changes(DCGM_FI_DEV_XID_ERRORS[10m]) > 0",
            duration="0m",
            severity="warning",
            says=f"{GPU} reported an XID error.",
            do="Look at `remotegpu gpu list`; fatal ones take the GPU out by themselves.",
        ),
        Rule(
            name="GpuEccUncorrected",
            expr="DCGM_FI_DEV_ECC_DBE_VOL_TOTAL > 0",
            duration="0m",
            severity="critical",
            says=f"{GPU} has uncorrected ECC errors.",
            do="Reset or replace it, then `remotegpu gpu check`.",
        ),
        Rule(
            name="GpuPowerCap",
            duration="15m",
            severity="info",
            expr="DCGM_FI_DEV_POWER_USAGE > DCGM_FI_DEV_POWER_MGMT_LIMIT",
            says=f"{GPU} draws {{{{ $value }}}} W, above its limit.",
            do="Look at its power supply and limit.",
        ),
        Rule(
            name="GPUDown",
            duration="3m",
            severity="critical",
            expr='sum by (model, simulated) (remotegpu_gpus{state="unusable"}) > 0',
            says="{{ $value }} GPUs of model {{ $labels.model }} take no work.",
            do="`remotegpu gpu list` says which and why.",
        ),
        Rule(
            name="GpusHeldIdle",
            duration="2h",
            severity="info",
            expr="sum by (simulated) (remotegpu_gpus_held_idle) > 0",
            says="{{ $value }} GPUs are held and idle.",
            do="Ask their holders, or set an idle policy.",
        ),
    ),
    "host": (
        Rule(
            name="HighCpuUsage",
            expr="100 * remotegpu_host_cpu_ratio > 85",
            duration="5m",
            severity="warning",
            says=f"{HOST} uses {_PERCENT} of its CPUs.",
            do="Look at what runs there.",
        ),
        Rule(
            name="HighMemoryUsage",
            duration="5m",
            severity="warning",
            expr="100 * remotegpu_host_memory_used_bytes / remotegpu_host_memory_total_bytes > 90",
            says=f"{HOST} uses {_PERCENT} of its memory.",
            do="Look at what runs there.",
        ),
        *(
            Rule(
                name=name,
                expr=f"{_DISK} > {percent}",
                duration=duration,
                severity=severity,
                says=f"The disk of the homes of host {{{{ $labels.host }}}} is {_PERCENT} full.",
                do="Delete old homes (`remotegpu volume list`) or enlarge the disk.",
            )
            for name, percent, duration, severity in (
                ("DiskSpaceLow", 85, "5m", "warning"),
                ("DiskSpaceHigh", 90, "3m", "critical"),
                ("DiskSpaceCritical", 95, "1m", "critical"),
            )
        ),
        Rule(
            name="AgentOffline",
            expr="remotegpu_host_heartbeat_age_seconds > 300",
            duration="0m",
            severity="critical",
            says=f"{HOST} has been silent for {{{{ humanizeDuration $value }}}}.",
            do="See whether the machine and `remotegpu-agent` run, and whether it reaches the server.",
        ),
    ),
    "services": (
        Rule(
            name="ServiceDown",
            expr='up{job=~"remotegpu.*"} == 0',
            duration="1m",
            severity="critical",
            says="{{ $labels.job }} on {{ $labels.instance }} cannot be scraped.",
            do="See whether it runs, and whether the token of the scrape is valid.",
        ),
        Rule(
            name="NobodyLeads",
            expr="(sum(remotegpu_leading) or vector(0)) < 1",
            duration="2m",
            severity="critical",
            says="No server runs the loops: nothing is placed, nobody is told.",
            do="Look at the logs of the servers and at PostgreSQL.",
        ),
        Rule(
            name="LoopStands",
            duration="2m",
            severity="critical",
            expr="time() - remotegpu_loop_last_tick_seconds > 600 and on (instance) remotegpu_leading == 1",
            says="The loop {{ $labels.loop }} has had no good pass for {{ humanizeDuration $value }}.",
            do="Look for loop_failed in the server's log.",
        ),
        Rule(
            name="HighApiErrorRate",
            expr=f"100 * {_ERRORS} > 5",
            duration="5m",
            severity="warning",
            says=f"{_PERCENT} of all requests fail.",
            do="Look at the server's log.",
        ),
        Rule(
            name="HighLatency",
            expr=f"{_P99} > 3",
            duration="5m",
            severity="warning",
            says="One request in a hundred takes {{ $value }} s or longer.",
            do="Look at PostgreSQL and at the load of the server.",
        ),
        Rule(
            name="InvariantBroken",
            expr="remotegpu_invariant_violations > 0",
            duration="0m",
            severity="critical",
            says="{{ $value }} rows break the invariant {{ $labels.invariant }}.",
            do="`remotegpu-server check-invariants` shows them. Report it, please.",
        ),
        Rule(
            name="PostgresqlTooManyConnections",
            expr="sum(remotegpu_db_connections_in_use) > 80",
            duration="5m",
            severity="warning",
            says="{{ $value }} connections to PostgreSQL are in use.",
            do="Look for slow queries; raise max_connections only then.",
        ),
        Rule(
            name="QueueStands",
            expr="remotegpu_queue_longest_wait_seconds > 86400",
            duration="10m",
            severity="info",
            says="A {{ $labels.kind }} has waited for {{ humanizeDuration $value }}.",
            do="`remotegpu queue` says what it waits for.",
        ),
        Rule(
            name="SamplesLost",
            expr="increase(remotegpu_samples_lost_total[10m]) > 0",
            duration="0m",
            severity="warning",
            says="Measurements were lost.",
            do="See whether PostgreSQL is slow or full.",
        ),
        Rule(
            name="PrometheusConfigReloadFailed",
            expr="prometheus_config_last_reload_successful == 0",
            duration="5m",
            severity="warning",
            says="Prometheus runs with an old configuration.",
            do="`promtool check config` says why.",
        ),
    ),
}


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One panel: what it shows, out of which expressions, and where it turns yellow and red."""

    title: str
    exprs: dict[str, str]
    """Expression by legend."""
    kind: str = "timeseries"
    unit: str = "short"
    steps: tuple[float, ...] = ()
    """Yellow, then red; three make it yellow, orange, red."""
    span: int = 6


@dataclass(frozen=True, kw_only=True)
class Board:
    """One dashboard: rows of panels."""

    uid: str
    title: str
    variable: tuple[str, str]
    """Name of the variable and the label_values() it takes."""
    rows: dict[str, tuple[Panel, ...]] = field(default_factory=dict)


def _used(what: str) -> str:
    return f"100 * remotegpu_host_{what}_used_bytes{_H} / remotegpu_host_{what}_total_bytes{_H}"


_H, _G = '{host=~"$host"}', '{Hostname=~"$host"}'
MACHINES = Board(
    uid="remotegpu-machines",
    title="RemoteGPU - GPU machine monitoring",
    variable=("host", "label_values(remotegpu_host_online, host)"),
    rows={
        "Overview": (
            Panel(
                title="Machines online", kind="stat", exprs={"online": "sum(remotegpu_host_online)"}, span=4
            ),
            Panel(
                title="GPUs held", kind="stat", exprs={"held": 'sum(remotegpu_gpus{state="held"})'}, span=4
            ),
            Panel(
                title="Environments and tasks", exprs={"{{kind}} {{status}}": "remotegpu_workloads"}, span=4
            ),
            Panel(
                title="Starts in the last hour",
                kind="stat",
                exprs={"starts": "remotegpu_starts_last_hour"},
                span=4,
            ),
            Panel(
                title="HTTP requests",
                unit="reqps",
                span=4,
                exprs={"requests": "sum(rate(remotegpu_http_request_seconds_count[1m]))"},
            ),
            Panel(
                title="Database connections",
                kind="stat",
                steps=(50, 80),
                span=4,
                exprs={"in use": "sum(remotegpu_db_connections_in_use)"},
            ),
        ),
        "System": (
            Panel(
                title="CPU",
                unit="percent",
                steps=(70, 85),
                span=8,
                exprs={"{{host}}": f"100 * remotegpu_host_cpu_ratio{_H}"},
            ),
            Panel(
                title="Memory",
                unit="percent",
                steps=(75, 90),
                span=8,
                exprs={"{{host}}": _used("memory")},
            ),
            Panel(
                title="Disk",
                unit="percent",
                steps=(75, 85),
                span=8,
                exprs={"{{host}}": _used("disk")},
            ),
        ),
        "GPU": (
            Panel(
                title="Utilization",
                unit="percent",
                exprs={"{{Hostname}} {{gpu}}": f"DCGM_FI_DEV_GPU_UTIL{_G}"},
            ),
            Panel(
                title="Memory",
                unit="mbytes",
                exprs={
                    "{{Hostname}} {{gpu}} used": f"DCGM_FI_DEV_FB_USED{_G}",
                    "{{Hostname}} {{gpu}} total": f"DCGM_FI_DEV_FB_USED{_G} + DCGM_FI_DEV_FB_FREE{_G}",
                },
            ),
            Panel(
                title="Temperature",
                unit="celsius",
                steps=(70, 80, 85),
                exprs={"{{Hostname}} {{gpu}}": f"DCGM_FI_DEV_GPU_TEMP{_G}"},
            ),
            Panel(
                title="Hottest",
                kind="gauge",
                unit="celsius",
                steps=(70, 80, 85),
                exprs={"{{Hostname}}": f"max by (Hostname) (DCGM_FI_DEV_GPU_TEMP{_G})"},
            ),
            Panel(title="Power", unit="watt", exprs={"{{Hostname}} {{gpu}}": f"DCGM_FI_DEV_POWER_USAGE{_G}"}),
        ),
        "Network": (
            Panel(
                title="Received",
                unit="Bps",
                span=12,
                exprs={"{{host}}": f"remotegpu_host_network_received_bytes_per_second{_H}"},
            ),
            Panel(
                title="Sent",
                unit="Bps",
                span=12,
                exprs={"{{host}}": f"remotegpu_host_network_sent_bytes_per_second{_H}"},
            ),
        ),
        "Machines": (
            Panel(
                title="Online",
                kind="state-timeline",
                span=24,
                exprs={"{{host}}": f"remotegpu_host_online{_H}"},
            ),
        ),
        "Agent heartbeat": (
            Panel(
                title="Agents online",
                kind="stat",
                span=4,
                exprs={"online": "count(remotegpu_host_online == 1) or vector(0)"},
            ),
            Panel(
                title="Agents offline",
                kind="stat",
                span=4,
                steps=(1,),
                exprs={"offline": "count(remotegpu_host_online == 0) or vector(0)"},
            ),
            Panel(
                title="Time to answer a heartbeat (p99)",
                unit="s",
                steps=(0.1, 1),
                span=8,
                exprs={
                    "p99": "histogram_quantile(0.99, sum by (le) (rate("
                    'remotegpu_http_request_seconds_bucket{route="/v1/agent/heartbeat"}[5m])))'
                },
            ),
            Panel(
                title="Heartbeats",
                unit="reqps",
                span=8,
                exprs={
                    "heartbeats": "sum(rate(remotegpu_http_request_seconds_count"
                    '{route="/v1/agent/heartbeat"}[1m]))'
                },
            ),
            Panel(
                title="Age of the last heartbeat",
                kind="table",
                unit="s",
                steps=(30, 50),
                span=24,
                exprs={"{{host}}": f"remotegpu_host_heartbeat_age_seconds{_H}"},
            ),
        ),
    },
)

SCHEDULING = Board(
    uid="remotegpu-scheduling",
    title="RemoteGPU - queue, allocation and health",
    variable=("model", "label_values(remotegpu_gpus, model)"),
    rows={
        "Queue": (
            Panel(title="Waiting", exprs={"{{kind}}": "remotegpu_queue_length"}),
            Panel(title="Longest wait", unit="s", exprs={"{{kind}}": "remotegpu_queue_longest_wait_seconds"}),
            Panel(
                title="Time to a place (median of the last hour)",
                unit="s",
                exprs={"wait": "remotegpu_start_wait_median_seconds"},
            ),
            Panel(
                title="Error of the estimates (median of 30 days)",
                unit="s",
                exprs={"error": "remotegpu_start_estimate_median_error_seconds"},
            ),
        ),
        "Allocation": (
            Panel(
                title="GPUs",
                exprs={"{{model}} {{state}}": 'sum by (model, state) (remotegpu_gpus{model=~"$model"})'},
                span=8,
            ),
            Panel(
                title="Held share",
                unit="percentunit",
                span=4,
                exprs={"held": 'sum(remotegpu_gpus{state="held"}) / sum(remotegpu_gpus)'},
            ),
            Panel(
                title="Held and idle",
                unit="percentunit",
                steps=(0.2, 0.5),
                span=4,
                exprs={"idle": 'sum(remotegpu_gpus_held_idle) / sum(remotegpu_gpus{state="held"})'},
            ),
            Panel(
                title="Free GPUs on hosts that are partly held",
                unit="percentunit",
                span=8,
                exprs={"{{simulated}}": "remotegpu_gpu_fragmentation_ratio"},
            ),
            Panel(
                title="By workspace",
                span=24,
                exprs={"{{workspace}}": "sum by (workspace) (remotegpu_gpu_held_ratio)"},
            ),
        ),
        "Starts": (
            Panel(
                title="Place to running (median of the last hour)",
                unit="s",
                span=12,
                exprs={"start": "remotegpu_spawn_median_seconds"},
            ),
            Panel(title="Starts in the last hour", span=12, exprs={"starts": "remotegpu_starts_last_hour"}),
        ),
        "Server": (
            Panel(
                title="Since the last good pass of a loop",
                unit="s",
                steps=(60, 600),
                span=12,
                exprs={"{{loop}}": "time() - remotegpu_loop_last_tick_seconds"},
            ),
            Panel(
                title="Time of a pass",
                unit="s",
                span=12,
                exprs={
                    "{{loop}}": "sum by (loop) (rate(remotegpu_loop_pass_seconds_sum[5m]))"
                    " / sum by (loop) (rate(remotegpu_loop_pass_seconds_count[5m]))"
                },
            ),
            Panel(
                title="Failed passes",
                span=8,
                exprs={"{{loop}}": "sum by (loop) (rate(remotegpu_loop_failures_total[5m])) or vector(0)"},
            ),
            Panel(title="Leads", kind="state-timeline", span=8, exprs={"{{instance}}": "remotegpu_leading"}),
            Panel(
                title="Requests that fail",
                unit="percentunit",
                steps=(0.01, 0.05),
                span=8,
                exprs={"5xx": f"{_ERRORS} or vector(0)"},
            ),
        ),
    },
)

BOARDS = (MACHINES, SCHEDULING)


def rules() -> dict[str, Any]:
    """The rules file, as data."""
    return {
        "groups": [
            {
                "name": f"remotegpu-{group}",
                "rules": [
                    {
                        "alert": rule.name,
                        "expr": rule.expr,
                        "for": rule.duration,
                        "labels": {"severity": rule.severity},
                        "annotations": {"summary": rule.says, "description": rule.do},
                    }
                    for rule in found
                ],
            }
            for group, found in RULES.items()
        ]
    }


def dashboard(board: Board) -> dict[str, Any]:
    """One dashboard, as Grafana provisions it from a file."""
    panels: list[dict[str, Any]] = []
    top = 0
    for title, row in board.rows.items():
        panels.append({"type": "row", "title": title, "id": len(panels) + 1, "gridPos": _at(0, top, 24, 1)})
        top, left = top + 1, 0
        for panel in row:
            if left + panel.span > 24:
                top, left = top + 8, 0
            panels.append(_panel(panel, number=len(panels) + 1, place=_at(left, top, panel.span, 8)))
            left += panel.span
        top += 8
    name, query = board.variable
    source = {"type": "prometheus", "uid": "${datasource}"}
    return {
        "uid": board.uid,
        "title": board.title,
        "tags": ["remotegpu"],
        "schemaVersion": 39,
        "version": 1,
        "editable": False,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {
            "list": [
                {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Source"},
                {
                    "name": name,
                    "type": "query",
                    "query": query,
                    "datasource": source,
                    "refresh": 2,
                    "includeAll": True,
                    "multi": True,
                    "allValue": ".*",
                },
            ]
        },
        "panels": panels,
    }


def _panel(panel: Panel, *, number: int, place: dict[str, int]) -> dict[str, Any]:
    colours = ("green", "yellow", "orange", "red") if len(panel.steps) == 3 else ("green", "yellow", "red")
    if len(panel.steps) == 1:
        colours = ("green", "red")
    steps = [
        {"color": colour, "value": value}
        for colour, value in zip(colours, (None, *panel.steps), strict=False)
    ]
    source = {"type": "prometheus", "uid": "${datasource}"}
    instant = panel.kind in ("stat", "gauge", "table")
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "gridPos": place,
        "datasource": source,
        "fieldConfig": {
            "defaults": {"unit": panel.unit, "thresholds": {"mode": "absolute", "steps": steps}},
            "overrides": [],
        },
        "targets": [
            {
                "refId": chr(65 + index),
                "expr": expr,
                "legendFormat": legend,
                "instant": instant,
                "datasource": source,
            }
            for index, (legend, expr) in enumerate(panel.exprs.items())
        ],
    }


def _at(x: int, y: int, w: int, h: int) -> dict[str, int]:
    return {"x": x, "y": y, "w": w, "h": h}


def files() -> dict[Path, str]:
    """What is written where. JSON is YAML too, and needs no library."""
    made = {HERE / "rules" / "remotegpu.yml": rules()}
    for board in BOARDS:
        made[HERE / "dashboards" / f"{board.uid}.json"] = dashboard(board)
    return {path: json.dumps(content, indent=1, ensure_ascii=False) + "\n" for path, content in made.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    stale = [path for path, text in files().items() if not path.exists() or path.read_text() != text]
    if check and stale:
        names = ", ".join(str(path.relative_to(HERE.parent)) for path in stale)
        print(f"not current: {names}; run monitoring/generate.py", file=sys.stderr)
        return 1
    for path in stale:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(files()[path])
        print(f"wrote {path.relative_to(HERE.parent)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
