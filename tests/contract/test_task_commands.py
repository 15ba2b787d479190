"""``remotegpu task`` against a real server process, with a hollow agent that does what it is told."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from hollow_agent import Fleet, HollowAgent

from remotegpu.cli import main
from remotegpu_server.testing import LiveServer


class Shell:
    """Runs commands in a thread of this process, as an admin; the loop goes on for the agent."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    async def __call__(self, *words: str, status: int = 0) -> str:
        found = await asyncio.to_thread(self.run, words)
        written = self._capsys.readouterr()
        assert found == status, written.err
        return written.out if status == 0 else written.err

    def run(self, words: tuple[str, ...]) -> int:
        """The exit code."""
        try:
            return main(words)
        except SystemExit as ended:
            return int(ended.code or 0)


@pytest.fixture
def run(
    live_server: LiveServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Shell:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("REMOTEGPU_URL", live_server.url)
    monkeypatch.setenv("REMOTEGPU_TOKEN", live_server.admin_headers["Authorization"].removeprefix("Bearer "))
    return Shell(capsys)


@pytest_asyncio.fixture
async def agent(live_server: LiveServer) -> AsyncIterator[HollowAgent]:
    async with httpx.AsyncClient(base_url=live_server.url, timeout=30) as client:
        fleet = Fleet(client, live_server.admin_headers)
        await fleet.image()
        yield await fleet.host("gpu-01", gpus=2)


async def carry_out(agent: HollowAgent, output: str = "", **result: object) -> None:
    """Take the next attempt, write what it is to write, and end it."""
    attempt = await begin(agent, output)
    await end(agent, attempt, **result)


async def begin(agent: HollowAgent, output: str) -> dict[str, Any]:
    (attempt,) = await agent.claim(wait_s=10)
    for verb in ("accept", "start"):
        assert (await agent.attempt(attempt["id"], verb)).is_success
    data = base64.b64encode(output.encode()).decode()
    assert (await agent.attempt(attempt["id"], "logs", sequence=0, data=data)).is_success
    return attempt


async def end(agent: HollowAgent, attempt: dict[str, Any], **result: object) -> None:
    assert (await agent.complete(attempt["id"], **result)).is_success
    assert (await agent.attempt(attempt["id"], "release")).is_success


async def test_task_is_submitted_shown_carried_out_and_run_again(run: Shell, agent: HollowAgent) -> None:
    words = "task submit --image base --gpus 1 --name train --env SEED=1 --label run=7 --timeout 60 --json"
    made = json.loads(await run(*words.split(), "--", "python", "train.py", "--lr", "0.1"))
    (task,) = made["tasks"]
    assert (task["command"], task["env"], task["timeout_s"]) == (
        ["python", "train.py", "--lr", "0.1"],
        {"SEED": "1"},
        60,
    )
    after = await run("task", "submit", "--image", "base", "--after", task["id"], "--", "true")
    assert "Waits for other tasks" in after
    assert "train" in await run("task", "list", "--label", "run=7")
    assert "none" not in await run("task", "list", "--status", "assigned")

    await carry_out(agent, status="failed", exit_code=3, reason="exited")
    shown = await run("task", "show", task["id"])
    assert shown.startswith("train: failed (")
    assert "exit_code: 3" in shown
    (attempt,) = json.loads(await run("task", "attempts", task["id"], "--json"))
    assert (attempt["status"], attempt["host_name"]) == ("failed", "gpu-01")
    assert "train is" in await run("task", "retry", task["id"])
    assert "train is" in await run("task", "stop", task["id"])


async def test_array_is_submitted_from_a_script(run: Shell, agent: HollowAgent, tmp_path: Path) -> None:
    script = tmp_path / "job.sh"
    script.write_text("echo $REMOTEGPU_ARRAY_INDEX\n")
    words = (
        "task",
        "submit",
        "--image",
        "base",
        "--script",
        str(script),
        "--array",
        "3",
        "--max-parallel",
        "1",
    )
    assert "of 3 tasks" in await run(*words)
    listed = json.loads(await run("task", "list", "--json", "--limit", "2"))
    assert [(one["script"], one["command"]) for one in listed] == [(None, None)] * 2
    shown = json.loads(await run("task", "show", "--json", listed[0]["id"]))
    assert shown["script"] == script.read_text()


@pytest.mark.parametrize(
    "words",
    [
        ["--script", "x", "--", "true"],
        [],
        ["--max-parallel", "2", "--", "true"],
        ["--script", "/nowhere"],
    ],
)
async def test_task_that_cannot_be_meant_is_wrong_usage(run: Shell, words: list[str]) -> None:
    assert "remotegpu: " in await run("task", "submit", "--image", "base", *words, status=2)


async def test_task_from_standard_input(
    run: Shell, agent: HollowAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("echo hello"))
    made = json.loads(await run("task", "submit", "--json", "--image", "base", "--script", "-"))
    shown = json.loads(await run("task", "show", "--json", made["tasks"][0]["id"]))
    assert shown["script"] == "echo hello"
    assert "There is no task" in await run("task", "show", "nothing", status=1)


async def test_output_is_printed_whole_by_its_end_and_followed(run: Shell, agent: HollowAgent) -> None:
    made = json.loads(await run("task", "submit", "--json", "--image", "base", "--", "true"))
    task_id = made["tasks"][0]["id"]
    following = asyncio.create_task(run("task", "logs", "-f", task_id))
    await carry_out(agent, f"one\ntwo\n\x1eremotegpu-result {'0f' * 16} 0 1 eA==\n")
    assert await following == "one\ntwo\n"
    assert await run("task", "logs", task_id) == "one\ntwo\n"
    assert await run("task", "logs", "--tail", "64", task_id) == "two\n"
    assert json.loads(await run("task", "logs", "--json", task_id)) == {"text": "one\ntwo\n"}


@pytest.mark.parametrize(
    ("result", "code"),
    [
        ({}, 0),
        ({"status": "failed", "exit_code": 7, "reason": "exited"}, 7),
        ({"status": "timed_out", "exit_code": None, "reason": "timed_out"}, 1),
    ],
)
async def test_run_prints_the_output_and_ends_with_the_code_of_the_task(
    run: Shell, agent: HollowAgent, capsys: pytest.CaptureFixture[str], result: dict[str, Any], code: int
) -> None:
    words = ("run", "--image", "base", "--", "train", "--json")
    running = asyncio.create_task(asyncio.to_thread(run.run, words))
    await carry_out(agent, "epoch 1\n", **result)
    assert await running == code
    assert capsys.readouterr().out == "epoch 1\n"


async def test_run_in_json_prints_pieces_and_the_task(run: Shell, agent: HollowAgent) -> None:
    running = asyncio.create_task(run("run", "--json", "--image", "base", "--", "train"))
    await carry_out(agent, "epoch 1\n")
    piece, task = map(json.loads, (await running).splitlines())
    assert (piece, task["status"]) == ({"text": "epoch 1\n"}, "succeeded")


async def test_run_detached_prints_the_id(run: Shell, agent: HollowAgent) -> None:
    printed = await run("run", "--detach", "--image", "base", "--", "train")
    assert printed.startswith("tsk-")
    assert "train" in await run("task", "show", "--json", printed.strip())


def started(**options: Any) -> subprocess.Popen[str]:
    """`remotegpu run` as a process in which Ctrl-C counts: in the background of a script it would not."""
    own = options.pop("preexec_fn", None)

    def prepare() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        if own is not None:
            own()

    return subprocess.Popen(RUN, preexec_fn=prepare, **options)


RUN = [sys.executable, "-m", "remotegpu", "run", "--image", "base", "--", "train"]


async def test_interrupt_without_a_terminal_leaves_the_task_running(run: Shell, agent: HollowAgent) -> None:
    pipe = subprocess.PIPE
    with started(stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True) as process:
        attempt = await begin(agent, "epoch 1\n")
        assert process.stdout is not None
        assert await asyncio.to_thread(process.stdout.readline) == "epoch 1\n"
        process.send_signal(signal.SIGINT)
        _, said = await asyncio.to_thread(process.communicate, timeout=20)
    assert process.returncode == 130
    assert f"remotegpu task stop {attempt['task_id']}" in said
    assert not json.loads(await run("task", "show", "--json", attempt["task_id"]))["stop_requested"]


@pytest.mark.parametrize(("typed", "code"), [("s\n", 143), ("\n", 130), ("\x03", 130)])
async def test_interrupt_in_a_terminal_asks_whether_to_stop_or_leave(
    run: Shell, agent: HollowAgent, typed: str, code: int
) -> None:
    ours, theirs = pty.openpty()
    terminal = {"stdin": theirs, "stdout": theirs, "stderr": theirs}
    with started(**terminal, start_new_session=True, preexec_fn=_controlling_terminal) as process:
        os.close(theirs)
        attempt = await begin(agent, "epoch 1\n")
        await asyncio.to_thread(_read_until, ours, "epoch 1")
        os.write(ours, b"\x03")
        await asyncio.to_thread(_read_until, ours, "[L]eave")
        os.write(ours, typed.encode())
        if code == 143:
            await asyncio.to_thread(_read_until, ours, "stopping it")
            assert (await agent.attempt(attempt["id"], "renew")).json()["stop"]
            await end(agent, attempt, status="cancelled", exit_code=143, reason="cancelled")
        assert await asyncio.to_thread(process.wait, 20) == code
    os.close(ours)
    stopped = json.loads(await run("task", "show", "--json", attempt["task_id"]))["stop_requested"]
    assert stopped is (code == 143)


def _controlling_terminal() -> None:
    """So that Ctrl-C in it is a signal."""
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def _read_until(terminal: int, wanted: str) -> None:
    seen = ""
    while wanted not in seen:
        seen += os.read(terminal, 1024).decode()


async def test_file_for_a_task_is_sent_before_it(run: Shell, agent: HollowAgent, tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"weights")
    what = ("task", "submit", "--json", "--image", "base", "--input", str(file), "--", "true")
    task_id = json.loads(await run(*what))["tasks"][0]["id"]
    attempt = await begin(agent, "")
    assert attempt["input"] == {"sha256": hashlib.sha256(b"weights").hexdigest(), "size_bytes": 7}
    await end(agent, attempt)
    assert task_id in await run("task", "list"), "every other command wants it"
    missing = ("--input", f"{file}-2", "--", "true")
    assert "Cannot read the input" in await run("task", "submit", "--image", "base", *missing, status=2)


async def test_files_that_a_task_left_are_fetched(run: Shell, agent: HollowAgent, tmp_path: Path) -> None:
    made = json.loads(await run("task", "submit", "--json", "--image", "base", "--", "true"))
    task_id = made["tasks"][0]["id"]
    attempt = await begin(agent, "")
    for path, data in (("out/model.bin", b"weights"), ("log.txt", b"fine")):
        answer = await agent.client.put(
            f"/v1/agent/attempts/{attempt['id']}/artifacts",
            headers=agent.headers | {"Content-Type": "application/octet-stream"},
            params={
                "epoch": agent.epoch,
                "path": path,
                "size_bytes": len(data),
                "sha256": hashlib.sha256(data).hexdigest(),
                "offset": 0,
            },
            content=data,
        )
        assert answer.json()["complete"], answer.text
    await end(agent, attempt)
    one = tmp_path / "one.bin"
    assert await run("task", "cp", f"{task_id}:out/model.bin", str(one)) == f"{one}\n"
    assert one.read_bytes() == b"weights"
    folder = tmp_path / "all"
    listed = json.loads(await run("task", "cp", task_id, str(folder), "--json"))["files"]
    assert len(listed) == 2
    assert (folder / "out" / "model.bin").read_bytes() == b"weights"
    assert (folder / "log.txt").read_bytes() == b"fine"
    assert "left no file" in await run("task", "cp", f"{task_id}:nothing", status=1)
