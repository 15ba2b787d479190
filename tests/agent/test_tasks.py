"""Tasks on a real agent process, in both runtimes, against a scripted server."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import time
from pathlib import Path

import pytest
from agent_process import AgentProcess, clean_up, leftovers
from scripted_attempts import Told
from scripted_server import ScriptedServer
from task_specs import attempt, current, shell

from remotegpu.types.agent import AttemptInput, ClaimedAttempt


def finish(server: ScriptedServer, attempt_id: str | None = None, *, timeout_s: float = 30) -> Told:
    """Its end, with everything that must hold at every end."""
    attempt_id = attempt_id or current()
    told = server.attempts.told[attempt_id]
    server.until(f"{attempt_id} is released", lambda: told.released, timeout_s=timeout_s)
    assert server.attempts.wrong == []
    if told.result is not None:
        assert told.pieces_at_end == len(told.pieces), "output after the result"
    return told


def run(server: ScriptedServer, spec: ClaimedAttempt, *, timeout_s: float = 30) -> Told:
    server.attempts.assign(spec)
    return finish(server, spec.id, timeout_s=timeout_s)


def until_running(server: ScriptedServer, attempt_id: str | None = None) -> Told:
    attempt_id = attempt_id or current()
    told = server.attempts.told[attempt_id]
    server.until(f"{attempt_id} runs", lambda: told.started)
    return told


def until_said(server: ScriptedServer, text: bytes, attempt_id: str | None = None) -> Told:
    attempt_id = attempt_id or current()
    told = server.attempts.told[attempt_id]
    server.until(f"{attempt_id} says {text!r}", lambda: text in told.output)
    return told


def ending(told: Told) -> tuple[str, str, int | None]:
    assert told.result is not None
    return str(told.result.status), told.result.reason, told.result.exit_code


def test_task_runs_to_its_end_and_nothing_is_left(
    calm_agent: AgentProcess, calm_server: ScriptedServer
) -> None:
    told = run(calm_server, shell("echo out; echo err >&2; echo more >/dev/stderr; exit 3"))
    assert ending(told) == ("failed", "exit_code", 3)
    assert sorted(told.output.split()) == [b"err", b"more", b"out"]
    assert (told.accepted, told.started) == (1, 1)
    assert leftovers(calm_agent) == []


def test_success_is_told(calm_agent: AgentProcess, calm_server: ScriptedServer) -> None:
    assert ending(run(calm_server, attempt("true"))) == ("succeeded", "succeeded", 0)


def test_task_finds_its_variables_and_keeps_secrets_out_of_the_disk(
    calm_agent: AgentProcess, calm_server: ScriptedServer
) -> None:
    names = "REMOTEGPU_TASK_ID REMOTEGPU_ATTEMPT_ID REMOTEGPU_ATTEMPT REMOTEGPU_RANK MINE SECRET"
    script = f"for n in {names}; do eval echo \\$$n; done; pwd; echo x >$REMOTEGPU_OUTPUT/kept; sleep 600"
    spec = shell(script, env={"MINE": "a b"}, secret_env={"SECRET": "canary"}, rank=2, number=4)
    calm_server.attempts.assign(spec)
    told = until_said(calm_server, b"canary\n/")
    ids = [f"task-{current()}".encode(), current().encode()]
    assert told.output.splitlines()[:6] == [*ids, b"4", b"2", b"a b", b"canary"]
    kept = [path for path in calm_agent.state_dir.rglob("*") if path.is_file() and path.name != "log"]
    assert [path for path in kept if b"canary" in path.read_bytes()] == []
    assert [path.name for path in kept if path.parent.name == "output"] == ["kept"]
    calm_server.attempts.stop(current())
    finish(calm_server)
    folder = calm_agent.state_dir / "attempts" / current()
    calm_server.until("its folder is gone", lambda: not folder.exists())


def test_input_is_there_before_the_start_and_cannot_be_changed(
    calm_agent: AgentProcess, calm_server: ScriptedServer
) -> None:
    calm_server.attempts.input = b"what it reads"
    wanted = AttemptInput(sha256=hashlib.sha256(b"what it reads").hexdigest(), size_bytes=13)
    script = "cat $REMOTEGPU_INPUT; echo x 2>/dev/null >$REMOTEGPU_INPUT || echo refused"
    told = run(calm_server, shell(script, input=wanted))
    may_write = calm_agent.runtime != "docker" and os.geteuid() == 0  # nothing is closed to root
    assert told.output.startswith(b"what it reads")
    assert told.output.endswith(b"refused\n") is not may_write
    wrong = attempt(
        "true", attempt_id=f"{current()}-wrong", input=wanted.model_copy(update={"size_bytes": 9})
    )
    told = run(calm_server, wrong)
    assert (told.started, ending(told)) == (0, ("failed", "start_failed", None))
    assert told.result is not None
    assert "wrong checksum" in told.result.message


@pytest.mark.parametrize("first", ["", "#!/bin/sh\n"])
def test_script_runs_by_its_first_line_or_the_shell(
    calm_agent: AgentProcess, calm_server: ScriptedServer, first: str
) -> None:
    script = f"{first}echo one\necho two\nexit 5\n"
    told = run(calm_server, attempt(script=script))
    assert (ending(told), told.output) == (("failed", "exit_code", 5), b"one\ntwo\n")


def test_command_that_is_not_there_says_so(calm_agent: AgentProcess, calm_server: ScriptedServer) -> None:
    told = run(calm_server, attempt("no-such-program"))
    assert ending(told) == ("failed", "command_not_found", 127)
    assert told.result is not None
    assert "no-such-program was not found" in told.result.message
    assert "PATH=" in told.result.message
    assert b"no-such-program" in told.output


def test_task_over_its_memory_says_so(calm_agent: AgentProcess, calm_server: ScriptedServer) -> None:
    script = "x=$(head -c 200000000 /dev/zero | tr '\\0' x); echo survived"
    told = run(calm_server, shell(script, memory_bytes=64 * 2**20))
    assert ending(told)[:2] == ("failed", "out_of_memory")
    assert told.result is not None
    assert "64 MiB" in told.result.message
    assert told.result.peak_memory_bytes is None or told.result.peak_memory_bytes > 32 * 2**20


def test_fork_bomb_is_bounded_and_ends_with_its_task(
    calm_agent: AgentProcess, calm_server: ScriptedServer
) -> None:
    if calm_agent.runtime == "slurm":
        pytest.skip("Slurm's cgroup plugin would bound it, and this machine has none: it would not end")
    bomb = "b() { b | b & }; trap '' TERM; b; sleep 2; echo still here; exit 7"
    told = run(calm_server, shell(bomb, timeout_s=20), timeout_s=60)
    assert told.result is not None
    assert told.result.exit_code != 0
    assert leftovers(calm_agent) == []


def test_timeout_ends_the_whole_tree(calm_agent: AgentProcess, calm_server: ScriptedServer) -> None:
    script = "trap '' TERM; (trap '' TERM; sleep 600; sleep 600) & sleep 600; sleep 600"
    began = time.monotonic()
    told = run(calm_server, shell(script, timeout_s=1, stop_grace_s=1))
    assert ending(told)[:2] == ("timed_out", "timeout")
    assert 2 <= time.monotonic() - began < 15
    assert leftovers(calm_agent) == []


def test_stop_lets_the_task_tidy_up(calm_agent: AgentProcess, calm_server: ScriptedServer) -> None:
    calm_server.attempts.assign(
        shell("trap 'echo tidy; exit 9' TERM; echo ready; while :; do sleep 0.1; done")
    )
    until_said(calm_server, b"ready")
    calm_server.attempts.stop(current())
    told = finish(calm_server)
    assert ending(told)[:2] == ("cancelled", "cancelled")
    assert told.output.startswith(b"ready\n")
    assert told.output.endswith(b"tidy\n")


def test_stop_before_the_start_starts_nothing(task_agent: AgentProcess, server: ScriptedServer) -> None:
    server.attempts.assign(shell("echo ran"))
    server.attempts.stop(current())
    task_agent.start()
    told = finish(server)
    assert (ending(told)[0], told.started, told.output) == ("cancelled", 0, b"")


def test_grandchildren_end_with_their_task(calm_agent: AgentProcess, calm_server: ScriptedServer) -> None:
    told = run(calm_server, shell("(trap '' TERM HUP; sleep 600; echo never) & echo done; exit 0"))
    assert (ending(told)[0], told.output) == ("succeeded", b"done\n")
    assert leftovers(calm_agent) == []


def test_what_the_server_refuses_ends_before_any_other_word(
    calm_agent: AgentProcess, calm_server: ScriptedServer
) -> None:
    calm_server.attempts.assign(shell("trap '' TERM; echo ready; while :; do echo x; sleep 0.05; done"))
    until_said(calm_server, b"ready")
    calm_server.attempts.refuse(current())
    told = finish(calm_server)
    assert told.result is None
    assert set(told.writes_after_refusal) <= {"renew", "logs"}
    assert len(told.writes_after_refusal) <= 2
    assert leftovers(calm_agent) == []


def test_progress_from_inside_arrives(calm_agent: AgentProcess, calm_server: ScriptedServer) -> None:
    say = "echo '0.25 epoch 1' >$REMOTEGPU_PROGRESS_FILE; sleep 1.5; echo '1 done' >$REMOTEGPU_PROGRESS_FILE"
    calm_server.attempts.assign(shell(say))
    said = finish(calm_server).said
    assert list(dict.fromkeys(said)) == [(0.25, "epoch 1"), (1.0, "done")], "the last one may come twice"


def test_claims_never_exceed_the_free_places(process_agent: AgentProcess, server: ScriptedServer) -> None:
    process_agent.options = ["--max-tasks", "2"]
    process_agent.start()
    server.attempts.assign(*(shell("sleep 0.3", attempt_id=f"att-{number}") for number in range(5)))
    for number in range(5):
        finish(server, f"att-{number}")
    assert {claim.max_attempts for claim in server.attempts.claims} <= {1, 2}


LABELS = [
    "task-claimed", "task-stored", "task-accepted", "task-spawned", "task-started", "task-ended", "task-kept",
    "task-piece", "task-completed",
]  # fmt: skip


@pytest.mark.parametrize("label", LABELS)
def test_agent_killed_at_any_step_ends_it_exactly_once(
    task_agent: AgentProcess, server: ScriptedServer, label: str
) -> None:
    task_agent.environ = {"REMOTEGPU_CRASH_AT": label}
    task_agent.start()
    server.attempts.assign(shell("echo begun >>$HOME/begun; echo one; sleep 0.5; echo two; exit 3"))
    assert task_agent.wait() == 137
    time.sleep(0.7)  # it may end while nobody looks
    task_agent.environ = {}
    task_agent.start()
    told = finish(server)
    assert (task_agent.state_dir / "homes" / "vol-1" / "begun").read_text() == "begun\n"
    assert ending(told) == ("failed", "exit_code", 3)
    assert told.output == b"one\ntwo\n"
    assert leftovers(task_agent) == []


def test_server_that_is_away_delays_no_end_and_gets_everything_later(
    process_agent: AgentProcess, server: ScriptedServer
) -> None:
    process_agent.start()
    marker = process_agent.state_dir / "homes" / "vol-1" / "go"
    server.attempts.assign(shell("echo one; while [ ! -e ~/go ]; do sleep 0.05; done; echo two; exit 4"))
    until_said(server, b"one")
    server.fail("/v1/agent/attempts/", *[(503, "unavailable")] * 8)
    marker.touch()
    folder = process_agent.state_dir / "attempts" / current()
    server.until("its result is kept", lambda: (folder / "result").exists())
    assert leftovers(process_agent) == []
    told = finish(server)
    assert (ending(told), told.output) == (("failed", "exit_code", 4), b"one\ntwo\n")


def test_granted_attempt_that_nobody_knows_is_released(
    process_agent: AgentProcess, server: ScriptedServer
) -> None:
    server.attempts.assign(shell("echo never"))
    server.attempts.told[current()].request_id = "of-an-agent-that-lost-its-disk"
    server.attempts.told[current()].accepted = 1
    process_agent.options = ["--poll-wait", "0.5"]
    process_agent.start()
    assert finish(server).result is None


def test_frozen_agent_is_fenced_by_its_guard_and_writes_nothing_once_awake(
    task_agent: AgentProcess, server: ScriptedServer
) -> None:
    server.attempts.fence_s, server.attempts.fence_grace_s, server.attempts.renew_in_s = 2.0, 0.5, 0.5
    task_agent.start()
    server.attempts.assign(shell("trap '' TERM; (sleep 600) & echo ready; while :; do sleep 0.05; done"))
    until_said(server, b"ready")
    server.until("the guard lives", lambda: guard_pid(task_agent.state_dir))
    assert task_agent.process is not None
    task_agent.process.send_signal(signal.SIGSTOP)
    try:
        server.until("the guard ended it", lambda: leftovers(task_agent, running=True) == [])
        server.attempts.refuse(current())
    finally:
        task_agent.process.send_signal(signal.SIGCONT)
    told = finish(server)
    assert told.result is None
    assert len(told.writes_after_refusal) <= 3
    assert leftovers(task_agent) == []


def test_task_longer_than_its_fence_is_renewed_and_succeeds(
    process_agent: AgentProcess, server: ScriptedServer
) -> None:
    server.attempts.fence_s, server.attempts.renew_in_s = 2.0, 0.4
    process_agent.start()
    server.until("the agent waits for work", lambda: server.attempts.claims)
    server.attempts.assign_quietly(shell("sleep 5; echo done"))
    told = finish(server)
    assert (ending(told), told.output) == (("succeeded", "succeeded", 0), b"done\n")
    assert told.renewed >= 5


def test_agent_without_contact_ends_the_attempt_itself_after_the_fence(
    process_agent: AgentProcess, server: ScriptedServer
) -> None:
    server.attempts.fence_s, server.attempts.renew_in_s = 1.5, 0.5
    process_agent.start()
    server.attempts.assign(shell("echo ready; sleep 600"))
    until_said(server, b"ready")
    server.fail("/v1/agent/attempts/", *[(503, "unavailable")] * 100)
    server.until("it has ended", lambda: leftovers(process_agent) == [], timeout_s=10)
    with server.changed:
        server.failures.clear()
    assert ending(finish(server))[:2] == ("lost", "lease_lost")


def guard_pid(state_dir: Path) -> int | None:
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                words = Path(f"/proc/{name}/cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if os.fsencode(state_dir) in words and any(word.endswith(b"/guard.py") for word in words):
                return int(name)
    return None


def test_guard_outlives_the_agent_and_ends_what_it_left(
    process_agent: AgentProcess, server: ScriptedServer
) -> None:
    server.attempts.fence_s, server.attempts.fence_grace_s = 2.5, 0.5
    process_agent.start()
    server.attempts.assign(shell("echo ready; sleep 600"))
    until_said(server, b"ready")
    server.until("the guard lives", lambda: guard_pid(process_agent.state_dir))
    process_agent.kill()
    server.until("the guard ended it", lambda: leftovers(process_agent) == [], timeout_s=10)
    process_agent.start()
    assert ending(finish(server))[:2] == ("lost", "lease_lost")


def test_guard_that_is_killed_is_started_again(process_agent: AgentProcess, server: ScriptedServer) -> None:
    process_agent.start()
    server.attempts.assign(shell("sleep 600"))
    first = server.until("the guard lives", lambda: guard_pid(process_agent.state_dir))
    os.kill(first, signal.SIGKILL)
    server.until("another one", lambda: guard_pid(process_agent.state_dir) not in (None, first))
    server.attempts.stop(current())
    finish(server)


def test_answers_that_are_lost_change_nothing(process_agent: AgentProcess, server: ScriptedServer) -> None:
    server.attempts.lose = dict.fromkeys(("claim", "accept", "start", "logs", "complete", "release"), 2)
    process_agent.start()
    server.attempts.assign(shell("echo begun >>~/begun; echo one; exit 3"))
    told = finish(server)
    server.until("every answer was lost twice", lambda: not any(server.attempts.lose.values()))
    assert (ending(told), told.output) == (("failed", "exit_code", 3), b"one\n")
    assert (process_agent.state_dir / "homes" / "vol-1" / "begun").read_text() == "begun\n"


def test_restart_of_the_machine_ends_what_ran(process_agent: AgentProcess, server: ScriptedServer) -> None:
    process_agent.start()
    server.attempts.assign(shell("echo ready; sleep 600"))
    until_said(server, b"ready")
    process_agent.kill()
    clean_up(server.host_id, "process")
    folder = process_agent.state_dir / "attempts" / current()
    for name in ("started", "process", "lease"):
        facts = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(facts | {"boot_id": "of-yesterday"}))
    process_agent.start()
    assert ending(finish(server)) == ("lost", "host_rebooted", None)
