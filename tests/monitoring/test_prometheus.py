"""Rules and dashboards, asked of a real Prometheus that scrapes a real server; an alert comes and goes."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest
import pytest_asyncio
from hollow_agent import Fleet, HollowAgent

from remotegpu_server.testing import LiveServer

ROOT = Path(__file__).parents[2]
GIB = 2**30
METRICS: dict[str, Any] = {
    "utilization_percent": 0.0,
    "utilization_max_percent": 0.0,
    "memory_used_bytes": GIB,
    "memory_total_bytes": 80 * GIB,
    "temperature_c": 40.0,
    "power_w": 90.0,
    "power_limit_w": 400.0,
    "ecc_uncorrected": 0,
    "xid": 0,
}
HOST = {
    "cpu_percent": 20.0,
    "memory_used_bytes": GIB,
    "memory_total_bytes": 8 * GIB,
    "disk_used_bytes": GIB,
    "disk_total_bytes": 8 * GIB,
    "network_rx_bytes_per_s": 1.0,
    "network_tx_bytes_per_s": 0.0,
}


def _generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("monitoring_generate", ROOT / "monitoring" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = made  # dataclasses look their module up
    spec.loader.exec_module(made)
    return made


generate = _generator()


def test_files_are_those_that_the_generator_writes() -> None:
    assert [str(path) for path, text in generate.files().items() if path.read_text() != text] == []


@pytest.mark.skipif(shutil.which("promtool") is None, reason="Debian's prometheus is not installed")
def test_rules_are_valid_and_every_alert_says_what_to_do() -> None:
    found = subprocess.run(
        ["promtool", "check", "rules", str(ROOT / "monitoring" / "rules" / "remotegpu.yml")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stdout + found.stderr
    for group in generate.rules()["groups"]:
        for rule in group["rules"]:
            assert rule["annotations"]["description"], rule["alert"]
            assert rule["labels"]["severity"] in ("info", "warning", "critical")


def test_machine_board_has_its_rows_and_places_no_panel_on_another() -> None:
    board = generate.dashboard(generate.MACHINES)
    rows = [panel["title"] for panel in board["panels"] if panel["type"] == "row"]
    assert rows == ["Overview", "System", "GPU", "Network", "Machines", "Agent heartbeat"]
    for one in (generate.dashboard(board) for board in generate.BOARDS):
        taken: set[tuple[int, int]] = set()
        for panel in one["panels"]:
            at = panel["gridPos"]
            cells = {
                (x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])
            }
            assert not cells & taken, panel["title"]
            assert at["x"] + at["w"] <= 24
            taken |= cells


@dataclass
class Receiver:
    """What the Alertmanager was told to tell."""

    told: list[dict[str, Any]] = field(default_factory=list)
    port: int = 0

    def statuses(self, name: str) -> list[str]:
        return [one["status"] for one in self.told if one["labels"]["alertname"] == name]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            made.told.extend(body["alerts"])
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.port = server.server_port
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield made
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def _running(command: list[str], log: Path) -> Iterator[None]:
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        try:
            yield
        finally:
            process.terminate()
            process.wait(timeout=20)


@dataclass
class Site:
    """A server with a host that works, and a Prometheus that watches it."""

    agent: HollowAgent
    query: httpx.AsyncClient
    temperature_c: float = 40.0

    async def beat(self) -> None:
        """Heartbeats, for as long as the test runs."""
        while True:
            metrics = METRICS | {"temperature_c": self.temperature_c}
            gpus = [{"uuid": one["uuid"], "metrics": metrics} for one in self.agent.gpus]
            answer = await self.agent.heartbeat(gpus=gpus, host=HOST)
            assert answer.status_code == 200, answer.text
            await asyncio.sleep(0.5)

    async def ask(self, expr: str) -> list[Any]:
        answer = await self.query.get("/api/v1/query", params={"query": expr})
        assert answer.status_code == 200, f"{expr}: {answer.text}"
        found: list[Any] = answer.json()["data"]["result"]
        return found

    async def until_there(self, exprs: list[str], *, within_s: float = 60.0) -> None:
        missing, ends = exprs, time.monotonic() + within_s
        while missing and time.monotonic() < ends:
            missing = [expr for expr in missing if not await self.ask(expr)]
            await asyncio.sleep(0.5 if missing else 0)
        assert missing == [], "no data for these"


@pytest_asyncio.fixture
async def site(live_server: LiveServer, receiver: Receiver, tmp_path: Path) -> AsyncIterator[Site]:
    if not (shutil.which("prometheus") and shutil.which("prometheus-alertmanager")):
        pytest.skip("Debian's prometheus and prometheus-alertmanager are not installed")
    prometheus, alerts = _free_port(), _free_port()
    async with contextlib.AsyncExitStack() as stack:
        client = await stack.enter_async_context(httpx.AsyncClient(base_url=live_server.url, timeout=30))
        fleet = Fleet(client=client, admin=live_server.admin_headers)
        await fleet.image()
        agent = await fleet.host("one", gpus=2)
        made = await client.post(
            "/v1/tokens", headers=fleet.admin, json={"name": "prometheus", "scopes": ["metrics"]}
        )
        token = tmp_path / "token"
        token.write_text(made.json()["secret"])
        assert (await fleet.create(fleet.admin, gpus=1)).status_code == 201
        await agent.obey()
        address = live_server.url.removeprefix("http://")
        config = {
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(tmp_path / "rules.yml")],
            "alerting": {"alertmanagers": [{"static_configs": [{"targets": [f"127.0.0.1:{alerts}"]}]}]},
            "scrape_configs": [
                {
                    "job_name": "remotegpu",
                    "authorization": {"credentials_file": str(token)},
                    "static_configs": [{"targets": [address]}],
                },
                {
                    "job_name": "remotegpu-refused",
                    "authorization": {"credentials": "rgu_wrong"},
                    "static_configs": [{"targets": [address]}],
                },
                {
                    "job_name": "agents",
                    "http_sd_configs": [
                        {
                            "url": f"{live_server.url}/v1/prometheus/targets",
                            "authorization": {"credentials_file": str(token)},
                        }
                    ],
                },
                {"job_name": "prometheus", "static_configs": [{"targets": [f"127.0.0.1:{prometheus}"]}]},
            ],
        }
        rules = generate.rules()
        for group in rules["groups"]:
            for rule in group["rules"]:
                rule["for"] = "0s"
        routing = {
            "route": {
                "receiver": "test",
                "group_by": ["..."],
                "group_wait": "0s",
                "group_interval": "1s",
                "repeat_interval": "1h",
            },
            "receivers": [
                {"name": "test", "webhook_configs": [{"url": f"http://127.0.0.1:{receiver.port}/"}]}
            ],
        }
        for name, content in (("prometheus.yml", config), ("rules.yml", rules), ("alerts.yml", routing)):
            (tmp_path / name).write_text(json.dumps(content))
        commands = (
            ["prometheus", f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/tsdb",
             f"--web.listen-address=127.0.0.1:{prometheus}"],
            ["prometheus-alertmanager", f"--config.file={tmp_path}/alerts.yml", "--cluster.listen-address=",
             f"--storage.path={tmp_path}/alerts", f"--web.listen-address=127.0.0.1:{alerts}"],
        )  # fmt: skip
        for command in commands:
            stack.enter_context(_running(command, tmp_path / f"{command[0]}.log"))
        query = await stack.enter_async_context(
            httpx.AsyncClient(base_url=f"http://127.0.0.1:{prometheus}", timeout=30)
        )
        made_site = Site(agent=agent, query=query)
        beating = asyncio.create_task(made_site.beat())
        await _until_ready(query)
        yield made_site
        beating.cancel()
        await asyncio.gather(beating, return_exceptions=True)


async def _until_ready(query: httpx.AsyncClient) -> None:
    async with asyncio.timeout(60):
        while True:
            with contextlib.suppress(httpx.TransportError):
                if (await query.get("/-/ready")).status_code == 200:
                    return
            await asyncio.sleep(0.2)


async def test_every_expression_has_data_and_an_alert_fires_and_resolves(
    site: Site, receiver: Receiver
) -> None:
    await site.until_there(['up{job="remotegpu"} == 1', 'up{job="remotegpu-refused"} == 0'])
    shown = [
        re.sub(r"\$(host|model)", ".*", expr)
        for board in generate.BOARDS
        for row in board.rows.values()
        for panel in row
        for expr in panel.exprs.values()
    ]
    await site.until_there(shown)
    conditions = [rule.expr for group in generate.RULES.values() for rule in group]
    for expr in conditions:
        await site.ask(expr)
    names = {
        name for expr in conditions for name in re.findall(r"\b(?:DCGM_FI|remotegpu|prometheus)_\w+", expr)
    }
    await site.until_there(sorted(names))

    held = await site.ask("DCGM_FI_DEV_GPU_TEMP")
    assert {one["metric"]["UUID"] for one in held} == {one["uuid"] for one in site.agent.gpus}
    assert {one["metric"]["simulated"] for one in held} == {"true"}
    site.temperature_c = 87.0
    await _until(lambda: "firing" in receiver.statuses("GpuTemperatureHigh"))
    assert "GpuTemperatureCritical" not in [one["labels"]["alertname"] for one in receiver.told]
    site.temperature_c = 50.0
    await _until(lambda: "resolved" in receiver.statuses("GpuTemperatureHigh"))
    (one, *_) = [one for one in receiver.told if one["labels"]["alertname"] == "GpuTemperatureHigh"]
    assert "is at 87 °C" in one["annotations"]["summary"]
    assert one["labels"]["Hostname"] == "one"


async def _until(holds: Any) -> None:
    ends = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < ends, "it did not come"
        await asyncio.sleep(0.2)
