"""One suite for both runtimes: a real agent process, real workloads, a scripted server."""

from __future__ import annotations

import time

import pytest
from agent_process import AgentProcess, get, instances, tell_to_exit
from agent_workloads import absent
from scripted_server import ScriptedServer

from remotegpu.types.agent import LogRequest, Observed, WorkloadMetrics


def test_workload_that_starts_is_reported_step_by_step_until_it_answers(
    agent: AgentProcess, server: ScriptedServer
) -> None:
    agent.start()
    server.desire(agent.workload(env={"ANSWER": "x"}))
    running = server.until_observed("env-1", "running")
    assert [it.observed for it in server.observations] == ["creating", "starting", "running"]
    assert {it.generation for it in server.observations} == {1}
    assert get(running.address, "/") == "hello"


def test_simulated_gpus_reach_the_workload_by_uuid_and_show_load(
    agent: AgentProcess, server: ScriptedServer
) -> None:
    agent.start()
    gpu = server.sessions[0].inventory.gpus[1]
    server.desire(agent.workload(gpu_uuids=[gpu.uuid]))
    running = server.until_observed("env-1", "running")
    assert running.gpu_uuids == [gpu.uuid]
    assert get(running.address, "/env/NVIDIA_VISIBLE_DEVICES") == "void"
    assert get(running.address, "/env/REMOTEGPU_SIMULATED_GPUS") == gpu.uuid
    assert all(it.simulated for it in server.sessions[0].inventory.gpus)

    def loads() -> dict[str, float | None]:
        return {it.uuid: it.metrics.utilization_percent for it in server.last_heartbeat.gpus}

    server.until("the held GPU is busy and the other idle", lambda: (loads().get(gpu.uuid) or 0) > 0)
    other = server.sessions[0].inventory.gpus[0].uuid
    assert not loads().get(other)


def test_first_measurement_of_a_workload_has_its_cpu_and_memory(
    agent: AgentProcess, server: ScriptedServer
) -> None:
    agent.start()
    server.desire(agent.workload())
    server.until_observed("env-1", "running")

    def measured() -> list[WorkloadMetrics]:
        seen = [one for beat in server.heartbeats for one in beat.workloads if one.workload_id == "env-1"]
        return [one for one in seen if one.memory_used_bytes]

    first = server.until("the workload was measured", measured)[0]
    assert first.cpu_percent is not None


def test_absent_workload_is_stopped_removed_and_proven_gone(
    agent: AgentProcess, server: ScriptedServer
) -> None:
    agent.start()
    wanted = agent.workload()
    server.desire(wanted)
    address = server.until_observed("env-1", "running").address
    server.desire(absent(wanted))
    server.until_observed("env-1", "absent")
    with pytest.raises(OSError, match=r"refused|reset|timed out"):
        get(address, "/")


def test_workload_that_ends_by_itself_is_reported_with_code_and_log_and_stays(
    agent: AgentProcess, server: ScriptedServer
) -> None:
    agent.start()
    server.desire(agent.workload())
    address = server.until_observed("env-1", "running").address
    tell_to_exit(address, 7)
    exited = server.until_observed("env-1", "exited")
    assert exited.exit_code == 7
    assert exited.reason == "exited"
    assert "told to exit with 7" in (exited.log_tail or "")
    server.desire(agent.workload(), logs=(LogRequest(id="log-1", workload_id="env-1", tail_lines=1),))
    server.until("its log is readable until it is removed", lambda: "log-1" in server.log_answers)
    assert server.log_answers["log-1"].text == "told to exit with 7\n"
    assert server.log_answers["log-1"].truncated
    server.desire(absent(agent.workload()))
    server.until_observed("env-1", "absent")


def test_workload_that_ignores_term_is_killed_with_its_children_after_grace(
    agent: AgentProcess, server: ScriptedServer
) -> None:
    agent.start()
    wanted = agent.workload(env={"IGNORE_TERM": "1"}, stop_grace_s=1.0)
    server.desire(wanted)
    server.until_observed("env-1", "running")
    began = time.monotonic()
    server.desire(absent(wanted))
    server.until_observed("env-1", "absent")
    assert time.monotonic() - began >= 1.0, "it was not given its grace"


def test_file_in_the_home_survives_stop_and_start(agent: AgentProcess, server: ScriptedServer) -> None:
    agent.start()
    server.desire(agent.workload())
    assert get(server.until_observed("env-1", "running").address, "/write") == "written"
    server.desire(absent(agent.workload()))
    server.until_observed("env-1", "absent")
    server.desire(agent.workload(generation=2))
    running = server.until_observed("env-1", "running")
    assert running.generation == 2
    assert get(running.address, "/read") == "kept"


def test_newer_generation_replaces_the_older_container(agent: AgentProcess, server: ScriptedServer) -> None:
    agent.start()
    server.desire(agent.workload())
    old = server.until_observed("env-1", "running").address
    server.desire(agent.workload(generation=2))
    server.until(
        "generation 2 runs",
        lambda: any(it.generation == 2 and it.observed == "running" for it in server.observations),
    )
    new = server.observations[-1].address
    assert get(new, "/") == "hello"
    assert new != old


def test_agent_killed_and_restarted_adopts_without_restarting_anything(
    agent: AgentProcess, server: ScriptedServer
) -> None:
    agent.start()
    server.desire(agent.workload())
    before = server.until_observed("env-1", "running")
    agent.kill()
    seen = len(server.observations)
    agent.start()
    adopted = server.sessions[-1].workloads
    assert [(it.workload_id, it.generation, it.observed) for it in adopted] == [
        ("env-1", 1, Observed.RUNNING)
    ]
    assert adopted[0].address == before.address
    server.until("it is reported again", lambda: len(server.observations) > seen)
    assert {it.observed for it in server.observations[seen:]} == {"running"}
    assert get(before.address, "/") == "hello"


def test_agent_that_is_stopped_leaves_the_workload_running(
    agent: AgentProcess, server: ScriptedServer
) -> None:
    agent.start()
    server.desire(agent.workload())
    address = server.until_observed("env-1", "running").address
    assert agent.stop() == 0
    assert get(address, "/") == "hello"


def test_workload_that_ended_while_no_agent_ran_is_reported_with_its_code(
    agent: AgentProcess, server: ScriptedServer
) -> None:
    agent.start()
    server.desire(agent.workload())
    address = server.until_observed("env-1", "running").address
    agent.kill()
    tell_to_exit(address, 3)
    agent.start()
    (exited,) = server.until("the next registration", lambda: server.sessions[1:])[0].workloads
    assert (exited.workload_id, exited.observed) == ("env-1", Observed.EXITED)
    assert exited.exit_code == 3
    assert "told to exit with 3" in (exited.log_tail or "")


def test_workload_that_no_desired_set_explains_is_left_alone_and_reported(
    agent: AgentProcess, server: ScriptedServer
) -> None:
    agent.start()
    server.desire(agent.workload())
    address = server.until_observed("env-1", "running").address
    server.desire()
    server.until("it is reported", lambda: server.last_heartbeat.quarantined == ["rgpu-env-1"])
    assert get(address, "/") == "hello"
    server.desire(agent.workload())
    server.until("it is explained again", lambda: server.last_heartbeat.quarantined == [])
    assert get(address, "/") == "hello"


@pytest.mark.parametrize("label", ["created", "spawned", "started"])
def test_agent_killed_within_a_start_ends_with_exactly_one_instance(
    agent: AgentProcess, server: ScriptedServer, label: str
) -> None:
    if label == "spawned" and agent.runtime == "docker":
        pytest.skip("only processes have a record apart from themselves")
    agent.environ = {"REMOTEGPU_CRASH_AT": label}
    agent.start()
    server.desire(agent.workload())
    assert agent.wait() == 137
    agent.environ = {}
    agent.start()
    running = server.until_observed("env-1", "running")
    assert get(running.address, "/") == "hello"
    assert instances(agent) == 1


@pytest.mark.parametrize("label", ["stopped", "removed"])
def test_agent_killed_within_a_stop_still_proves_absence(
    agent: AgentProcess, server: ScriptedServer, label: str
) -> None:
    agent.environ = {"REMOTEGPU_CRASH_AT": label}
    agent.start()
    server.desire(agent.workload())
    server.until_observed("env-1", "running")
    server.desire(absent(agent.workload()))
    assert agent.wait() == 137
    agent.environ = {}
    agent.start()
    server.until_observed("env-1", "absent")
    assert instances(agent) == 0


def test_server_that_never_answers_is_given_up_and_removed(
    agent: AgentProcess, server: ScriptedServer
) -> None:
    agent.start()
    command = ["/bin/sleep", "600"] if agent.runtime == "process" else None
    server.desire(agent.workload(start_timeout_s=1.0, port=8888 if command else 8889, command=command))
    failed = server.until_observed("env-1", "failed")
    assert failed.reason == "start_timeout"
    assert instances(agent) == 0
    server.until("it is not tried again", lambda: len(server.heartbeats) > 5)
    assert server.observations[-1] == failed


def test_one_slow_start_blocks_no_other(agent: AgentProcess, server: ScriptedServer) -> None:
    agent.start()
    slow = agent.workload("env-slow", command=["/bin/sleep", "600"], port=8889)
    if agent.runtime == "docker":
        slow = agent.workload("env-slow", port=8889)
    server.desire(slow, agent.workload("env-2"))
    server.until_observed("env-2", "running")
    assert server.until_observed("env-slow", "starting")
