"""A real hub with its real proxy in front of a real server with a real agent (process runtime)."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import httpx

import remotegpu
from remotegpu.types.environments import Environment
from remotegpu_server.standalone import node
from remotegpu_server.testing import LiveServer

T = TypeVar("T")

PASSWORD = "correct horse battery"
API_TOKEN = "test-service-token-0123456789abcdef"
QUICK = Path(__file__).with_name("quick_notebook.py")
PLAIN = "import remotegpu_hub\nc = get_config()  # noqa: F821\nremotegpu_hub.configure(c)\n"
"""What a site writes."""
TEST_SERVICE = f"""
c.JupyterHub.services.append({{"name": "tests", "api_token": "{API_TOKEN}"}})
c.JupyterHub.load_roles.append({{"name": "tests", "services": ["tests"], "scopes": [
    "admin:users", "admin:servers", "tokens", "admin:server_state", "shutdown"]}})
"""


def until(what: str, probe: Callable[[], T], *, timeout_s: float = 30) -> T:
    """The first true answer. Real processes: nothing but asking tells."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            answer = probe()
        except httpx.TransportError as error:
            answer = None
            last: object = error
        else:
            last = answer
        if answer:
            return answer
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what} (last: {last!r})"
        time.sleep(0.05)


def free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()


def proxy_command(folder: Path) -> list[str]:
    """configurable-http-proxy from ``CONFIGPROXY``, the PATH, or npm (pinned as for `make up`)."""
    named = os.environ.get("CONFIGPROXY") or shutil.which("configurable-http-proxy")
    if named:
        return [named]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # test processes side by side share it
        node.install(folder)
    return list(node.proxy_command(folder))


class Process:
    """One part, with its log, that can be killed and started again."""

    def __init__(self, argv: list[str], *, env: dict[str, str], log: Path) -> None:
        self.argv, self.env, self.log = argv, env, log
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                self.argv, env=self.env, stdout=output, stderr=subprocess.STDOUT, cwd=self.log.parent
            )

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def ended(self) -> bool:
        return self._process is None or self._process.poll() is not None

    def said(self, text: str) -> bool:
        return text in self.log.read_text(errors="replace")

    def _end(self, number: signal.Signals) -> None:
        if self._process is None or self._process.poll() is not None:
            return
        self._process.send_signal(number)
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)


class Agent:
    """A host with simulated GPUs."""

    def __init__(self, url: str, admin: remotegpu.Client, folder: Path, name: str, gpus: str) -> None:
        self.name = name
        state = folder / name
        state.mkdir()
        admin.hosts.create(name=name)
        token = state / "token"
        token.write_text(admin.hosts.create_enrollment_token(name).secret)
        command = [sys.executable, "-m", "remotegpu_agent"]
        where = ["--url", url, "--state-dir", str(state)]
        subprocess.run([*command, "enroll", *where, "--token-file", str(token)], check=True, timeout=60)
        self.process = Process(
            [*command, "run", *where, "--runtime", "process", "--simulate-gpus", gpus],
            env=dict(os.environ),
            log=state / "agent.log",
        )
        self.process.start()
        until(f"{name} is ready", lambda: admin.hosts.get(name).ready)


class Hub:
    """JupyterHub and configurable-http-proxy, as `make up` runs them."""

    def __init__(
        self,
        folder: Path,
        *,
        server_url: str,
        hub_token_file: Path,
        proxy: list[str],
        config: str = PLAIN + TEST_SERVICE,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        public, control, api = free_ports(3)
        self.url = f"http://127.0.0.1:{public}"
        self.api_url = f"http://127.0.0.1:{api}"
        self._config = folder / "jupyterhub_config.py"
        self._config.write_text(config)
        secret = {"CONFIGPROXY_AUTH_TOKEN": "a-proxy-token-for-tests"}
        clean = {name: value for name, value in os.environ.items() if not name.startswith("JUPYTERHUB_")}
        self.environ = clean | secret | {
            "REMOTEGPU_URL": server_url,
            "REMOTEGPU_HUB_TOKEN_FILE": str(hub_token_file),
            "REMOTEGPU_HUB_DATA": str(folder / "data"),
            "REMOTEGPU_HUB_BIND_URL": self.url,
            "REMOTEGPU_HUB_API_BIND": self.api_url,
            "REMOTEGPU_HUB_CONNECT_URL": self.api_url,
            "REMOTEGPU_PROXY_API_URL": f"http://127.0.0.1:{control}",
        }  # fmt: skip
        self.proxy = Process(
            [*proxy, "--ip", "127.0.0.1", "--port", str(public), "--api-ip", "127.0.0.1",
             "--api-port", str(control), "--default-target", self.api_url,
             "--error-target", f"{self.api_url}/hub/error"],
            env=clean | secret, log=folder / "proxy.log",
        )  # fmt: skip
        self.process = Process(
            [sys.executable, "-m", "jupyterhub", "-f", str(self._config), "--debug"],
            env=self.environ,
            log=folder / "hub.log",
        )
        self.http = httpx.Client(
            base_url=f"{self.url}/hub/api", headers={"Authorization": f"token {API_TOKEN}"}, timeout=30
        )

    def start(self) -> Hub:
        if self.proxy.ended:
            self.proxy.start()
        self.process.start()
        try:
            until("the hub answers", self._answers, timeout_s=60)
        except AssertionError:
            print(self.process.log.read_text()[-6000:])
            raise
        return self

    def _answers(self) -> bool:
        assert not self.process.ended, self.process.log.read_text()[-6000:]
        return httpx.get(f"{self.url}/hub/health").is_success

    def stop(self) -> None:
        self.http.close()
        self.process.stop()
        self.proxy.stop()

    # What a program does --------------------------------------------------------------------------------

    def server_path(self, user: str, server: str = "") -> str:
        return f"/users/{user}/servers/{server}" if server else f"/users/{user}/server"

    def spawn(self, user: str, server: str = "", **options: Any) -> httpx.Response:
        self.http.post(f"/users/{user}")  # 409 where the hub knows the user already
        return self.http.post(self.server_path(user, server), json=options)

    def server(self, user: str, server: str = "") -> dict[str, Any]:
        """The hub's model of a server; empty where it has none."""
        servers = self.http.get(f"/users/{user}", params={"include_stopped_servers": ""}).json()
        return servers.get("servers", {}).get(server, {})

    def await_ready(self, user: str, server: str = "", *, timeout_s: float = 60) -> dict[str, Any]:
        def ready() -> dict[str, Any] | None:
            model = self.server(user, server)
            return model if model.get("ready") else None

        return until(f"{user}'s server {server!r} is ready", ready, timeout_s=timeout_s)

    def events(self, user: str, server: str = "") -> list[dict[str, Any]]:
        """The progress stream to its end."""
        found: list[dict[str, Any]] = []
        with self.http.stream("GET", f"{self.server_path(user, server)}/progress", timeout=60) as stream:
            found += [json.loads(line[5:]) for line in stream.iter_lines() if line.startswith("data:")]
        return found

    def delete(self, user: str, server: str = "", *, remove: bool = False) -> httpx.Response:
        path = self.server_path(user, server)
        return self.http.request("DELETE", path, json={"remove": remove})

    def await_stopped(self, user: str, server: str = "", *, timeout_s: float = 60) -> None:
        def stopped() -> bool:
            model = self.server(user, server)
            return not model.get("ready") and not model.get("pending")

        until(f"{user}'s server {server!r} is stopped", stopped, timeout_s=timeout_s)

    # What a person does ---------------------------------------------------------------------------------

    @contextmanager
    def browser(self) -> Iterator[Person]:
        with httpx.Client(base_url=self.url, follow_redirects=True, timeout=30) as http:
            yield Person(http)

    @contextmanager
    def signed_in(self, username: str, password: str = PASSWORD) -> Iterator[Person]:
        with self.browser() as person:
            answer = person.log_in(username, password)
            assert answer.status_code == httpx.codes.OK, answer.text
            yield person


class Person:
    """Somebody with cookies."""

    def __init__(self, http: httpx.Client) -> None:
        self.http = http

    def log_in(self, username: str, password: str) -> httpx.Response:
        page = self.http.get("/hub/login")
        return self.http.post(
            "/hub/login", data={"username": username, "password": password, "_xsrf": xsrf_of(page.text)}
        )

    def xsrf_token(self) -> str:
        """What a script of the hub's pages sends with a change."""
        found = re.search(r'xsrf_token: "([^"]+)"', self.http.get("/hub/home").text)
        assert found
        return found[1]

    def send_form(self, path: str, **fields: str) -> httpx.Response:
        page = self.http.get(path)
        action = re.search(r'id="spawn_form"\s+action="([^"]+)"', page.text)
        assert action, page.text
        return self.http.post(action[1].replace("&amp;", "&"), data=fields)


def xsrf_of(html: str) -> str:
    found = re.search(r'name="_xsrf" value="([^"]+)"', html)
    assert found, html
    return found[1]


class Stack:
    """Everything but the hub: server, agent, images, users."""

    def __init__(self, live: LiveServer, folder: Path, *, gpus: str) -> None:
        self.live = live
        with remotegpu.Client(live.url, "") as anonymous:
            token = anonymous.auth.login(username="admin", password=live.admin_password)
        self.admin = remotegpu.Client(live.url, token.secret)
        self.agent = Agent(live.url, self.admin, folder, "gpu-host", gpus)
        python = str(sys.executable)
        for name, command in {
            "quick": [python, str(QUICK)],
            "slow": [python, str(QUICK), "6"],
            "never": [python, str(QUICK), "3600"],
            "broken": [python, "-c", "raise SystemExit('no such kernel <b>here</b>')"],
            "lab": ["jupyterhub-singleuser", *(["--allow-root"] if os.geteuid() == 0 else [])],
        }.items():
            self.admin.images.create(
                name=name, reference=f"process/{name}:latest", runtime="process", command=command
            )

    def user(self, name: str, *, role: str = "member", **limits: int) -> str:
        self.admin.users.create(username=name, password=PASSWORD, role=role)
        if limits:
            self.admin.quotas.set("user", name, limits=limits)
        return name

    def client(self, name: str) -> remotegpu.Client:
        """The SDK as this user."""
        with remotegpu.Client(self.live.url, "") as anonymous:
            token = anonymous.auth.login(username=name, password=PASSWORD)
        return remotegpu.Client(self.live.url, token.secret)

    def environment(self, user: str, name: str = "default") -> Environment | None:
        found = [one for one in self.admin.environments.list(owner=user) if one.name == name]
        return found[0] if found else None

    def gpus_free(self) -> int:
        return sum(gpu.free for gpu in self.admin.gpus.list())

    def stop_all(self) -> None:
        for environment in self.admin.environments.list():
            if environment.status != "stopped":
                self.admin.environments.stop(environment.id)

        def nothing_runs() -> bool:
            return all(gpu.free or gpu.mig_enabled for gpu in self.admin.gpus.list())

        until("nothing runs", nothing_runs, timeout_s=60)

    def stop(self) -> None:
        self.stop_all()
        self.admin.close()
        self.agent.process.stop()
