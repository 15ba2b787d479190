"""The smallest changes to a request that would start it now."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from remotegpu_server.placement import rules, words
from remotegpu_server.placement.choosing import Ahead, choose_all
from remotegpu_server.placement.fleet import Fleet, Mask
from remotegpu_server.placement.inventory import HostInventory
from remotegpu_server.placement.refusals import Refusal
from remotegpu_server.placement.request import Request

MOST = 3
LEAST_CPUS = 0.5
LEAST_MEMORY = 2**28
LEAST_SHARE = 2**30
ANOTHER_KIND = 0.3
"""How large a change to another model is, beside half of the GPUs, which is 0.5."""
WITHOUT_LABEL = 0.2
AS_A_PART = 0.4
"""A part of a GPU in place of the whole: less than no GPU, more than another model."""


@dataclass(frozen=True, slots=True)
class Change:
    """One way to start now: the fields that differ, as the environment's spec names them."""

    request: Request
    fields: dict[str, object]
    message: str
    """A sentence for a person."""
    host: HostInventory
    size: float
    """0 is no change; the smallest come first."""


@dataclass(frozen=True, slots=True)
class _Step:
    """A changed request, and what would have to be told."""

    request: Request
    fields: dict[str, object]
    says: str
    size: float


def smallest_changes(
    request: Request, fleet: Fleet, *, ahead: Iterable[Ahead] = (), most: int = MOST
) -> list[Change]:
    """Up to ``most`` changes, each enough by itself to start the request now, the smallest first.

    One field at a time; two at a time where no single one helps. Every answer is proven by a choice.
    """
    ahead = tuple(ahead)
    if not isinstance(choose_all(request, fleet, ahead=ahead), Refusal):
        return []
    found = [change for step in _steps(request, fleet) for change in _proven(step, fleet, ahead)]
    if not found:
        found = [change for step in _pairs(request, fleet) for change in _proven(step, fleet, ahead)]
    return sorted(found, key=lambda change: change.size)[:most]


def _proven(step: _Step, fleet: Fleet, ahead: Sequence[Ahead]) -> Iterator[Change]:
    found = choose_all(step.request, fleet, ahead=ahead)
    if not isinstance(found, Refusal):
        where = words.all_of([choice.host.name for choice in found])
        message = f"With {step.says} it starts now on {where}."
        yield Change(step.request, step.fields, message, found[0].host, step.size)


def _steps(request: Request, fleet: Fleet) -> Iterator[_Step]:
    """The largest amount of each resource that is free now, every other wish kept."""
    yield from _fewer_nodes(request, fleet)
    if request.gpus:
        yield from _another_model(request, fleet)
        yield from _another_memory(request, fleet)
        yield from _fewer_gpus(request, fleet)
        yield from _a_part(request, fleet)
    yield from _less_cpu(request, fleet)
    yield from _less_memory(request, fleet)
    yield from _fewer_labels(request)


def _pairs(request: Request, fleet: Fleet) -> Iterator[_Step]:
    """A change together with less CPU, with less memory, or with less of both."""
    cpus, memory = min(request.cpus, LEAST_CPUS), min(request.memory_bytes, LEAST_MEMORY)
    for relaxed in (
        replace(request, cpus=cpus),
        replace(request, memory_bytes=memory),
        replace(request, cpus=cpus, memory_bytes=memory),
    ):
        for first in [_Step(relaxed, {}, "", 0.0), *_steps(relaxed, fleet)]:
            step: _Step | None = first
            if relaxed.cpus < request.cpus:
                step = _then(first, _less_cpu(replace(first.request, cpus=request.cpus), fleet))
            if step and relaxed.memory_bytes < request.memory_bytes:
                asked = replace(step.request, memory_bytes=request.memory_bytes)
                step = _then(step, _less_memory(asked, fleet))
            if step:
                yield step


def _then(first: _Step, more: Iterator[_Step]) -> _Step | None:
    """Both steps in one; ``None`` when the second does not exist."""
    second = next(more, None)
    if second is None:
        return None
    says = f"{first.says} and {second.says}" if first.says else second.says
    return _Step(second.request, first.fields | second.fields, says, first.size + second.size)


def _fewer_nodes(request: Request, fleet: Fleet) -> Iterator[_Step]:
    most = min(len(np.unique(fleet.host_of[rules.fits_now(request, fleet)])), request.nodes - 1)
    if most > 0:
        yield _Step(
            replace(request, nodes=most),
            {"nodes": most},
            f"{words.many(most, 'node')} instead of {request.nodes}",
            (request.nodes - most) / request.nodes,
        )


def _another_model(request: Request, fleet: Fleet) -> Iterator[_Step]:
    """Each other model that would do, the nearest in memory first."""
    if not request.gpu_models:
        return
    open_ = replace(request, gpu_models=())
    rows = rules.fits_now(open_, fleet)
    sizes = {
        row.kind[0]: row.kind[1] for row, fits in zip(fleet.rows, rows, strict=True) if fits and row.kind
    }
    wanted = [row.kind[1] for row in fleet.rows if row.kind and row.kind[0] in request.gpu_models]
    usual = max(wanted, default=fleet.usual_gpu_bytes)
    for model, size in sizes.items():
        apart = min(1.0, abs(size - usual) / usual)
        yield _Step(
            replace(request, gpu_models=(model,)),
            {"gpu_models": [model]},
            f"{model} instead of {words.either(request.gpu_models)}",
            ANOTHER_KIND * (1 + apart) / 2,
        )


def _another_memory(request: Request, fleet: Fleet) -> Iterator[_Step]:
    """The range of GPU memory widened to the nearest size that is free."""
    least, most = request.min_gpu_memory_bytes, request.max_gpu_memory_bytes
    if not (least or most):
        return
    rows = rules.fits_now(replace(request, min_gpu_memory_bytes=None, max_gpu_memory_bytes=None), fleet)
    sizes = np.unique(fleet.gpu_bytes[rows])
    for size in (int(one) for one in sizes):
        if least and size < least:
            fields: dict[str, object] = {"min_gpu_memory_bytes": size}
            apart, says = (least - size) / least, f"GPUs from {words.gib(size)} on"
        elif most and size > most:
            fields, apart, says = (
                {"max_gpu_memory_bytes": size},
                (size - most) / size,
                f"GPUs up to {words.gib(size)}",
            )
        else:
            continue
        yield _Step(replace(request, **fields), fields, says, ANOTHER_KIND * (1 + apart) / 2)  # type: ignore[arg-type]


def _fewer_gpus(request: Request, fleet: Fleet) -> Iterator[_Step]:
    if request.gpus < 2:
        return
    rows = rules.without(request, fleet, rules.gpu_total, rules.gpus_free)
    most = int(min(fleet.whole[rows].max(initial=0), request.gpus - 1))
    if most:
        yield _Step(
            replace(request, gpus=most),
            {"gpus": most},
            words.gpus(most, request.gpu_models),
            (request.gpus - most) / request.gpus,
        )


def _a_part(request: Request, fleet: Fleet) -> Iterator[_Step]:
    """A share of a GPU, or a smaller one; a MIG instance."""
    if request.gpus != 1 or request.mig_profile is not None:
        return
    asked = request.gpu_memory_bytes
    rows = rules.without(request, fleet, rules.gpus_free, rules.gpu_memory)
    rows &= rules.gpu_memory(replace(request, gpu_memory_bytes=None), fleet)
    most = int(fleet.free[rows].max(initial=0)) // LEAST_SHARE * LEAST_SHARE
    if most >= LEAST_SHARE and (asked is None or most < asked):
        size = AS_A_PART if asked is None else (asked - most) / asked
        says = f"a share of {words.gib(most)} of a GPU"
        yield _Step(replace(request, gpu_memory_bytes=most), {"gpu_memory_bytes": most}, says, size)
    for profile in sorted({row.kind[2] for row in fleet.rows if row.kind and row.kind[2]}):
        part = replace(request, gpu_memory_bytes=None, mig_profile=profile)
        fields: dict[str, object] = {"mig_profile": profile}
        yield _Step(part, fields, f"a MIG instance {profile}", AS_A_PART)


def _less_cpu(request: Request, fleet: Fleet) -> Iterator[_Step]:
    rows = rules.without(request, fleet, rules.cpus_total, rules.cpus_free)
    most = _floor(float(_most(fleet.cpus_free, rows)), LEAST_CPUS)
    if LEAST_CPUS <= most < request.cpus:
        yield _Step(
            replace(request, cpus=most),
            {"cpus": most},
            words.many_cpus(most),
            (request.cpus - most) / request.cpus,
        )


def _less_memory(request: Request, fleet: Fleet) -> Iterator[_Step]:
    rows = rules.without(request, fleet, rules.memory_total, rules.memory_free)
    most = int(_floor(float(_most(fleet.memory_free, rows)), LEAST_MEMORY))
    if LEAST_MEMORY <= most < request.memory_bytes:
        yield _Step(
            replace(request, memory_bytes=most),
            {"memory_bytes": most},
            f"{words.gib(most)} of memory",
            (request.memory_bytes - most) / request.memory_bytes,
        )


def _fewer_labels(request: Request) -> Iterator[_Step]:
    for label in request.host_labels:
        kept = tuple(one for one in request.host_labels if one != label)
        yield _Step(
            replace(request, host_labels=kept),
            {"host_labels": dict(kept)},
            f"hosts without {label[0]}={label[1]}",
            WITHOUT_LABEL,
        )


def _most(amounts: np.ndarray, rows: Mask) -> float:
    return float(amounts[rows].max(initial=0))


def _floor(amount: float, step: float) -> float:
    return amount // step * step
