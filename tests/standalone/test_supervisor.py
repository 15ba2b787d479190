"""Starting, starting again, giving up, being found again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from standalone.stand_ins import stand_in, until

from remotegpu_server.standalone import supervisor as supervision
from remotegpu_server.standalone.failure import StepFailed
from remotegpu_server.standalone.installation import Installation
from remotegpu_server.standalone.process import Identity
from remotegpu_server.standalone.supervisor import Pace, Supervisor, read_state, stop_orphans

FOREVER = "import time; print('here', flush=True); time.sleep(600)"
QUICK = Pace(first_pause=0.01, longest_pause=0.05, failures_allowed=3)


def pid(installation: Installation, name: str) -> int | None:
    child = read_state(installation).children.get(name)
    return child.pid if child else None


def test_start_waits_until_the_part_is_ready(supervisor: Supervisor, installation: Installation) -> None:
    log = installation.log("server")
    supervisor.start(stand_in("server", FOREVER, ready=lambda: "here" in log.read_text()))
    assert "here" in log.read_text()
    assert log.stat().st_mode & 0o777 == 0o600
    assert pid(installation, "server") is not None


def test_part_that_ends_at_once_is_a_failed_step_with_its_log(
    supervisor: Supervisor, installation: Installation
) -> None:
    with pytest.raises(StepFailed, match="ended with exit code 3") as failed:
        supervisor.start(
            stand_in("hub", "print('no such setting'); raise SystemExit(3)", ready=lambda: False)
        )
    assert failed.value.log == installation.log("hub")
    assert "no such setting" in installation.log("hub").read_text()


def test_part_that_never_gets_ready_is_a_failed_step(supervisor: Supervisor) -> None:
    with pytest.raises(StepFailed, match="not ready within"):
        supervisor.start(stand_in("hub", FOREVER, ready=lambda: False, ready_within_s=0.1))


def test_killed_part_is_started_again(
    supervisor: Supervisor, installation: Installation, said: list[str]
) -> None:
    supervisor.pace = QUICK
    supervisor.start(stand_in("agent", FOREVER))
    killed = pid(installation, "agent")
    assert killed is not None
    os.kill(killed, signal.SIGKILL)

    def is_back() -> bool:
        supervisor.tick()
        return pid(installation, "agent") not in (None, killed)

    until("the agent is back", is_back)
    assert any("agent ended with exit code -9" in line for line in said)


def test_part_that_always_dies_is_given_up_loudly(
    supervisor: Supervisor, installation: Installation, said: list[str]
) -> None:
    supervisor.pace = QUICK
    supervisor.start(stand_in("hub", "print('cannot bind'); raise SystemExit(1)"))

    def given_up() -> bool:
        supervisor.tick()
        return read_state(installation).given_up == ["hub"]

    until("the hub is given up", given_up)
    attempts = installation.log("hub").read_text().count("cannot bind")
    assert attempts == 1 + QUICK.failures_allowed
    assert any("stays down" in line for line in said)
    assert any("cannot bind" in line for line in said)


def test_pauses_grow_to_a_bound(supervisor: Supervisor) -> None:
    pauses = [supervisor._pause(failures) for failures in range(1, 10)]
    assert pauses[:3] == [0.5, 1, 2]
    assert pauses[-1] == 30


def test_stop_ends_a_part_that_ignores_the_request(
    supervisor: Supervisor, installation: Installation
) -> None:
    deaf = (
        "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); " + FOREVER
    )
    log = installation.log("server")
    supervisor.start(stand_in("server", deaf, ready=lambda: "deaf" in log.read_text(), patience_s=0.1))
    child = read_state(installation).children["server"]
    assert supervisor.stop("server") is True
    assert not child.alive
    assert supervisor.stop("server") is False


def test_orphans_of_a_killed_supervisor_are_found_and_stopped_in_order(installation: Installation) -> None:
    program = f"""
import os, signal, sys
from pathlib import Path
from remotegpu_server.standalone.installation import Installation
from remotegpu_server.standalone.supervisor import Service, Supervisor
supervisor = Supervisor(Installation(Path({str(installation.home)!r}), 18900), print)
for name in ("server", "agent", "hub"):
    argv = (sys.executable, "-c", {FOREVER!r})
    supervisor.start(Service(name, argv, dict(os.environ), is_ready=lambda: True))
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", program], check=False)
    assert done.returncode == -signal.SIGKILL
    state = read_state(installation)
    assert state.supervisor is None
    assert set(state.children) == {"server", "agent", "hub"}
    assert stop_orphans(installation) == ["hub", "agent", "server"]
    assert not any(child.alive for child in state.children.values())


def test_reused_process_id_is_not_taken_for_a_part(installation: Installation) -> None:
    stranger = Identity.of(os.getpid())
    assert stranger is not None
    older = Identity(pid=stranger.pid, started="another-boot:1")
    supervision.write_private(
        supervision.state_file(installation),
        f'{{"children": {{"server": {{"pid": {older.pid}, "started": "{older.started}"}}}}}}',
    )
    assert read_state(installation).children == {}
    assert stop_orphans(installation) == []


def test_damaged_state_file_counts_as_none(installation: Installation) -> None:
    supervision.state_file(installation).write_text('{"children": ')
    assert read_state(installation).children == {}


def test_log_that_grew_too_large_is_cut_and_kept_once(
    supervisor: Supervisor, installation: Installation
) -> None:
    log = installation.log("server")
    supervisor.start(stand_in("server", FOREVER, ready=lambda: "here" in log.read_text()))
    with log.open("ab") as file:
        file.truncate(supervision._LOG_LIMIT_BYTES + 1)
    supervisor.tick()
    assert log.stat().st_size == 0
    assert Path(f"{log}.1").read_bytes().startswith(b"here")
