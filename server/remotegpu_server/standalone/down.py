"""`down`: stop what `up` started, in order, and nothing else."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping

import httpx

from remotegpu_server import embedded_postgres
from remotegpu_server.standalone import api, runtime
from remotegpu_server.standalone.failure import StepFailed
from remotegpu_server.standalone.installation import Installation
from remotegpu_server.standalone.report import say
from remotegpu_server.standalone.supervisor import Recorded, read_state, state_file

_SUPERVISOR_PATIENCE_S = 150
_WORKLOADS_WITHIN_S = 45


def run(installation: Installation, environ: Mapping[str, str]) -> int:
    """Have the supervisor stop everything; where it was killed, stop what it left."""
    state = read_state(installation)
    if state.supervisor is not None:
        state.supervisor.signal(signal.SIGTERM)
        if state.supervisor.await_end(_SUPERVISOR_PATIENCE_S):
            say("stopped")
            return 0
        say(
            f"the supervisor (process {state.supervisor.pid}) does not answer; stopping everything without it"
        )
        state.supervisor.stop(patience_s=0)
        state = read_state(installation)
    database = embedded_postgres.status(installation.database_dir)
    if not state.children and database is None:
        say("nothing runs here")
        return 0
    stop_everything(installation, environ, lambda name: _stop_recorded(state, name))
    say("stopped")
    return 0


def stop_everything(
    installation: Installation, environ: Mapping[str, str], stop: Callable[[str], bool]
) -> None:
    """Nobody can start more first, then the notebooks, then what ran them, and the database last."""
    for name in ("hub", "proxy"):
        _stop(name, stop)
    _stop_notebooks(installation)
    _stop("agent", stop)
    _remove_left_containers(installation, environ)
    _stop("server", stop)
    if embedded_postgres.stop(installation.database_dir):
        say("  stopped database")
    state_file(installation).unlink(missing_ok=True)


def _stop(name: str, stop: Callable[[str], bool]) -> None:
    if stop(name):
        say(f"  stopped {name}")


def _stop_recorded(state: Recorded, name: str) -> bool:
    child = state.children.get(name)
    if child is not None:
        child.stop(patience_s=20)
    return child is not None


def _stop_notebooks(installation: Installation) -> None:
    """Through the server, which then knows; it needs server and agent alive, and says so if they are not."""
    if not installation.hub_token_file.exists() or not api.answers(f"{installation.server_url}/readyz"):
        return
    try:
        with api.Api(installation) as server:
            stopped, left = server.stop_environments(_WORKLOADS_WITHIN_S)
    except (httpx.HTTPError, StepFailed) as error:
        say(f"  notebooks: {error}")
        return
    if stopped:
        say(f"  stopped {stopped - left} of {stopped} notebooks")


def _remove_left_containers(installation: Installation, environ: Mapping[str, str]) -> None:
    """Containers that the agent could not remove; the next agent reports them absent."""
    facts = read_state(installation).facts
    if facts.get("runtime") != "docker" or "host_id" not in facts:
        return
    try:
        removed = runtime.remove_containers(environ, facts["host_id"])
    except httpx.HTTPError as error:
        say(f"  Docker does not answer, so containers may be left: {error}")
        return
    if removed:
        say(f"  removed {removed} containers that were left")
