"""Attempts as jobs of a real Slurm: killed agents, foreign hands in the queue, a controller that is away."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest
from agent_process import AgentProcess, leftovers
from scripted_server import ScriptedServer
from slurm_cluster import NODES
from slurm_cluster import until as until_true
from task_specs import current, shell
from test_tasks import ending, finish, until_running, until_said

from remotegpu.types.agent import Gang
from remotegpu_agent import processes
from remotegpu_agent.runtime import RuntimeUnavailable
from remotegpu_agent.settings import Settings
from remotegpu_agent.slurm import commands, job
from remotegpu_agent.slurm.commands import Job
from remotegpu_agent.slurm.nodes import NodeGpus, gres_gpus, health_of
from remotegpu_agent.slurm.tasks import SlurmTasks, cause_of, time_limit
from remotegpu_agent.tasks.folders import Folder

RESULT = (("failed", "exit_code", 3), b"one\ntwo\n", "begun\n")
BEGUN = "echo begun >>~/begun; echo one; sleep 1; echo two; exit 3"


def begun(agent: AgentProcess) -> str:
    return (agent.state_dir / "homes" / "vol-1" / "begun").read_text()


def jobs(agent: AgentProcess) -> list[tuple[str, str, str]]:
    assert agent.cluster is not None
    return agent.cluster.jobs(f"rg-{current()}")


@pytest.mark.parametrize("label", ["task-submitted", "task-spawned", "task-ended"])
def test_agent_killed_at_any_step_finds_its_job_again(
    slurm_agent: AgentProcess, server: ScriptedServer, label: str
) -> None:
    slurm_agent.environ = {"REMOTEGPU_CRASH_AT": label}
    slurm_agent.start()
    server.attempts.assign(shell(BEGUN))
    assert slurm_agent.wait(40) == 137
    slurm_agent.environ = {}
    slurm_agent.start()
    told = finish(server)
    assert (ending(told), told.output, begun(slurm_agent)) == (
        ("failed", "exit_code", 3),
        b"one\ntwo\n",
        "begun\n",
    )
    assert len(jobs(slurm_agent)) == 1
    assert told.where == f"Job {jobs(slurm_agent)[0][0]} of Slurm on {NODES[0]}."
    assert leftovers(slurm_agent) == []


def test_second_job_of_an_attempt_begins_nothing(slurm_agent: AgentProcess, server: ScriptedServer) -> None:
    """The answer to a submission may be lost, and the job be there."""
    assert slurm_agent.cluster is not None
    slurm_agent.environ = {"REMOTEGPU_CRASH_AT": "task-submitted"}
    slurm_agent.start()
    server.attempts.assign(shell(BEGUN))
    assert slurm_agent.wait(40) == 137
    folder = slurm_agent.state_dir / "attempts" / current()
    script = slurm_agent.cluster.run("scontrol", "write", "batch_script", jobs(slurm_agent)[0][0], "-")
    (folder.parent / "copy.sh").write_text(script)
    name = f"--job-name=rg-{current()}"
    slurm_agent.cluster.run("sbatch", name, "--mem=10", "--output=/dev/null", str(folder.parent / "copy.sh"))
    slurm_agent.environ = {}
    slurm_agent.start()
    told = finish(server)
    assert (ending(told), begun(slurm_agent)) == (("failed", "exit_code", 3), "begun\n")
    assert sorted(state for _, _, state in jobs(slurm_agent)) == ["CANCELLED", "FAILED"]


@pytest.mark.parametrize(
    "script",
    [
        "trap '' TERM; (setsid sleep 600) & echo ready; while :; do sleep 0.05; done",
        "echo ready; exec env -i sleep 600",  # nothing in its environment tells whose it is
    ],
)
def test_job_of_a_dead_agent_ends_itself_after_the_fence(
    slurm_agent: AgentProcess, server: ScriptedServer, script: str
) -> None:
    server.attempts.fence_s, server.attempts.fence_grace_s, server.attempts.renew_in_s = 4.0, 1.0, 0.5
    slurm_agent.start()
    server.attempts.assign(shell(script))
    until_said(server, b"ready")
    slurm_agent.kill()
    until_true("its own watch ended it", lambda: leftovers(slurm_agent) == [])
    slurm_agent.start()
    assert ending(finish(server))[:2] == ("lost", "lease_lost")


def test_frozen_agent_finds_its_job_fenced(slurm_agent: AgentProcess, server: ScriptedServer) -> None:
    server.attempts.fence_s, server.attempts.fence_grace_s, server.attempts.renew_in_s = 4.0, 1.0, 0.5
    slurm_agent.start()
    server.attempts.assign(shell("echo ready; sleep 600"))
    until_said(server, b"ready")
    assert slurm_agent.process is not None
    slurm_agent.process.send_signal(signal.SIGSTOP)
    try:
        until_true("its own watch ended it", lambda: leftovers(slurm_agent) == [])
    finally:
        slurm_agent.process.send_signal(signal.SIGCONT)
    assert ending(finish(server))[:2] == ("lost", "lease_lost")


def test_renewal_from_before_a_freeze_is_not_taken_for_a_new_one(tmp_path: Path) -> None:
    """The whole node stood still for longer than the lease: the job's script alone, without Slurm."""
    (tmp_path / "alive").write_text(job.alive("1", left_s=2, grace_s=0))
    environment = {"PATH": os.environ["PATH"], processes.MARKER: current()}
    (tmp_path / "go").write_text(
        job.go("7", environment=environment, working_dir="/", command=["sleep", "600"])
    )
    script = job.script(str(tmp_path), marker=current(), log_cap_bytes=2**20)
    variables = {"PATH": os.environ["PATH"], "SLURM_JOB_ID": "7"}
    with subprocess.Popen(["sh", "-c", script], env=variables, start_new_session=True) as node:
        try:
            until_true(
                "it runs",
                lambda: (tmp_path / "there").exists() and "began" in (tmp_path / "there").read_text(),
            )
            os.killpg(node.pid, signal.SIGSTOP)
            time.sleep(3)
            (tmp_path / "alive").write_text(job.alive("2", left_s=600, grace_s=0))
            os.killpg(node.pid, signal.SIGCONT)
            node.wait(20)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(node.pid, signal.SIGKILL)
    assert (tmp_path / "there").read_text().endswith("began\nfenced\n")


def test_stop_ends_a_tree_that_ignores_it(slurm_agent: AgentProcess, server: ScriptedServer) -> None:
    slurm_agent.start()
    script = "trap '' TERM; (trap '' TERM; setsid sleep 600) & echo ready; while :; do sleep 0.05; done"
    server.attempts.assign(shell(script, stop_grace_s=1, env={"folder": "/nowhere"}))
    until_said(server, b"ready")
    server.attempts.stop(current())
    assert ending(finish(server))[:2] == ("cancelled", "cancelled")
    assert leftovers(slurm_agent) == []


def test_stop_ends_a_job_that_an_admin_has_suspended(
    slurm_agent: AgentProcess, server: ScriptedServer
) -> None:
    """Slurm sends it no TERM."""
    assert slurm_agent.cluster is not None
    slurm_agent.start()
    server.attempts.assign(shell("echo ready; sleep 600", stop_grace_s=1))
    until_said(server, b"ready")
    slurm_agent.cluster.run("scontrol", "suspend", jobs(slurm_agent)[0][0])
    server.attempts.stop(current())
    assert ending(finish(server))[:2] == ("cancelled", "cancelled")
    assert leftovers(slurm_agent) == []


def test_stop_takes_the_lease_away_while_slurm_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job's own watch ends it then."""
    monkeypatch.setenv("PATH", str(tmp_path))  # no program of Slurm is there
    settings = Settings(url="", state_dir=tmp_path, home_root=tmp_path)
    gpus = NodeGpus("h", [], simulated=True)
    tasks = SlurmTasks(settings, "h", slurm=commands.Slurm("gpu"), node_name="n", gpus=gpus)
    folder = Folder(tmp_path / "attempts", "att-1")
    folder.path.mkdir(parents=True)
    folder.put_process(job="7", node="n", gpus="", visible="")
    asyncio.run(tasks.terminate(folder))
    with pytest.raises(RuntimeUnavailable):
        asyncio.run(tasks.kill(folder))
    assert (folder.path / "alive").read_text().startswith("over 0 0 ")


def test_node_that_is_lost_while_its_job_waits_for_the_others_loses_the_attempt(
    slurm_agent: AgentProcess, server: ScriptedServer
) -> None:
    cluster = slurm_agent.cluster
    assert cluster is not None
    slurm_agent.start()
    gang = Gang(nodes=2, address="127.0.0.1", port=29500)
    with server.changed:
        server.attempts.assign(shell("echo never", gang=gang))
        told = server.attempts.told[current()]
        told.go = False
    server.until("it waits for the others", lambda: told.ready)
    cluster.run("scontrol", "update", f"nodename={NODES[0]}", "state=down", "reason=smoke")
    try:
        until_true("its job is gone", lambda: [state for _, _, state in jobs(slurm_agent)] == ["NODE_FAIL"])
        told.go = True
        assert ending(finish(server, timeout_s=60)) == ("lost", "process_lost", None)
        assert (told.started, told.output) == (0, b"")
    finally:
        if cluster.states()[NODES[0]].startswith("down"):  # it may have come back by itself
            cluster.run("scontrol", "update", f"nodename={NODES[0]}", "state=resume")
        until_true("the node is back", lambda: cluster.states()[NODES[0]] == "idle")


def test_job_that_waits_for_others_has_the_longest_time_limit() -> None:
    assert [time_limit(90, 3600, waits=waits) for waits in (False, True)] == ["2", "60"]
    assert [time_limit(90, None, waits=waits) for waits in (False, True)] == ["2", "UNLIMITED"]


def test_cancel_by_an_admin_of_slurm_is_told(slurm_agent: AgentProcess, server: ScriptedServer) -> None:
    assert slurm_agent.cluster is not None
    slurm_agent.start()
    server.attempts.assign(shell("echo ready; sleep 600"))
    until_said(server, b"ready")
    slurm_agent.cluster.run("scancel", jobs(slurm_agent)[0][0])
    told = finish(server)
    assert ending(told)[:2] == ("failed", "cancelled")
    assert told.result is not None
    assert "was cancelled in Slurm, and not by RemoteGPU" in told.result.message


def test_what_waits_in_slurm_says_why_and_can_be_stopped(
    slurm_agent: AgentProcess, server: ScriptedServer
) -> None:
    """Somebody else's job has the node."""
    assert slurm_agent.cluster is not None
    other = slurm_agent.cluster.run(
        "sbatch", "--parsable", "--exclusive", f"--nodelist={NODES[0]}", "--output=/dev/null", "--wrap",
        "sleep 600",
    )  # fmt: skip
    try:
        slurm_agent.start()
        server.attempts.assign(shell("echo never"))
        told = server.attempts.told[current()]
        server.until("it says so", lambda: any("Waits in Slurm: " in words for _, words in told.said))
        server.attempts.stop(current())
        finish(server)
        assert (ending(told)[0], told.started, told.output) == ("cancelled", 0, b"")
        assert [state for _, _, state in jobs(slurm_agent)] == ["CANCELLED"]
    finally:
        slurm_agent.cluster.run("scancel", other)


def test_controller_that_is_away_loses_nothing(slurm_agent: AgentProcess, server: ScriptedServer) -> None:
    cluster = slurm_agent.cluster
    assert cluster is not None
    slurm_agent.start()
    server.attempts.assign(shell(f"{BEGUN.replace('sleep 1', 'while [ ! -e ~/go ]; do sleep 0.1; done')}"))
    until_running(server)
    cluster.stop_controller()
    try:
        server.until("the host says so", lambda: not server.heartbeats[-1].runtime_healthy, timeout_s=60)
        assert "Slurm does not answer" in server.heartbeats[-1].runtime_detail
        (slurm_agent.state_dir / "homes" / "vol-1" / "go").touch()
        time.sleep(1)
        assert server.attempts.told[current()].result is None, "nothing is concluded from silence"
    finally:
        cluster.start_controller()
        until_true("its nodes are back", lambda: set(cluster.states().values()) <= {"idle", "mixed"})
    told = finish(server, timeout_s=90)
    assert (ending(told), told.output, begun(slurm_agent)) == (
        ("failed", "exit_code", 3),
        b"one\ntwo\n",
        "begun\n",
    )


def test_node_that_slurm_gives_up_loses_the_attempt_and_its_processes(
    slurm_agent: AgentProcess, server: ScriptedServer
) -> None:
    cluster = slurm_agent.cluster
    assert cluster is not None
    server.attempts.fence_s, server.attempts.fence_grace_s, server.attempts.renew_in_s = 6.0, 1.0, 0.5
    slurm_agent.start()
    server.attempts.assign(shell("trap '' TERM; echo ready; sleep 600"))
    until_said(server, b"ready")
    cluster.run("scontrol", "update", f"nodename={NODES[0]}", "state=down", "reason=smoke")
    try:
        told = finish(server, timeout_s=60)
        assert ending(told)[:2] == ("lost", "process_lost")
    finally:
        if cluster.states()[NODES[0]].startswith("down"):  # it may have come back by itself
            cluster.run("scontrol", "update", f"nodename={NODES[0]}", "state=resume")
        until_true("the node is back", lambda: cluster.states()[NODES[0]] == "idle")
    assert told.result is not None
    assert "Slurm gave up its job" in told.result.message
    assert leftovers(slurm_agent) == []


@pytest.mark.parametrize(
    ("state", "ending"),
    [("COMPLETED", None), ("FAILED", None), ("TIMEOUT", ("timed_out", "timeout")),
     ("NODE_FAIL", ("lost", "process_lost")), ("PREEMPTED", ("lost", "process_lost")),
     ("CANCELLED", ("failed", "cancelled")), ("BOOT_FAIL", ("lost", "process_lost")),
     ("DEADLINE", ("timed_out", "timeout"))],
)  # fmt: skip
def test_states_of_slurm_are_ends(state: str, ending: tuple[str, str] | None) -> None:
    cause = cause_of(Job(id="7", state=state, name="rg-a", comment="", reason="None"))
    assert (None if cause is None else (str(cause.outcome), str(cause.reason))) == ending


@pytest.mark.parametrize(
    ("state", "healthy"),
    [("idle", True), ("mixed", True), ("allocated", True), ("idle~", True), ("idle*", False),
     ("down*", False), ("drained", False), ("draining", False), ("maint", False),
     ("reserved", False), ("planned", True)],
)  # fmt: skip
def test_states_of_nodes(state: str, healthy: bool) -> None:
    node = commands.node_of(f"n1|{state}|8|64000|N/A|gpu:a100:2(S:0-1)|22.05.8|bad fan | twice")
    health = health_of(node, name="n1", partition="gpu")
    assert health.healthy is healthy
    assert healthy or "bad fan | twice" in health.detail


def test_gres_in_all_its_spellings() -> None:
    told = {"a100": "A100-80GB", "gpu": "T4-16GB"}
    found = gres_gpus("gpu:a100:2(S:0-1),shard:8,gpu:h100-94gb:1(S:1,3),gpu:1,gpu:l40s:1", told)
    assert [one.model for one in found] == ["A100-80GB", "A100-80GB", "H100-94GB", "T4-16GB", "L40S-48GB"]
    assert [commands.time_limit_s(text) for text in ("1-02:03:04", "1:00:00", "30:00", "infinite")] == [
        93784.0, 3600.0, 1800.0, None
    ]  # fmt: skip
