"""Click to notebook: RemoteGPU as `make up` starts it, against stock DockerSpawner, same image, same engine.

A click is the hub's REST call that starts a server; the notebook is there when the hub says ready and the
proxy's route to its `/api` answers. The two hubs take turns, one fresh user each time, so that the machine's
mood is the same for both. Ends with one line of JSON: ours_p50_s, dockerspawner_p50_s, ratio.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

import remotegpu
from remotegpu_server.standalone import node, runtime

STOCK_TOKEN = "stock-service-token-for-the-benchmark"
STOCK_CONFIG = """
c = get_config()  # noqa: F821
c.JupyterHub.spawner_class = "dockerspawner.DockerSpawner"
c.DockerSpawner.image = {image!r}
c.DockerSpawner.remove = True
c.DockerSpawner.host_ip = "127.0.0.1"
c.DockerSpawner.mem_limit = "2G"
c.DockerSpawner.cpu_limit = 1
c.DockerSpawner.prefix = "rgpubench"
c.JupyterHub.authenticator_class = "dummy"
c.JupyterHub.bind_url = "http://127.0.0.1:{port}"
c.JupyterHub.hub_bind_url = "http://{bridge}:{hub_port}"
c.JupyterHub.hub_connect_url = "http://{bridge}:{hub_port}"
c.ConfigurableHTTPProxy.command = {proxy!r}
c.ConfigurableHTTPProxy.api_url = "http://127.0.0.1:{proxy_port}"
c.JupyterHub.services = [{{"name": "bench", "api_token": {token!r}}}]
c.JupyterHub.load_roles = [{{"name": "bench", "services": ["bench"], "scopes": [
    "admin:users", "admin:servers"]}}]
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--users", type=int, default=5, help="measured users of each hub")
    parser.add_argument("--warm-up", type=int, default=1, help="users before them, who are not counted")
    parser.add_argument("--image", default="remotegpu/base:latest")
    parser.add_argument("--port", type=int, default=18300, help="the first of eight free ports")
    arguments = parser.parse_args()
    if not _docker_answers():
        sys.exit("bench-spawn needs a Docker engine that answers")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(_data_folder()))
        ours = stack.enter_context(_ours(folder / "ours", arguments.port))
        _require_image(arguments.image)
        stock = stack.enter_context(
            _stock(folder / "stock", folder / "ours" / "node", arguments.port + 4, arguments.image)
        )
        seconds: dict[str, list[float]] = {"ours": [], "dockerspawner": []}
        for number in range(-arguments.warm_up, arguments.users):
            pair = [("ours", ours), ("dockerspawner", stock)]
            for name, hub in pair if number % 2 else reversed(pair):
                took = hub.click_to_notebook(f"user{number + arguments.warm_up}")
                print(f"{name:14} {'warm-up' if number < 0 else f'user {number + 1}'}: {took:.2f} s")
                if number >= 0:
                    seconds[name].append(took)
    ours_p50, stock_p50 = (statistics.median(seconds[name]) for name in ("ours", "dockerspawner"))
    result = {
        "ours_p50_s": round(ours_p50, 3),
        "dockerspawner_p50_s": round(stock_p50, 3),
        "ratio": round(ours_p50 / stock_p50, 3),
        "users": arguments.users,
    }
    print(json.dumps(result))


@dataclass
class Hub:
    """A running hub, as a program with an admin's token sees it."""

    url: str
    token: str
    make_user: Callable[[str], object]

    def click_to_notebook(self, user: str) -> float:
        """Seconds; the server is stopped again afterwards."""
        self.make_user(user)
        with httpx.Client(
            base_url=self.url, headers={"Authorization": f"token {self.token}"}, timeout=300, trust_env=False
        ) as http:
            http.post(f"/hub/api/users/{user}")
            began = time.monotonic()
            answer = http.post(f"/hub/api/users/{user}/server", json={})
            if answer.is_error:
                sys.exit(f"{self.url} refused to start a server: {answer.status_code} {answer.text}")
            self._await_ready(http, user)
            _until(f"{user}'s route", lambda: http.get(f"/user/{user}/api").is_success)
            took = time.monotonic() - began
            http.delete(f"/hub/api/users/{user}/server")
            _until(f"{user}'s end", lambda: not _servers(http, user), timeout_s=60)
        return took

    @staticmethod
    def _await_ready(http: httpx.Client, user: str) -> None:
        with http.stream("GET", f"/hub/api/users/{user}/server/progress") as events:
            for line in events.iter_lines():
                event = json.loads(line.removeprefix("data:")) if line.startswith("data:") else {}
                if event.get("failed"):
                    sys.exit(f"a start failed: {event['message']}")
                if event.get("ready"):
                    return
        sys.exit("the progress stream ended before the server was ready")


def _servers(http: httpx.Client, user: str) -> dict[str, object]:
    model: dict[str, dict[str, object]] = http.get(f"/hub/api/users/{user}").json()
    return model.get("servers", {})


@contextmanager
def _data_folder() -> Iterator[str]:
    folder = tempfile.mkdtemp(prefix="remotegpu-bench-spawn-")
    os.chmod(folder, 0o755)  # noqa: S103  PostgreSQL's account passes through
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _ours(home: Path, port: int) -> Iterator[Hub]:
    """The whole product by its one command, with enough simulated GPUs."""
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"} | {
        "REMOTEGPU_HOME": str(home),
        "REMOTEGPU_PORT": str(port),
        "REMOTEGPU_RUNTIME": "docker",
        "REMOTEGPU_SIMULATE_GPUS": "8xA100-80GB",
    }
    standalone = [sys.executable, "-m", "remotegpu_server.standalone"]
    subprocess.run([*standalone, "up", "--detach"], env=environ, check=True)
    try:
        password = (home / "secrets" / "admin-password").read_text().strip()
        server = f"http://127.0.0.1:{port + 3}"
        with remotegpu.Client(server, "") as anonymous:
            token = anonymous.auth.login(username="admin", password=password)
        admin = remotegpu.Client(server, token.secret)
        hub = f"http://127.0.0.1:{port}"
        yield Hub(
            hub,
            _admin_token(hub, password),
            lambda name: admin.users.create(username=name, password=password),
        )
        admin.close()
    finally:
        subprocess.run([*standalone, "down"], env=environ, check=True)


def _admin_token(hub: str, password: str) -> str:
    """A hub token of the admin, got as a person would."""
    with httpx.Client(base_url=hub, follow_redirects=True, timeout=30, trust_env=False) as http:
        found = re.search(r'name="_xsrf" value="([^"]+)"', http.get("/hub/login").text)
        assert found
        http.post("/hub/login", data={"username": "admin", "password": password, "_xsrf": found[1]})
        page = http.get("/hub/token")
        xsrf = re.search(r'xsrf_token: "([^"]+)"', page.text)
        assert xsrf, page.text
        answer = http.post(
            "/hub/api/users/admin/tokens", json={"note": "bench"}, headers={"X-XSRFToken": xsrf[1]}
        )
        answer.raise_for_status()
        return str(answer.json()["token"])


@contextmanager
def _stock(folder: Path, node_folder: Path, port: int, image: str) -> Iterator[Hub]:
    """A hub with DockerSpawner, its own proxy and database."""
    folder.mkdir()
    config = folder / "jupyterhub_config.py"
    config.write_text(
        STOCK_CONFIG.format(
            image=image, port=port, proxy_port=port + 1, hub_port=port + 2, bridge=_bridge(),
            proxy=list(node.proxy_command(node_folder)), token=STOCK_TOKEN,
        )
    )  # fmt: skip
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    with (folder / "hub.log").open("wb") as log:
        process = subprocess.Popen(
            [str(Path(sys.executable).with_name("jupyterhub")), "-f", str(config)],
            cwd=folder, env=environ, stdout=log, stderr=log,
        )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    try:
        _until("the stock hub", lambda: httpx.get(f"{url}/hub/health", trust_env=False).is_success)
        yield Hub(url, STOCK_TOKEN, lambda _: None)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def _until(what: str, probe: Callable[[], bool], *, timeout_s: float = 120) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            if probe():
                return
        except httpx.TransportError:
            pass
        if time.monotonic() > deadline:
            sys.exit(f"not within {timeout_s:.0f} s: {what}")
        time.sleep(0.02)


def _bridge() -> str:
    """This machine's address on Docker's default bridge, where containers reach the stock hub."""
    found = runtime.detect({**os.environ, "REMOTEGPU_RUNTIME": "docker"}).bridge
    assert found
    return found


def _docker_answers() -> bool:
    version = ["docker", "version", "--format", "{{.Server.Version}}"]
    return bool(
        shutil.which("docker") and subprocess.run(version, capture_output=True, check=False).returncode == 0
    )


def _require_image(image: str) -> None:
    found = subprocess.run(["docker", "image", "inspect", image], capture_output=True, check=False)
    if found.returncode != 0:
        sys.exit(f"there is no image {image}: run `make image`")


if __name__ == "__main__":
    main()
