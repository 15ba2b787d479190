"""Why nothing was chosen: the first rule that leaves no host, with its numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from remotegpu.types.environments import Reason
from remotegpu_server.placement import rules, words
from remotegpu_server.placement.fleet import Fleet, Mask
from remotegpu_server.placement.request import Request


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why nothing was chosen: the rule that binds, with its numbers."""

    satisfiable: bool
    """False: no registered host could ever run it, even an empty one."""
    reason: Reason
    detail: str
    hint: str | None = None
    data: dict[str, object] = field(default_factory=dict)


def refuse(request: Request, fleet: Fleet) -> Refusal:
    """The refusal of a request that fits on no row now. Before the first host joins, everything waits."""
    if not fleet.hosts:
        return Refusal(
            True,
            Reason.NO_READY_HOST,
            "No host has joined yet.",
            hint="An admin adds one with `remotegpu host add`.",
        )
    rows = np.ones(len(fleet.rows), bool)
    for rule in (*rules.FOREVER, *rules.NOW):
        left = rows & rule(request, fleet)
        if not left.any():
            return _SAYS[rule](request, fleet, rows)
        rows = left
    raise AssertionError("the request fits")


def behind(request: Request, ahead: int) -> Refusal:
    """There is room, and others came first."""
    who = f"{words.many(ahead, 'request')} ahead {'waits' if ahead == 1 else 'wait'}"
    what = wanted(request) if request.gpus else "this much CPU and memory"
    return Refusal(
        satisfiable=True,
        reason=Reason.NO_FREE_GPU if request.gpus else Reason.NO_FREE_CPU,
        detail=f"Room for {what} is there, but {who} for it.",
        data={"ahead": ahead},
    )


def some_of_many(refusal: Refusal, *, placed: int, wanted: int) -> Refusal:
    """Several hosts are taken together or not at all."""
    if not placed:
        return refusal
    detail = f"{wanted} hosts at once wanted; {placed} have room now. For the next: {refusal.detail}"
    data = {**refusal.data, "nodes": wanted, "nodes_that_fit": placed}
    return replace(refusal, satisfiable=True, detail=detail, data=data)


def too_few_hosts(request: Request, fleet: Fleet) -> Refusal | None:
    """Whether so many hosts at once can never be had, even if all were empty."""
    fits = rules.fits_empty(request, fleet)
    most = len(np.unique(fleet.host_of[fits]))
    if not most or most >= request.nodes:
        return None
    what = f"{wanted(request)}, " if request.gpus else ""
    each = f"{what}{words.many_cpus(request.cpus)} and {words.gib(request.memory_bytes)}"
    return Refusal(
        satisfiable=False,
        reason=Reason.NO_MATCHING_HOST,
        detail=f"{request.nodes} hosts at once wanted, each with {each}; there {_are(most)} like that.",
        hint=f"Ask for at most {words.many(most, 'node')}, or for less on each.",
        data={"nodes": request.nodes, "hosts_that_fit": most},
    )


def _are(hosts: int) -> str:
    return "is 1 host" if hosts == 1 else f"are {hosts} hosts"


def wanted(request: Request) -> str:
    """The GPUs of a request in words."""
    if request.gpu_memory_bytes is not None:
        models = f" of {words.either(request.gpu_models)}" if request.gpu_models else ""
        return f"A share of {words.gib(request.gpu_memory_bytes)}{models}"
    return words.gpus(request.gpus, request.gpu_models, part=_part(request))


def _part(request: Request) -> str:
    return f"{request.mig_profile} slice" if request.mig_profile else ""


def _no_runtime(request: Request, fleet: Fleet, rows: Mask) -> Refusal:
    kinds = sorted({host.runtime for host in fleet.hosts})
    return Refusal(
        satisfiable=False,
        reason=Reason.NO_READY_HOST,
        detail=f"No host runs {request.runtime} images; the hosts here run {', '.join(kinds)}.",
        hint="Choose another image.",
        data={"runtime": request.runtime, "known": kinds},
    )


def _no_label(request: Request, fleet: Fleet, rows: Mask) -> Refusal:
    asked = ", ".join(f"{name}={value}" for name, value in request.host_labels)
    known = sorted({f"{name}={value}" for host in fleet.hosts for name, value in host.labels.items()})
    listed = f"Labels here: {', '.join(known[:20])}." if known else "No host here has a label."
    return Refusal(
        satisfiable=False,
        reason=Reason.NO_MATCHING_HOST,
        detail=f"No host has the labels {asked}. {listed}",
        hint="Leave a label out.",
        data={"host_labels": dict(request.host_labels), "known_labels": known},
    )


def _no_dataset(request: Request, fleet: Fleet, rows: Mask) -> Refusal:
    names = sorted(request.datasets)
    return Refusal(
        satisfiable=False,
        reason=Reason.NO_MATCHING_HOST,
        detail=f"No host holds the datasets {', '.join(names)} together.",
        hint="Ask an admin to cache them on one host.",
        data={"datasets": names},
    )


def _no_local_image(request: Request, fleet: Fleet, rows: Mask) -> Refusal:
    return Refusal(
        satisfiable=False,
        reason=Reason.NO_MATCHING_HOST,
        detail=f"No host that fits has the image {request.image_reference}, and no registry has it.",
        hint="A saved image starts only on the host where it was saved. Choose another image.",
        data={"image_reference": request.image_reference},
    )


def _no_profile(request: Request, fleet: Fleet, rows: Mask) -> Refusal:
    known = sorted({row.kind[2] for row in fleet.rows if row.kind and row.kind[2]})
    if request.mig_profile is None:
        return _no_gpu(request, [])
    listed = f"Profiles here: {', '.join(known)}." if known else "No GPU here is divided."
    return Refusal(
        satisfiable=False,
        reason=Reason.NO_FREE_GPU,
        detail=f"No host has a MIG instance {request.mig_profile}. {listed}",
        hint="Choose one of these profiles, or a GPU." if known else "Ask for a GPU, or for a share of one.",
        data={"mig_profile": request.mig_profile, "known_profiles": known},
    )


def _models(fleet: Fleet, rows: Mask) -> list[str]:
    return sorted({row.kind[0] for row, kept in zip(fleet.rows, rows, strict=True) if kept and row.kind})


def _no_model(request: Request, fleet: Fleet, rows: Mask) -> Refusal:
    return _no_gpu(request, _models(fleet, rows))


def _no_gpu(request: Request, known: list[str]) -> Refusal:
    listed = f"Models here: {', '.join(known)}." if known else "No host here has a GPU."
    what = f" of model {words.either(request.gpu_models)}" if request.gpu_models else ""
    return Refusal(
        satisfiable=False,
        reason=Reason.NO_FREE_GPU,
        detail=f"No host has a GPU{what}. {listed}",
        hint="Choose one of these models, or leave the model out." if known else "Ask for 0 GPUs.",
        data={"gpu_models": list(request.gpu_models), "known_models": known},
    )


def _no_gpu_memory(request: Request, fleet: Fleet, rows: Mask) -> Refusal:
    sizes = sorted({int(size) for size in fleet.gpu_bytes[rows] if size})
    if not sizes:
        return _no_gpu(request, [])
    least, most = request.min_gpu_memory_bytes, request.max_gpu_memory_bytes
    asked = [f"at least {words.gib(least)}"] if least else []
    asked += [f"at most {words.gib(most)}"] if most else []
    if request.gpu_memory_bytes is not None and not asked:
        asked = [words.gib(request.gpu_memory_bytes)]
    return Refusal(
        satisfiable=False,
        reason=Reason.NO_FREE_GPU,
        detail=f"A GPU with {' and '.join(asked)} of memory wanted; the GPUs here have {_sizes(sizes)}.",
        hint="Widen the range of GPU memory.",
        data={"known_gpu_memory_bytes": sizes},
    )


def _sizes(sizes: list[int]) -> str:
    return words.gib(sizes[0]) if len(sizes) == 1 else f"{words.gib(sizes[0])} to {words.gib(sizes[-1])}"


def _too_many_gpus(request: Request, fleet: Fleet, rows: Mask) -> Refusal:
    most = int(fleet.gpu_total[rows].max())
    if not most:
        return _no_gpu(request, [])
    at_most = words.gpus(most, request.gpu_models, part=_part(request))
    return Refusal(
        satisfiable=False,
        reason=Reason.NO_FREE_GPU,
        detail=f"{wanted(request)} on one host wanted; the largest host has {most}.",
        hint=f"Ask for at most {at_most}.",
        data={"gpus": request.gpus, "largest": most, "known_models": _models(fleet, rows)},
    )


def _too_large(request: Request, fleet: Fleet, rows: Mask) -> Refusal:
    # With the CPU rule applied, memory is judged among the hosts that have the CPU.
    cpus, memory = float(fleet.cpus[rows].max()), int(fleet.memory[rows].max())
    which = f"the hosts with {_lower(wanted(request))}" if request.gpus else "the hosts here"
    reason = Reason.NO_FREE_CPU if request.cpus > cpus else Reason.NO_FREE_MEMORY
    return Refusal(
        satisfiable=False,
        reason=reason,
        detail=(
            f"{words.number(request.cpus)} CPUs and {words.gib(request.memory_bytes)} on one host wanted; "
            f"{which} have at most {words.number(cpus)} CPUs and {words.gib(memory)}."
        ),
        hint="Ask for fewer CPUs." if reason is Reason.NO_FREE_CPU else "Ask for less memory.",
        data={"largest_cpus": cpus, "largest_memory_bytes": memory},
    )


def _lower(words_: str) -> str:
    return f"a{words_[1:]}" if words_.startswith("A share") else words_


def _lent(request: Request, fleet: Fleet, rows: Mask) -> Refusal:
    count = len(np.unique(fleet.host_of[rows]))
    return Refusal(
        satisfiable=True,
        reason=Reason.NO_READY_HOST,
        detail=f"{words.many(count, 'host')} could run this, and all of them are lent to others.",
        hint="Ask an admin for a host of your own, or change the request.",
        data={"lent_hosts": count},
    )


def _not_ready(request: Request, fleet: Fleet, rows: Mask) -> Refusal:
    numbers = np.unique(fleet.host_of[rows])[:3]
    hosts = [fleet.hosts[number] for number in numbers]
    why = "; ".join(f"{host.name}: {host.not_ready_reason or 'not ready'}" for host in hosts)
    return Refusal(True, Reason.NO_READY_HOST, f"No host that fits takes new work ({why}).")


def _no_free_gpu(request: Request, fleet: Fleet, rows: Mask) -> Refusal:
    if request.gpu_memory_bytes is not None:
        most = int(np.maximum(fleet.free[rows], 0).max())
        detail = f"{wanted(request)} on one GPU wanted; at most {words.gib(most)} of one are free."
        data: dict[str, object] = {"gpu_memory_bytes": request.gpu_memory_bytes, "largest_free": most}
        return Refusal(True, Reason.NO_FREE_GPU, detail, data=data)
    free = fleet.whole[rows]
    return Refusal(
        satisfiable=True,
        reason=Reason.NO_FREE_GPU,
        detail=(
            f"{wanted(request)} on one host wanted; "
            f"{int(free.sum())} free in all, at most {int(free.max())} on one host."
        ),
        data={"gpus": request.gpus, "free": int(free.sum()), "largest_free": int(free.max())},
    )


def _no_free_cpu(request: Request, fleet: Fleet, rows: Mask) -> Refusal:
    most = float(fleet.cpus_free[rows].max())
    detail = f"{words.number(request.cpus)} CPUs on one host wanted; at most {words.number(most)} are free."
    return Refusal(True, Reason.NO_FREE_CPU, detail, data={"cpus": request.cpus, "largest_free": most})


def _no_free_memory(request: Request, fleet: Fleet, rows: Mask) -> Refusal:
    most = int(fleet.memory_free[rows].max())
    detail = (
        f"{words.gib(request.memory_bytes)} of memory on one host wanted; "
        f"at most {words.gib(most)} are free there."
    )
    data: dict[str, object] = {"memory_bytes": request.memory_bytes, "largest_free": most}
    return Refusal(True, Reason.NO_FREE_MEMORY, detail, data=data)


_SAYS: dict[rules.Rule, Callable[[Request, Fleet, Mask], Refusal]] = {
    rules.runtime: _no_runtime,
    rules.labels: _no_label,
    rules.datasets: _no_dataset,
    rules.local_image: _no_local_image,
    rules.profile: _no_profile,
    rules.model: _no_model,
    rules.gpu_memory: _no_gpu_memory,
    rules.gpu_total: _too_many_gpus,
    rules.cpus_total: _too_large,
    rules.memory_total: _too_large,
    rules.dedication: _lent,
    rules.ready: _not_ready,
    rules.gpus_free: _no_free_gpu,
    rules.cpus_free: _no_free_cpu,
    rules.memory_free: _no_free_memory,
}
