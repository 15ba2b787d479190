"""What environments and tasks show alike: the GPUs that they hold, and what they are told while they wait."""

from __future__ import annotations

from dataclasses import dataclass

from remotegpu.types.environments import AllocatedGpu
from remotegpu.types.queue import Wait
from remotegpu_server.db import tables


@dataclass(frozen=True, slots=True)
class HeldGpu:
    """A GPU with the allocation that holds it."""

    allocation: tables.Allocation
    gpu: tables.Gpu


def gpu_to_wire(held: HeldGpu) -> AllocatedGpu:
    """As its holder sees it."""
    return AllocatedGpu(
        allocation_id=held.allocation.id,
        uuid=held.gpu.uuid,
        index=held.gpu.index,
        model=held.gpu.model,
        memory_total_bytes=held.gpu.memory_total_bytes,
        memory_bytes=held.allocation.memory_bytes,
        mig_profile=held.gpu.mig_profile,
        simulated=held.gpu.simulated,
    )


def wait_to_wire(
    ask: tables.Environment | tables.Task, *, position: int | None, place_kept: bool
) -> Wait | None:
    """What the queue said last, with the position and the words of now; ``None`` unless it waits."""
    if ask.status != "pending":
        return None
    told = {
        "ahead": [],
        "estimate": None,
        "estimate_note": "Worked out every few seconds; ask again.",
        "counter_offers": [],
    } | (ask.outlook or {})
    return Wait.model_validate(told | {"rule": ask.message, "position": position, "place_kept": place_kept})
