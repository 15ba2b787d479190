"""What a task finds in its environment, whatever runs it."""

from __future__ import annotations

from remotegpu.types.agent import ClaimedAttempt, Gang
from remotegpu_agent.container_spec import gpu_environment


def environment(spec: ClaimedAttempt, *, output: str, progress: str, input_: str) -> dict[str, str]:
    """Its own variables and the platform's; the platform's win."""
    given = {"REMOTEGPU_INPUT": input_} if spec.input is not None else {}
    return {
        **spec.env,
        **spec.secret_env,
        **gpu_environment(spec.gpu_uuids),
        "REMOTEGPU_TASK_ID": spec.task_id,
        "REMOTEGPU_ATTEMPT_ID": spec.id,
        "REMOTEGPU_ATTEMPT": str(spec.number),
        "REMOTEGPU_RANK": str(spec.rank),
        **(rendezvous(spec, spec.gang) if spec.gang is not None else {}),
        "REMOTEGPU_OUTPUT": output,
        "REMOTEGPU_PROGRESS_FILE": progress,
        **given,
    }


def rendezvous(spec: ClaimedAttempt, gang: Gang) -> dict[str, str]:
    """Where the ranks of a task on several hosts meet, as PyTorch's ``env://`` and ``torchrun`` read it.

    The task is one process on each node: ``RANK`` and ``WORLD_SIZE`` count these. ``torchrun`` makes
    ``NPROC_PER_NODE`` workers of each and sets both anew for them; it takes its own options from ``PET_…``,
    so that ``torchrun train.py`` is enough.
    """
    nodes, rank = str(gang.nodes), str(spec.rank)
    workers = str(max(1, len(spec.gpu_uuids)))
    return {
        "MASTER_ADDR": gang.address,
        "MASTER_PORT": str(gang.port),
        "NNODES": nodes,
        "NODE_RANK": rank,
        "GROUP_RANK": rank,
        "NPROC_PER_NODE": workers,
        "WORLD_SIZE": nodes,
        "RANK": rank,
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "1",
        "PET_MASTER_ADDR": gang.address,
        "PET_MASTER_PORT": str(gang.port),
        "PET_NNODES": nodes,
        "PET_NODE_RANK": rank,
        "PET_NPROC_PER_NODE": workers,
    }
