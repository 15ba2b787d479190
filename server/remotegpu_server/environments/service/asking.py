"""What a request asks for: its checks, and its columns."""

from __future__ import annotations

import re
from typing import Any

from sqlalchemy import func
from sqlalchemy.ext.asyncio import AsyncSession

from remotegpu.errors import Forbidden, Invalid
from remotegpu.types.environments import EnvironmentSpec
from remotegpu.types.tasks import TaskSpec
from remotegpu_server.authz import Actor
from remotegpu_server.queue import priorities

HIJACKS = (
    "PATH|HOME|SHELL|IFS|ENV|BASH_ENV|PYTHONPATH|PYTHONHOME|PYTHONSTARTUP|"
    "NODE_OPTIONS|PERL5LIB|PERL5OPT|RUBYOPT"
)
_DRIVER = re.compile(rf"^(NVIDIA_.*|LD_.*|CUDA_VISIBLE_DEVICES|{HIJACKS})$")
"""Would undo the isolation of GPUs, or run foreign code before ours: refused from everybody."""
_PLATFORM = re.compile(r"^(JUPYTERHUB_.*|REMOTEGPU_.*)$")
"""Set by the platform: refused in ``env``, allowed in a service's ``secret_env``."""


async def columns(db: AsyncSession, *, actor: Actor, body: EnvironmentSpec | TaskSpec) -> dict[str, Any]:
    """The columns of what a request asks for, and of its place in the queue."""
    await priorities.require(db, actor=actor, priority=body.priority)
    return {
        "gpus": body.gpus,
        "gpu_models": body.gpu_models,
        "gpu_memory_bytes": body.gpu_memory_bytes,
        "min_gpu_memory_bytes": body.min_gpu_memory_bytes or None,
        "max_gpu_memory_bytes": body.max_gpu_memory_bytes or None,
        "mig_profile": body.mig_profile,
        "host_labels": body.host_labels,
        "cpus": body.cpus,
        "memory_bytes": body.memory_bytes,
        "priority": body.priority,
        "preemptible": body.preemptible,
        "min_run_s": body.min_run_s,
        "start_at": body.start_at,
        "queued_at": func.greatest(func.now(), body.start_at),
    }


def check_parts(*, gpus: int, share: int | None, profile: str | None) -> None:
    """Refuse what cannot be a share of a GPU or a MIG instance."""
    if share is not None and profile is not None:
        raise Invalid(
            "A share of a GPU and a MIG instance were asked for.",
            hint="Leave gpu_memory_bytes or mig_profile out.",
        )
    if share is not None and gpus != 1:
        raise Invalid(
            f"A share is of one GPU, and {gpus} were asked for.",
            hint="Set gpus to 1, or leave gpu_memory_bytes out.",
        )


def check_env(actor: Actor, env: dict[str, str], secret_env: dict[str, str]) -> None:
    """Refuse variables that the platform sets, and secrets of anybody but a service."""
    if secret_env and not actor.is_service:
        raise Forbidden("Only a service may send secret_env.", hint="Use env for your own variables.")
    denied = [("env", name) for name in env if _DRIVER.match(name) or _PLATFORM.match(name)]
    denied += [("secret_env", name) for name in secret_env if _DRIVER.match(name)]
    if denied:
        names = ", ".join(name for _, name in denied)
        raise Invalid(
            f"These variables are set by the platform: {names}.",
            hint="Leave them out.",
            data={
                "errors": [
                    {"field": f"{where}.{name}", "message": "set by the platform"} for where, name in denied
                ]
            },
        )
