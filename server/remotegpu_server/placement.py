"""Where a request runs: pure, from a request and an inventory to a choice or a refusal with numbers.

The database has the last word (partial unique indexes, row locks); this module only proposes. Two requests
that are shown the same inventory propose the same GPU, and one of them loses at the INSERT.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from remotegpu.types.environments import Reason

GIB = 2**30


@dataclass(frozen=True, slots=True)
class FreeGpu:
    """A healthy GPU without a live allocation."""

    id: str
    model: str
    index: int
    memory_total_bytes: int


@dataclass(frozen=True, slots=True)
class HostInventory:
    """What one host has, and what of it is free."""

    id: str
    name: str
    ready: bool
    not_ready_reason: str | None
    runtime: str
    cpus: float
    memory_bytes: int
    cpus_free: float
    memory_free_bytes: int
    gpu_totals: Mapping[str, int]
    """GPUs by model that the host reports, free or not."""
    free_gpus: tuple[FreeGpu, ...]
    shared_home: str | None = None
    images: frozenset[str] = frozenset()
    live_placements: int = 0


@dataclass(frozen=True, slots=True)
class Home:
    """A home volume of the owner: on one host, or under a shared root."""

    host_id: str | None
    shared_home: str | None

    def reachable_from(self, host: HostInventory) -> bool:
        if self.shared_home is not None:
            return host.shared_home == self.shared_home
        return host.shared_home is None and host.id == self.host_id


@dataclass(frozen=True, slots=True)
class Request:
    """What a placement must satisfy."""

    gpus: int
    gpu_model: str | None
    cpus: float
    memory_bytes: int
    runtime: str
    image_reference: str = ""
    homes: tuple[Home, ...] = ()
    """Newest use first."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A host and GPUs that fit."""

    host: HostInventory
    gpus: tuple[FreeGpu, ...]
    home_note: str | None


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why nothing was chosen: the rule that binds, with its numbers."""

    satisfiable: bool
    """False: no registered host could ever run it, even an empty one."""
    reason: Reason
    detail: str
    hint: str | None = None
    data: dict[str, object] = field(default_factory=dict)


def choose(
    request: Request, hosts: Sequence[HostInventory], *, ahead: Sequence[Request] = ()
) -> Choice | Refusal:
    """The best host and GPUs for ``request``, leaving alone what a request in ``ahead`` waits for."""
    registered = [host for host in hosts if host.runtime == request.runtime]
    refusal = _never_fits(request, hosts, registered)
    if refusal is not None:
        return refusal
    fitting = list(_options(request, registered))
    allowed = [
        option for option in fitting if not any(_wanted_by(waiting, request, option) for waiting in ahead)
    ]
    if not allowed:
        return _behind(request, len(ahead)) if fitting else _not_now(request, registered)
    host, gpus = min(allowed, key=lambda option: _score(request, option))
    return Choice(host=host, gpus=gpus, home_note=_home_note(request, host, hosts))


_Option = tuple[HostInventory, tuple[FreeGpu, ...]]


def _options(request: Request, hosts: Iterable[HostInventory]) -> Iterator[_Option]:
    """Every (host, GPUs of one model) that satisfies the hard rules now."""
    for host in hosts:
        if not host.ready or not _has_room(request, host):
            continue
        if request.gpus == 0:
            yield host, ()
            continue
        by_model: dict[str, list[FreeGpu]] = {}
        for gpu in host.free_gpus:
            by_model.setdefault(gpu.model, []).append(gpu)
        for model, free in by_model.items():
            if request.gpu_model in (None, model) and len(free) >= request.gpus:
                yield host, tuple(sorted(free, key=lambda gpu: (gpu.index, gpu.id))[: request.gpus])


def _has_room(request: Request, host: HostInventory) -> bool:
    return host.cpus_free >= request.cpus and host.memory_free_bytes >= request.memory_bytes


def _score(request: Request, option: _Option) -> tuple[int, int, int, int, int, str]:
    """Smallest wins: the owner's files, then least fragmentation, image present, spread."""
    host, gpus = option
    model = gpus[0].model if gpus else None
    left = sum(1 for gpu in host.free_gpus if model is None or gpu.model == model) - len(gpus)
    memory = gpus[0].memory_total_bytes if gpus else 0
    return (
        _home_rank(request, host),
        left,
        memory,
        0 if request.image_reference in host.images else 1,
        host.live_placements,
        host.id,
    )


def _home_rank(request: Request, host: HostInventory) -> int:
    """0 for the host with the newest home; hosts without any come last."""
    for rank, home in enumerate(request.homes):
        if home.reachable_from(host):
            return rank
    return len(request.homes)


def _home_note(request: Request, host: HostInventory, hosts: Sequence[HostInventory]) -> str | None:
    if not request.homes or request.homes[0].reachable_from(host):
        return None
    newest = request.homes[0]
    at = next(
        (known.name for known in hosts if known.id == newest.host_id), newest.shared_home or "another host"
    )
    return (
        f"Your newest files lie on {at}, which cannot take this request now. "
        f"On {host.name} you get the home that is there; those files are not in it."
    )


def _wanted_by(waiting: Request, request: Request, option: _Option) -> bool:
    """Whether taking this option could delay a request that waits longer.

    Conservative: whatever the waiting request could use when it becomes free is left to it. Requests without
    GPUs pass requests that wait for GPUs.
    """
    host, gpus = option
    if waiting.runtime != host.runtime or not _fits_empty(waiting, host):
        return False
    if waiting.gpus == 0:
        return True
    if request.gpus == 0:
        return False
    model = gpus[0].model
    return waiting.gpu_model in (None, model) and host.gpu_totals.get(model, 0) >= waiting.gpus


def _fits_empty(request: Request, host: HostInventory) -> bool:
    if host.cpus < request.cpus or host.memory_bytes < request.memory_bytes:
        return False
    return request.gpus == 0 or _most(request, host) >= request.gpus


def _most(request: Request, host: HostInventory) -> int:
    """The most GPUs of one allowed model that the host has."""
    return max(
        (count for model, count in host.gpu_totals.items() if request.gpu_model in (None, model)), default=0
    )


def _never_fits(
    request: Request, hosts: Sequence[HostInventory], usable: Sequence[HostInventory]
) -> Refusal | None:
    """A refusal that waiting cannot cure, or ``None``. Before the first host joins, everything waits."""
    if not hosts or any(_fits_empty(request, host) for host in usable):
        return None
    if not usable:
        kinds = sorted({host.runtime for host in hosts})
        return Refusal(
            satisfiable=False,
            reason=Reason.NO_READY_HOST,
            detail=f"No host runs {request.runtime} images; the hosts here run {', '.join(kinds)}.",
            hint="Choose another image.",
            data={"runtime": request.runtime, "known": kinds},
        )
    totals: Counter[str] = Counter()
    for host in usable:
        totals.update(host.gpu_totals)
    known = sorted(model for model, count in totals.items() if count)
    if request.gpus and request.gpu_model is not None and request.gpu_model not in known:
        listed = f"Models here: {', '.join(known)}." if known else "No host here has a GPU."
        return Refusal(
            satisfiable=False,
            reason=Reason.NO_FREE_GPU,
            detail=f"No host has a GPU of model {request.gpu_model}. {listed}",
            hint="Choose one of these models, or leave the model out." if known else "Ask for 0 GPUs.",
            data={"gpu_model": request.gpu_model, "known_models": known},
        )
    most = max(_most(request, host) for host in usable)
    if request.gpus > most:
        wanted = _gpus(request.gpus, request.gpu_model)
        return Refusal(
            satisfiable=False,
            reason=Reason.NO_FREE_GPU,
            detail=f"{wanted} on one host wanted; the largest host has {most}.",
            hint=f"Ask for at most {_gpus(most, request.gpu_model)}." if most else "Ask for 0 GPUs.",
            data={"gpus": request.gpus, "largest": most, "known_models": known},
        )
    return _too_large(
        request, [host for host in usable if request.gpus == 0 or _most(request, host) >= request.gpus]
    )


def _too_large(request: Request, hosts: Sequence[HostInventory]) -> Refusal:
    cpus = max(host.cpus for host in hosts)
    memory = max(host.memory_bytes for host in hosts)
    which = f"the hosts with {_gpus(request.gpus, request.gpu_model)}" if request.gpus else "the hosts here"
    reason = Reason.NO_FREE_CPU if request.cpus > cpus else Reason.NO_FREE_MEMORY
    return Refusal(
        satisfiable=False,
        reason=reason,
        detail=(
            f"{_number(request.cpus)} CPUs and {gib(request.memory_bytes)} on one host wanted; "
            f"{which} have at most {_number(cpus)} CPUs and {gib(memory)}."
        ),
        hint="Ask for fewer CPUs." if reason is Reason.NO_FREE_CPU else "Ask for less memory.",
        data={"largest_cpus": cpus, "largest_memory_bytes": memory},
    )


def _not_now(request: Request, hosts: Sequence[HostInventory]) -> Refusal:
    """Nothing fits at this moment: say which resource binds on the hosts that could."""
    if not hosts:
        return Refusal(
            True,
            Reason.NO_READY_HOST,
            "No host has joined yet.",
            hint="An admin adds one with `remotegpu host add`.",
        )
    fitting = [host for host in hosts if _fits_empty(request, host)]
    ready = [host for host in fitting if host.ready]
    if not ready:
        why = "; ".join(f"{host.name}: {host.not_ready_reason or 'not ready'}" for host in fitting[:3])
        return Refusal(True, Reason.NO_READY_HOST, f"No host that fits takes new work ({why}).")
    if request.gpus:
        free = [_free(request, host) for host in ready]
        if max(free) < request.gpus:
            return Refusal(
                satisfiable=True,
                reason=Reason.NO_FREE_GPU,
                detail=(
                    f"{_gpus(request.gpus, request.gpu_model)} on one host wanted; "
                    f"{sum(free)} free in all, at most {max(free)} on one host."
                ),
                data={"gpus": request.gpus, "free": sum(free), "largest_free": max(free)},
            )
        ready = [host for host in ready if _free(request, host) >= request.gpus]
    cpus = max(host.cpus_free for host in ready)
    if cpus < request.cpus:
        detail = f"{_number(request.cpus)} CPUs on one host wanted; at most {_number(cpus)} are free."
        return Refusal(True, Reason.NO_FREE_CPU, detail, data={"cpus": request.cpus, "largest_free": cpus})
    memory = max(host.memory_free_bytes for host in ready if host.cpus_free >= request.cpus)
    detail = (
        f"{gib(request.memory_bytes)} of memory on one host wanted; at most {gib(memory)} are free there."
    )
    data: dict[str, object] = {"memory_bytes": request.memory_bytes, "largest_free": memory}
    return Refusal(True, Reason.NO_FREE_MEMORY, detail, data=data)


def _free(request: Request, host: HostInventory) -> int:
    counts = Counter(gpu.model for gpu in host.free_gpus if request.gpu_model in (None, gpu.model))
    return max(counts.values(), default=0)


def _behind(request: Request, ahead: int) -> Refusal:
    who = "1 request ahead waits" if ahead == 1 else f"{ahead} requests ahead wait"
    what = _gpus(request.gpus, request.gpu_model) if request.gpus else "this much CPU and memory"
    return Refusal(
        satisfiable=True,
        reason=Reason.NO_FREE_GPU if request.gpus else Reason.NO_FREE_CPU,
        detail=f"Room for {what} is there, but {who} for it.",
        data={"ahead": ahead},
    )


def _gpus(count: int, model: str | None) -> str:
    name = f"{model} GPU" if model else "GPU"
    return f"{count} {name}{'' if count == 1 else 's'}"


def _number(value: float) -> str:
    return f"{value:g}"


def gib(value: int) -> str:
    """Bytes for people, in GiB."""
    return f"{value / GIB:.3g} GiB"
