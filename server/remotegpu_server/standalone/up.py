"""`up`: every step from an empty folder to a hub that one can log in to."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import httpx

from remotegpu_server.standalone import api, database, node, ports, runtime, signals
from remotegpu_server.standalone.failure import StepFailed
from remotegpu_server.standalone.installation import (
    ADMIN,
    LOOPBACK,
    Installation,
    console_script,
    read_json,
    write_private,
)
from remotegpu_server.standalone.process import end_group, start_detached
from remotegpu_server.standalone.report import step
from remotegpu_server.standalone.supervisor import Service, Supervisor, stop_orphans

_IMAGE_BUILDER = Path(__file__).parents[3] / "notebooks" / "images" / "build.py"
_IMAGE_WITHIN_S = 1200
_NODE_WITHIN_S = 600
_HUB_CONFIGURATION = """\
import remotegpu_hub

remotegpu_hub.configure(c)  # noqa: F821  JupyterHub gives `c`; the variables come from `make up`
c.JupyterHub.last_activity_interval = 30  # seconds until a proxy that was started anew has its routes again
"""


@dataclass
class _Beside:
    """A command that goes on beside the steps, until its own step waits for it."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    @classmethod
    def start(cls, installation: Installation, name: str, argv: list[str], env: Mapping[str, str]) -> _Beside:
        log = installation.log(name)
        return cls(name, start_detached(argv, env=env, log=log, cwd=installation.home), log)

    def finish(self, within_s: float, advice: str) -> None:
        try:
            code = self.process.wait(within_s)
        except subprocess.TimeoutExpired:
            raise StepFailed(self.name, f"not done within {within_s:.0f} s", advice, log=self.log) from None
        if code != 0:
            raise StepFailed(self.name, f"it ended with exit code {code}", advice, log=self.log)

    def cancel(self) -> None:
        """End it with everything that it started, if it still runs."""
        if self.process.poll() is None:
            end_group(self.process.pid)
            self.process.wait()


class Up:
    """The steps, in order. `run` leaves the parts with the supervisor."""

    def __init__(
        self, installation: Installation, environ: Mapping[str, str], supervisor: Supervisor
    ) -> None:
        self._installation = installation
        self._environ = environ
        self._supervisor = supervisor
        self._beside: list[_Beside] = []

    def run(self) -> None:
        """Raises StepFailed; whoever called stops what was started."""
        try:
            self._run()
        finally:
            for command in self._beside:
                command.cancel()

    def _run(self) -> None:
        installation = self._installation
        chosen = self._runtime()
        installing_node = self._start_beside(
            "node", [sys.executable, "-m", node.__name__, str(installation.node_dir)]
        )
        building = None
        if chosen.kind == "docker" and _IMAGE_BUILDER.exists():
            building = self._start_beside("image", [sys.executable, str(_IMAGE_BUILDER)])
        stored = self._database()
        self._server(stored, chosen)
        self._agent(chosen)
        with step("node") as line:
            installing_node.finish(
                _NODE_WITHIN_S, "Node's packages are needed once: check the network, or the npm settings."
            )
            found = node.find(installation.node_dir)
            line.detail = (
                f"Node {found.version if found else '?'}, configurable-http-proxy {node.proxy_version()}"
            )
        self._proxy(chosen)
        self._hub(stored, chosen)
        self._image(chosen, building)
        self._supervisor.facts["ready_since"] = time.time()
        self._supervisor.save()

    def _start_beside(self, name: str, argv: list[str], env: Mapping[str, str] | None = None) -> _Beside:
        with signals.held():
            command = _Beside.start(self._installation, name, argv, env or self._environment())
            self._beside.append(command)
        return command

    def _runtime(self) -> runtime.Runtime:
        with step("runtime") as line:
            for name in stop_orphans(self._installation):
                self._supervisor.say(f"  stopped {name}, which an earlier supervisor left behind")
            chosen = runtime.detect(self._environ)
            ports.require_free(_addresses(self._installation, chosen))
            line.detail, _, remark = f"{chosen.kind}: {chosen.detail}".partition("; ")
        if remark:
            self._supervisor.say(f"            {remark}")
        self._supervisor.facts |= {
            "address_for_notebooks": chosen.bridge or LOOPBACK,
            "runtime": chosen.kind,
            "runtime_detail": chosen.detail,
            "versions": _versions(),
        }
        return chosen

    def _database(self) -> database.Database:
        with step("database") as line:
            stored = database.prepare(self._installation, self._environ)
            self._supervisor.embedded_database = stored.embedded
            self._supervisor.facts["versions"]["postgresql"] = stored.version
            self._supervisor.facts["embedded_database"] = stored.embedded
            line.detail = f"PostgreSQL {stored.version}, " + (
                "our own in the data folder" if stored.embedded else "from REMOTEGPU_DATABASE_URL"
            )
        return stored

    def _server(self, stored: database.Database, chosen: runtime.Runtime) -> None:
        installation = self._installation
        environment = self._environment(
            REMOTEGPU_DATABASE_URL=stored.url,
            REMOTEGPU_LISTEN=",".join(f"{address}:{installation.server_port}" for address in _listen(chosen)),
            REMOTEGPU_WORKLOAD_URL=f"http://{chosen.bridge or LOOPBACK}:{installation.server_port}",
            REMOTEGPU_HUB_URL=installation.hub_url,
            REMOTEGPU_HUB_API_URL=f"http://{_hub_address(chosen)}:{installation.hub_api_port}/hub/api",
            REMOTEGPU_HUB_API_TOKEN_FILE=str(installation.hub_start_token_file),
        )
        # `serve` prepares what `init` would, and saves a start of Python.
        argv = (
            console_script("remotegpu-server"), "serve",
            "--admin-password-file", str(installation.admin_password_file),
            "--hub-token-file", str(installation.hub_token_file),
        )  # fmt: skip
        with step("server") as line:
            self._supervisor.start(
                Service(
                    "server",
                    argv,
                    environment,
                    is_ready=lambda: api.answers(f"{installation.server_url}/readyz"),
                )
            )
            line.detail = installation.server_url

    def _agent(self, chosen: runtime.Runtime) -> None:
        installation = self._installation
        simulate = runtime.simulated_gpus(self._environ)
        environment = self._environment()
        with api.Api(installation) as server, step("agent") as line:
            host = server.host() or server.create_host()
            since = host["last_heartbeat_at"]
            if read_json(installation.agent_dir / "credential.json").get("host_id") != host["id"]:
                self._enroll(server.enrollment_secret(), environment)
            self._supervisor.facts |= {
                "simulated": simulate is not None,
                "simulated_gpus": simulate,
                "host_id": host["id"],
            }
            argv = [
                console_script("remotegpu-agent"), "run",
                "--url", installation.server_url,
                "--state-dir", str(installation.agent_dir),
                "--home-root", str(installation.home / "homes"),
                "--runtime", chosen.kind,
                *(["--simulate-gpus", simulate] if simulate else []),
            ]  # fmt: skip
            self._supervisor.start(
                Service(
                    "agent",
                    tuple(argv),
                    environment,
                    is_ready=lambda: _is_heard(server, since),
                    patience_s=20,
                )
            )
            server.offer_image(chosen.kind)
            line.detail = "GPUs of this machine"
            if simulate:
                line.detail = f"NVML finds no GPU: {simulate} are SIMULATED"

    def _enroll(self, secret: str, environment: Mapping[str, str]) -> None:
        installation = self._installation
        token_file = installation.secrets / "enrollment-token"
        write_private(token_file, secret)
        argv = [
            console_script("remotegpu-agent"), "enroll",
            "--url", installation.server_url,
            "--token-file", str(token_file),
            "--state-dir", str(installation.agent_dir),
        ]  # fmt: skip
        try:
            self._start_beside("enroll", argv, environment).finish(60, "Read the log.")
        finally:
            token_file.unlink()

    def _proxy(self, chosen: runtime.Runtime) -> None:
        installation = self._installation
        control = f"http://{LOOPBACK}:{installation.proxy_api_port}"
        hub = f"http://{_hub_address(chosen)}:{installation.hub_api_port}"
        token = installation.secret("proxy-token")
        argv = (
            *node.proxy_command(installation.node_dir),
            "--ip", LOOPBACK, "--port", str(installation.port),
            "--api-ip", LOOPBACK, "--api-port", str(installation.proxy_api_port),
            "--default-target", hub, "--error-target", f"{hub}/hub/error",
        )  # fmt: skip

        def is_ready() -> bool:
            try:
                answer = httpx.get(
                    f"{control}/api/routes",
                    headers={"Authorization": f"token {token}"},
                    timeout=2,
                    trust_env=False,
                )
            except httpx.HTTPError:
                return False
            return answer.is_success

        with step("proxy") as line:
            self._supervisor.start(
                Service(
                    "proxy",
                    argv,
                    self._environment(CONFIGPROXY_AUTH_TOKEN=token),
                    is_ready,
                    ready_within_s=30,
                )
            )
            line.detail = installation.hub_url

    def _hub(self, stored: database.Database, chosen: runtime.Runtime) -> None:
        installation = self._installation
        configuration = installation.hub_dir / "jupyterhub_config.py"
        configuration.write_text(_HUB_CONFIGURATION)
        api_url = f"http://{_hub_address(chosen)}:{installation.hub_api_port}"
        environment = self._environment(
            REMOTEGPU_URL=installation.server_url,
            REMOTEGPU_HUB_TOKEN_FILE=str(installation.hub_token_file),
            REMOTEGPU_HUB_DATA=str(installation.hub_dir),
            REMOTEGPU_HUB_BIND_URL=installation.hub_url,
            REMOTEGPU_HUB_API_BIND=api_url,
            REMOTEGPU_HUB_CONNECT_URL=api_url,
            REMOTEGPU_PROXY_API_URL=f"http://{LOOPBACK}:{installation.proxy_api_port}",
            REMOTEGPU_HUB_DATABASE_URL=stored.hub_url,
            REMOTEGPU_HUB_API_TOKEN_FILE=str(installation.hub_start_token_file),
            CONFIGPROXY_AUTH_TOKEN=installation.secret("proxy-token"),
        )
        with step("hub") as line:
            self._supervisor.start(
                Service(
                    "hub",
                    (console_script("jupyterhub"), "-f", str(configuration)),
                    environment,
                    is_ready=lambda: api.answers(f"{installation.hub_url}/hub/health"),
                    ready_within_s=90,
                )
            )
            line.detail = installation.hub_url

    def _image(self, chosen: runtime.Runtime, building: _Beside | None) -> None:
        with step("image") as line:
            if building is not None:
                building.finish(
                    _IMAGE_WITHIN_S,
                    "Try `make image`, or REMOTEGPU_RUNTIME=process make up to go without images.",
                )
                line.detail = api.DOCKER_REFERENCE
            elif chosen.kind == "docker":
                line.detail = (
                    f"{api.DOCKER_REFERENCE} (nothing here to build it from: pull or build it yourself)"
                )
            else:
                line.detail = f"{api.PROCESS_IMAGE}: this machine's Python"

    def _environment(self, **variables: str) -> dict[str, str]:
        """The caller's environment without what was meant for us, and the programs of our Python in front."""
        kept = {name: value for name, value in self._environ.items() if not name.startswith("REMOTEGPU_")}
        here = str(Path(sys.executable).parent)
        kept["PATH"] = f"{here}{os.pathsep}{kept.get('PATH', os.defpath)}"
        return kept | {"REMOTEGPU_HOME": str(self._installation.home), "PYTHONUNBUFFERED": "1"} | variables


def summary(installation: Installation) -> str:
    """How to log in."""
    return (
        f"\nREADY  {installation.hub_url}\n"
        f"  log in as {ADMIN}; the first password stands in {installation.admin_password_file}\n"
        f"  command line and SDK: remotegpu login {installation.server_url}\n"
        f"  data and logs: {installation.home}\n"
    )


def _is_heard(server: api.Api, since: str | None) -> bool:
    """Whether this agent reported a ready host: soon after `make down` the last one's word still stands."""
    try:
        host = server.host()
    except httpx.HTTPError:
        return False
    return bool(host and host["ready"] and host["last_heartbeat_at"] != since)


def _listen(chosen: runtime.Runtime) -> list[str]:
    return [LOOPBACK, chosen.bridge] if chosen.bridge else [LOOPBACK]


def _hub_address(chosen: runtime.Runtime) -> str:
    """JupyterHub listens on one address: where containers run, the one that they reach."""
    return chosen.bridge or LOOPBACK


def _addresses(installation: Installation, chosen: runtime.Runtime) -> dict[str, tuple[str, int]]:
    servers = {
        f"server{' for containers' if address != LOOPBACK else ''}": (address, installation.server_port)
        for address in _listen(chosen)
    }
    return {
        "hub": (LOOPBACK, installation.port),
        "proxy control": (LOOPBACK, installation.proxy_api_port),
        "hub API": (_hub_address(chosen), installation.hub_api_port),
        **servers,
    }


def _versions() -> dict[str, str]:
    return {
        "remotegpu": version("remotegpu"),
        "python": sys.version.split()[0],
        "jupyterhub": version("jupyterhub"),
        "configurable-http-proxy": node.proxy_version(),
    }
