"""The status file: written by ``run``, printed by ``status``. Holds no secret."""

from __future__ import annotations

import json
from pathlib import Path

from remotegpu_agent import processes
from remotegpu_agent.settings import write_private


def write(state_dir: Path, status: dict[str, object]) -> None:
    pid = status.get("pid")
    ticks = processes.start_ticks(pid) if isinstance(pid, int) else None
    text = json.dumps({**status, "pid_start_ticks": ticks}, indent=1)
    write_private(state_dir / "status.json", text, durable=False)


def read(state_dir: Path) -> dict[str, object]:
    """The last status, with ``alive``: whether the process that wrote it still runs."""
    try:
        status: dict[str, object] = json.loads((state_dir / "status.json").read_text())
    except (FileNotFoundError, ValueError):
        return {"alive": False, "state": "never run", "state_dir": str(state_dir)}
    pid, ticks = status.get("pid"), status.pop("pid_start_ticks", None)
    status["alive"] = isinstance(pid, int) and ticks is not None and processes.start_ticks(pid) == ticks
    return status
