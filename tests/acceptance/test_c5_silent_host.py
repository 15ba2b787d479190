"""C5: a host falls silent: one alert, one notification on a stream that was idle for more than a minute,
through the hub's proxy; it is resolved when the host is back.

The minute is real (proxies cut what is silent for so long) and costs no work; the other times are shortened.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from queue import Empty, Queue

import httpx
import pytest
from hub.stack import Process, free_ports, proxy_command, until

import remotegpu
from remotegpu.types import agent as wire
from remotegpu.types.hosts import HostMetrics, RuntimeKind
from remotegpu.types.notifications import Notification
from remotegpu_server.testing import LiveServer

IDLE_S = 61
GIB = 2**30
SHORT = {
    "REMOTEGPU_HEARTBEAT_S": "1",
    "REMOTEGPU_SUSPECT_AFTER_S": "6",
    "REMOTEGPU_UNREACHABLE_AFTER_S": "8",
    "REMOTEGPU_RESTART_GRACE_S": "1",
}


class Host:
    """A host whose agent is this test: it beats in a thread until it is told to be silent."""

    def __init__(self, url: str, admin: remotegpu.Client) -> None:
        admin.hosts.create(name="one")
        token = admin.hosts.create_enrollment_token("one").secret
        with remotegpu.Client(url, token) as anonymous:
            enrolled = anonymous.agent.enroll(
                wire.Enroll(hostname="one", machine_id="one", agent_version="0")
            )
        self._client = remotegpu.Client(url, enrolled.credential)
        inventory = wire.Inventory(
            hostname="one", os="Linux", kernel="6", cpus=8, memory_bytes=GIB, disk_total_bytes=GIB, gpus=[],
            driver_version=None, cuda_version=None, runtime=RuntimeKind.DOCKER, runtime_healthy=True,
            runtime_detail="24", images=[], address="10.0.0.1", shared_home=None,
        )  # fmt: skip
        session = wire.SessionCreate(boot_id="boot-1", agent_version="0", workloads=[], inventory=inventory)
        self._epoch = self._client.agent.create_session(session).epoch
        self._beats = threading.Event()
        self._beats.set()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat_for_ever)
        self._thread.start()

    def silent(self) -> None:
        self._beats.clear()

    def back(self) -> None:
        self._beats.set()

    def end(self) -> None:
        self._ended.set()
        self._thread.join(30)
        self._client.close()

    def _beat_for_ever(self) -> None:
        while not self._ended.wait(1):
            if self._beats.is_set():
                self._beat()

    def _beat(self) -> None:
        self._client.agent.heartbeat(
            wire.Heartbeat(
                epoch=self._epoch,
                sampled_at=datetime.now(UTC),
                runtime_healthy=True,
                runtime_detail="24",
                host=HostMetrics(cpu_percent=1.0),
                gpus=[],
                workloads=[],
                observed=[],
            )
        )


@pytest.fixture
def server(database_url: str, tmp_path: Path) -> Iterator[LiveServer]:
    made = LiveServer(database_url=database_url, folder=tmp_path)
    made.start(**SHORT)
    yield made
    made.stop()


@pytest.fixture
def proxy(server: LiveServer, tmp_path: Path) -> Iterator[str]:
    """The hub's proxy in front of the server."""
    port, api_port = free_ports(2)
    where = ["--ip", "127.0.0.1", "--port", str(port), "--api-ip", "127.0.0.1", "--api-port", str(api_port)]
    process = Process(
        [
            *proxy_command(Path(tempfile.gettempdir()) / "remotegpu-test-node"),
            *where,
            "--default-target",
            server.url,
        ],
        env={**os.environ, "CONFIGPROXY_AUTH_TOKEN": "test"},
        log=tmp_path / "proxy.log",
    )
    process.start()
    url = f"http://127.0.0.1:{port}"
    until("the proxy answers", lambda: _answers(url))
    yield url
    process.stop()


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/healthz", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


@pytest.mark.timeout(400)
def test_silent_host_is_told_once_on_a_stream_that_was_idle_for_a_minute(
    server: LiveServer, proxy: str
) -> None:
    secret = server.admin_headers["Authorization"].removeprefix("Bearer ")
    with remotegpu.Client(proxy, secret) as admin:
        host = Host(server.url, admin)
        try:
            admin.alert_rules.update("agent-offline", threshold=9)
            admin.settings.set("alerts.hold_s", 0)
            until("the host is online", lambda: admin.hosts.get("one").connection == "online")
            stream = _Stream(proxy, secret)
            began = time.monotonic()
            assert stream.next(IDLE_S) is None, "nothing happened"
            assert time.monotonic() - began > IDLE_S - 1
            assert stream.connections == 1
            host.silent()
            told = stream.next(90)
            assert told is not None
            assert (told.kind, told.data["object_name"]) == ("alert.triggered", "one")
            assert admin.hosts.get("one").connection in ("unreachable", "lost")
            (alert,) = admin.alerts.list(status="firing").items
            assert (alert.rule, alert.id) == ("agent-offline", told.subject_id)
            assert stream.next(12) is None, "the loops have passed, and nobody is told twice"
            host.back()
            ended = stream.next(90)
            assert ended is not None
            assert (ended.kind, ended.subject_id) == ("alert.resolved", alert.id)
            assert admin.alerts.get(alert.id).resolved_at is not None
            assert [one.kind for one in admin.notifications.list()] == ["alert.resolved", "alert.triggered"]
        finally:
            host.end()


class _Stream:
    """``/v1/notifications`` as a stream, read in a thread."""

    def __init__(self, url: str, secret: str) -> None:
        self.connections = 0
        self._got: Queue[Notification] = Queue()
        headers = {"Authorization": f"Bearer {secret}", "Accept": "text/event-stream"}
        thread = threading.Thread(target=self._read, args=(url, headers), daemon=True)
        thread.start()
        until("the stream is open", lambda: self.connections == 1)

    def next(self, timeout_s: float) -> Notification | None:
        try:
            return self._got.get(timeout=timeout_s)
        except Empty:
            return None

    def _read(self, url: str, headers: dict[str, str]) -> None:
        """Without reconnecting: it is one connection that has to live."""
        try:
            with httpx.stream("GET", f"{url}/v1/notifications", headers=headers, timeout=30) as answer:
                self.connections += 1
                for line in answer.iter_lines():
                    if line.startswith("data: {"):
                        self._got.put(Notification.model_validate_json(line.removeprefix("data: ")))
        except httpx.HTTPError:
            self.connections += 1  # the test ends, or the connection was cut, which it then sees
