"""`status`: what runs, looked at now, for scripts."""

from __future__ import annotations

from typing import Any

import httpx

from remotegpu_server import embedded_postgres
from remotegpu_server.standalone import api
from remotegpu_server.standalone.failure import StepFailed
from remotegpu_server.standalone.installation import ADMIN, Installation
from remotegpu_server.standalone.supervisor import STOP_ORDER, read_state


def describe(installation: Installation) -> dict[str, Any]:
    """Everything a script may want; no secret is in it."""
    state = read_state(installation)
    facts = state.facts
    database = embedded_postgres.status(installation.database_dir)
    processes: dict[str, int | None] = {"supervisor": state.supervisor.pid if state.supervisor else None}
    if facts.get("embedded_database"):
        processes["database"] = database.pid if database else None
    for name in reversed(STOP_ORDER):
        processes[name] = state.children[name].pid if name in state.children else None
    problems = [f"{name} does not run" for name, pid in processes.items() if pid is None]
    problems += [f"{name} failed too often and stays down" for name in state.given_up]
    problems = problems or _problems(installation)
    return {
        "ready": not problems and "ready_since" in facts,
        "problems": problems,
        "urls": {
            "hub": installation.hub_url,
            "server": installation.server_url,
            "server_for_notebooks": f"http://{facts.get('address_for_notebooks')}:{installation.server_port}",
        },
        "admin": {"username": ADMIN, "password_file": str(installation.admin_password_file)},
        "runtime": facts.get("runtime"),
        "runtime_detail": facts.get("runtime_detail"),
        "simulated": facts.get("simulated"),
        "simulated_gpus": facts.get("simulated_gpus"),
        "versions": facts.get("versions", {}),
        "processes": processes,
        "home": str(installation.home),
        "logs": {path.stem: str(path) for path in sorted(installation.logs.glob("*.log"))},
    }


def _problems(installation: Installation) -> list[str]:
    """What does not answer although its process runs."""
    if not api.answers(f"{installation.server_url}/readyz"):
        return ["the server does not answer"]
    found = []
    if not api.answers(f"{installation.hub_url}/hub/health"):
        found.append("the hub does not answer through its proxy")
    try:
        with api.Api(installation) as server:
            host = server.host()
    except (httpx.HTTPError, StepFailed, OSError) as error:
        return [*found, f"the server does not tell about this host: {error}"]
    if host is None or not host["ready"]:
        found.append(
            f"this host takes no work: {host['not_ready_reason'] if host else 'unknown to the server'}"
        )
    return found
