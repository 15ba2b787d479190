"""The hard rules, in the order in which a refusal names them. Each is a mask over the rows of the fleet."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from remotegpu_server.placement.fleet import Fleet, Mask
from remotegpu_server.placement.request import Request

Rule = Callable[[Request, Fleet], Mask | bool]


def runtime(request: Request, fleet: Fleet) -> Mask:
    fits: Mask = fleet.runtime == fleet.codes.find(request.runtime)
    return fits


def labels(request: Request, fleet: Fleet) -> Mask | bool:
    if not request.host_labels:
        return True
    wanted = request.host_labels
    fits = [all(host.labels.get(name) == value for name, value in wanted) for host in fleet.hosts]
    return np.array(fits, bool)[fleet.host_of]


def datasets(request: Request, fleet: Fleet) -> Mask | bool:
    if not request.datasets:
        return True
    return np.array([request.datasets <= host.datasets for host in fleet.hosts], bool)[fleet.host_of]


def local_image(request: Request, fleet: Fleet) -> Mask | bool:
    if not request.local_image:
        return True
    return np.array([request.image_reference in host.images for host in fleet.hosts], bool)[fleet.host_of]


def profile(request: Request, fleet: Fleet) -> Mask | bool:
    """MIG instances serve those that ask for their profile, GPUs the others."""
    return True if request.gpus == 0 else fleet.profile == fleet.codes.find(request.mig_profile)


def model(request: Request, fleet: Fleet) -> Mask | bool:
    if request.gpus == 0 or not request.gpu_models:
        return True
    return np.isin(fleet.model, [fleet.codes.find(name) for name in request.gpu_models])


def gpu_memory(request: Request, fleet: Fleet) -> Mask:
    fits: Mask = np.ones(len(fleet.rows), bool)
    if request.gpus == 0:
        return fits
    least = max(request.min_gpu_memory_bytes or 0, request.gpu_memory_bytes or 0)
    fits = fleet.gpu_bytes >= least
    if request.max_gpu_memory_bytes is not None:
        fits = fits & (fleet.gpu_bytes <= request.max_gpu_memory_bytes)
    return fits


def gpu_total(request: Request, fleet: Fleet) -> Mask:
    return fleet.gpu_total >= request.gpus


def cpus_total(request: Request, fleet: Fleet) -> Mask:
    return fleet.cpus >= request.cpus


def memory_total(request: Request, fleet: Fleet) -> Mask:
    return fleet.memory >= request.memory_bytes


def dedication(request: Request, fleet: Fleet) -> Mask:
    """A dedicated host is open to the customer and the workspace it is lent to."""
    of = fleet.codes.find
    lent: Mask = ((fleet.customer == 0) | (fleet.customer == of(request.customer_id))) & (
        (fleet.workspace == 0) | (fleet.workspace == of(request.workspace_id))
    )
    return lent


def ready(request: Request, fleet: Fleet) -> Mask:
    return fleet.ready


def gpus_free(request: Request, fleet: Fleet) -> Mask | bool:
    if request.gpus == 0:
        return True
    if request.gpu_memory_bytes is not None:
        enough: Mask = np.any(fleet.free >= request.gpu_memory_bytes, axis=1)
        return enough
    return fleet.whole >= request.gpus


def cpus_free(request: Request, fleet: Fleet) -> Mask:
    return fleet.cpus_free >= request.cpus


def memory_free(request: Request, fleet: Fleet) -> Mask:
    return fleet.memory_free >= request.memory_bytes


FOREVER: tuple[Rule, ...] = (
    runtime,
    labels,
    datasets,
    local_image,
    profile,
    model,
    gpu_memory,
    gpu_total,
    cpus_total,
    memory_total,
)
"""What an empty fleet would not cure."""
NOW: tuple[Rule, ...] = (dedication, ready, gpus_free, cpus_free, memory_free)
"""What waiting may cure."""


def fits_empty(request: Request, fleet: Fleet) -> Mask:
    """Rows that could run the request if nothing else ran there."""
    return _all(FOREVER, request, fleet)


def fits_unoccupied(request: Request, fleet: Fleet) -> Mask:
    """Rows that fit but for what is free on them."""
    return _all((*FOREVER, dedication, ready), request, fleet)


def fits_now(request: Request, fleet: Fleet) -> Mask:
    """Rows that can run the request at this moment."""
    return _all((*FOREVER, *NOW), request, fleet)


def without(request: Request, fleet: Fleet, *left_out: Rule) -> Mask:
    """Rows that satisfy every rule but these."""
    return _all([rule for rule in (*FOREVER, *NOW) if rule not in left_out], request, fleet)


def _all(rules: tuple[Rule, ...] | list[Rule], request: Request, fleet: Fleet) -> Mask:
    fits = np.ones(len(fleet.rows), bool)
    for rule in rules:
        fits &= rule(request, fleet)
    return fits


def kept_for(waiting: Request, request: Request, fleet: Fleet) -> Mask | bool:
    """Rows where taking something could delay ``waiting``.

    Conservative: whatever it could use when it becomes free is left to it. Requests without GPUs pass
    requests that wait for GPUs.
    """
    if request.gpus == 0 and waiting.gpus:
        return False
    rows = fits_empty(waiting, fleet) & dedication(waiting, fleet)
    if waiting.gpus or not rows.any():
        return rows
    return np.isin(fleet.host_of, fleet.host_of[rows])
