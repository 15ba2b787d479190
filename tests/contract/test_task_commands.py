"""``remotegpu task`` against a real server process, with a hollow agent that does what it is told."""

from __future__ import annotations

import asyncio
import io
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path

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
        found = await asyncio.to_thread(self._run, words)
        written = self._capsys.readouterr()
        assert found == status, written.err
        return written.out if status == 0 else written.err

    def _run(self, words: tuple[str, ...]) -> int:
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


async def carry_out(agent: HollowAgent, **result: object) -> None:
    """Take the next attempt and end it."""
    (attempt,) = await agent.claim(wait_s=10)
    for verb in ("accept", "start"):
        assert (await agent.attempt(attempt["id"], verb)).is_success
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
    assert [one["script"] for one in listed] == [script.read_text()] * 2


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
    assert made["tasks"][0]["script"] == "echo hello"
    assert "There is no task" in await run("task", "show", "nothing", status=1)
