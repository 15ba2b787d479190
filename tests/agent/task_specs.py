"""Attempts as a server would hand them out."""

from __future__ import annotations

import uuid
from typing import Any

from remotegpu.types.agent import ClaimedAttempt, HomeVolume

TASK_IMAGE = "remotegpu-agent-task-test:latest"
"""A shell and a few programs; made by the tests."""


_current = "att-0"


def renew() -> None:
    """Another id for the next test: agents and servers are shared."""
    global _current
    _current = f"att-{uuid.uuid4().hex[:12]}"


def current() -> str:
    """The id of this test's attempt."""
    return _current


def attempt(*command: str, attempt_id: str | None = None, **changes: Any) -> ClaimedAttempt:
    """One that either runtime can run."""
    attempt_id = attempt_id or current()
    fields: dict[str, Any] = {
        "id": attempt_id,
        "task_id": f"task-{attempt_id}",
        "number": 1,
        "rank": 0,
        "gang": None,
        "name": "train",
        "owner": "ada",
        "image_reference": TASK_IMAGE,
        "image_digest": None,
        "command": list(command) or None,
        "script": None,
        "working_dir": "",
        "env": {},
        "secret_env": {},
        "gpu_uuids": [],
        "cpus": 1.0,
        "memory_bytes": 128 * 2**20,
        "home": HomeVolume(volume_id="vol-1", shared=False),
        "timeout_s": 60.0,
        "stop_grace_s": 2.0,
        "log_cap_bytes": 64 * 2**20,
        "artifacts_max_bytes": 64 * 2**20,
    }
    return ClaimedAttempt(**{**fields, **changes})


def shell(script: str, **changes: Any) -> ClaimedAttempt:
    return attempt("sh", "-c", script, **changes)
