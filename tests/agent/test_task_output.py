"""Output of tasks: every byte once, in order, whatever it is, and bounded by its cap."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from agent_process import AgentProcess, leftovers
from scripted_attempts import Told
from scripted_server import ScriptedServer
from task_specs import attempt, current, shell

MB = 10**6


def finish(server: ScriptedServer, attempt_id: str | None = None, *, timeout_s: float = 60) -> Told:
    attempt_id = attempt_id or current()
    told = server.attempts.told[attempt_id]
    server.until(f"{attempt_id} is released", lambda: told.released, timeout_s=timeout_s)
    assert server.attempts.wrong == []
    assert told.pieces_at_end == len(told.pieces), "output after the result"
    return told


def test_binary_output_without_a_line_end_arrives_whole(
    calm_agent: AgentProcess, calm_server: ScriptedServer
) -> None:
    data = random.Random(7).randbytes(5 * MB + 17)  # noqa: S311
    home = calm_agent.state_dir / "homes" / "vol-1"
    home.mkdir(parents=True, exist_ok=True)
    (home / "data").write_bytes(data)
    calm_server.attempts.assign(shell("cat ~/data"))
    told = finish(calm_server)
    assert hashlib.sha256(told.output).digest() == hashlib.sha256(data).digest()
    assert max(map(len, told.pieces)) <= 2**20
    assert not told.truncated


def test_small_line_arrives_at_once(calm_agent: AgentProcess, calm_server: ScriptedServer) -> None:
    calm_server.attempts.assign(shell("echo ready; read -r line <~/pipe; echo heard; sleep 600"))
    told = calm_server.attempts.told[current()]
    home = calm_agent.state_dir / "homes" / "vol-1"
    home.mkdir(parents=True, exist_ok=True)
    home.chmod(0o777)
    if not (home / "pipe").exists():
        os.mkfifo(home / "pipe", 0o666)
    calm_server.until("it runs", lambda: b"ready" in told.output or told.result)
    if told.result:
        pytest.skip("it looked for its pipe before the test had made it")
    began = time.monotonic()
    (home / "pipe").write_text("hello\n")
    calm_server.until("the line", lambda: b"heard" in told.output)
    assert time.monotonic() - began < 1.0


def test_output_above_the_cap_is_dropped_with_a_mark_and_the_writer_goes_on(
    calm_agent: AgentProcess, calm_server: ScriptedServer
) -> None:
    cap = 2 * MB + 5
    script = "yes 0123456789 | head -c 60000000; echo done >$REMOTEGPU_OUTPUT/done; sleep 600"
    calm_server.attempts.assign(shell(script, log_cap_bytes=cap))
    told = calm_server.attempts.told[current()]
    folder = calm_agent.state_dir / "attempts" / current()
    calm_server.until("the writer is done", lambda: (folder / "output" / "done").exists())
    calm_server.until("the mark", lambda: told.truncated)
    assert told.output == (b"0123456789\n" * 200_000)[:cap]
    assert (folder / "log").stat().st_size < cap + 2048, "the disk holds no more than the cap"
    calm_server.attempts.stop(current())
    finish(calm_server)


def test_output_of_exactly_the_cap_has_no_mark(process_agent: AgentProcess, server: ScriptedServer) -> None:
    process_agent.start()
    server.attempts.assign(shell("head -c 1024 /dev/zero", log_cap_bytes=1024))
    told = finish(server)
    assert (len(told.output), told.truncated) == (1024, False)


def test_output_outlives_kills_of_the_agent_in_the_middle(
    process_agent: AgentProcess, server: ScriptedServer
) -> None:
    """Each agent dies right after a piece has arrived, before it has noted it."""
    process_agent.environ = {"REMOTEGPU_CRASH_AT": "task-piece"}
    process_agent.start()
    server.attempts.assign(shell("for i in 1 2 3; do echo $i; sleep 0.7; done; head -c 3000000 /dev/zero"))
    for _ in range(3):
        assert process_agent.wait() == 137
        process_agent.start()
    assert process_agent.wait() == 137
    process_agent.environ = {}
    process_agent.start()
    assert finish(server).output == b"1\n2\n3\n" + bytes(3_000_000)


def test_server_that_lost_pieces_gets_them_again(process_agent: AgentProcess, server: ScriptedServer) -> None:
    process_agent.start()
    server.attempts.assign(shell("for i in 1 2 3 4 5 6; do echo $i; sleep 0.3; done"))
    told = server.attempts.told[current()]
    server.until("three pieces", lambda: len(told.pieces) >= 3)
    with server.changed:
        del told.pieces[1:]
    assert finish(server).output == b"1\n2\n3\n4\n5\n6\n"


def test_fast_writer_loses_nothing_and_the_agent_stays_small(
    process_agent: AgentProcess, server: ScriptedServer
) -> None:
    size = 100 * MB
    process_agent.start()
    server.attempts.assign(shell(f"yes abcdefghi | head -c {size}", log_cap_bytes=2 * size))
    assert process_agent.process is not None
    told, agent = server.attempts.told[current()], psutil.Process(process_agent.process.pid)
    highest = 0
    while not told.released:
        highest = max(highest, agent.memory_info().rss)
        time.sleep(0.05)
    assert len(told.output) == size
    assert told.output == b"abcdefghi\n" * (size // 10)
    assert highest < 150 * MB


@pytest.mark.docker
def test_image_without_a_shell_runs_its_command(
    docker_agent: AgentProcess, server: ScriptedServer, test_image: str
) -> None:
    docker_agent.start()
    server.attempts.assign(attempt("/server", image_reference=test_image))
    told = server.attempts.told[current()]
    server.until("it says something", lambda: told.output == b"listening\n")
    server.attempts.stop(current())
    assert finish(server).result is not None
    assert leftovers(docker_agent) == []


@pytest.mark.docker
def test_script_in_an_image_without_a_shell_says_what_is_missing(
    docker_agent: AgentProcess, server: ScriptedServer, test_image: str
) -> None:
    docker_agent.start()
    server.attempts.assign(attempt(image_reference=test_image, script="echo hello"))
    told = finish(server)
    assert told.result is not None
    assert (told.result.reason, told.result.exit_code) == ("command_not_found", 127)
    assert b"sh: not found" in told.output


@pytest.fixture
def full_disk(tmp_path: Path) -> Path:
    """A home root of 4 MB."""
    place = tmp_path / "small"
    place.mkdir()
    if os.geteuid() != 0:
        pytest.skip("a small file system needs root")
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(place)], check=False)
    if made.returncode != 0:
        pytest.skip("no file system can be mounted here")
    return place


def test_full_disk_is_named_and_the_result_arrives(
    process_agent: AgentProcess, server: ScriptedServer, full_disk: Path
) -> None:
    try:
        process_agent.state_dir = full_disk / "state"
        process_agent.options = ["--home-root", str(full_disk / "homes")]
        process_agent.start()
        server.attempts.assign(shell("head -c 50000000 /dev/zero >$REMOTEGPU_OUTPUT/big || exit 5"))
        told = finish(server)
        assert told.result is not None
        assert (told.result.reason, told.result.exit_code) == ("disk_full", 5)
    finally:
        process_agent.stop()
        subprocess.run(["umount", "-l", str(full_disk)], check=False)
