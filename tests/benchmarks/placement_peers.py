"""Known policies to measure placement against: random, best fit, and FGD as its authors run it.

FGD (USENIX ATC'23): typical requests are the most popular that cover 95 % of the whole task list; the score
is a hundredth of a sigmoid, so ties are many and go to the host of the lowest rank.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

MILLI = 1000
STEP = 10
COVERED = 0.95


class Policy(Protocol):
    """Places one task after the other."""

    def place(self, task: Any) -> bool: ...


class _Peer:
    def __init__(self, nodes: Sequence[Any], tasks: Sequence[Any], ranks: np.ndarray) -> None:
        self.cpu = np.array([node.cpu_milli for node in nodes])
        self.memory = np.array([node.memory_mib for node in nodes])
        self.gpus = np.array([node.gpus for node in nodes])
        self.free = np.where(np.arange(self.gpus.max()) < self.gpus[:, None], MILLI, -1)
        self.names = np.array([node.model for node in nodes])
        self.ranks = ranks
        self.random = np.random.default_rng(int(ranks[0]))

    def place(self, task: Any) -> bool:
        fits = (self.cpu >= task.cpu_milli) & (self.memory >= task.memory_mib)
        if task.models:
            fits &= np.isin(self.names, task.models)
        if task.gpus:
            fits &= (self.free >= task.gpu_milli).sum(1) >= task.gpus
        hosts = np.flatnonzero(fits)
        if not len(hosts):
            return False
        host = self.choose(task, hosts)
        self.cpu[host] -= task.cpu_milli
        self.memory[host] -= task.memory_mib
        for gpu in self.choose_gpus(task, host):
            self.free[host, gpu] -= task.gpu_milli
        return True

    def choose(self, task: Any, hosts: np.ndarray) -> int:
        raise NotImplementedError

    def choose_gpus(self, task: Any, host: int) -> np.ndarray:
        fitting = np.flatnonzero(self.free[host] >= task.gpu_milli)
        return fitting[np.argsort(self.free[host, fitting], kind="stable")][: task.gpus]

    def first(self, hosts: np.ndarray, cost: np.ndarray) -> int:
        tied = hosts[cost <= cost.min() + 1e-9]
        return int(tied[self.ranks[tied].argmin()])


class Random(_Peer):
    """Any host that fits."""

    def choose(self, task: Any, hosts: np.ndarray) -> int:
        return int(self.random.choice(hosts))

    def choose_gpus(self, task: Any, host: int) -> np.ndarray:
        return self.random.permutation(np.flatnonzero(self.free[host] >= task.gpu_milli))[: task.gpus]


class BestFit(_Peer):
    """The host with the least left over, each resource in parts of the largest host's."""

    def choose(self, task: Any, hosts: np.ndarray) -> int:
        idle = np.maximum(self.free[hosts], 0).sum(1) / (MILLI * self.gpus.max())
        return self.first(hosts, idle + self.cpu[hosts] / 128000 + self.memory[hosts] / 1048576)


class Fgd(_Peer):
    """Where the expected fragmentation grows least."""

    def __init__(self, nodes: Sequence[Any], tasks: Sequence[Any], ranks: np.ndarray) -> None:
        super().__init__(nodes, tasks, ranks)
        models = sorted(set(self.names))
        self.model = np.array([models.index(name) for name in self.names])
        typical = _typical(tasks)
        self.sizes = np.array(sorted({cpu for (cpu, *_), _ in typical}))
        shape = (len(models), len(self.sizes) + 1)
        single = np.zeros((*shape, MILLI // STEP + 1))
        several = np.zeros((*shape, self.gpus.max() + 1))
        for (cpu, gpus, milli, allowed), odds in typical:
            served = [index for index, name in enumerate(models) if not allowed or name in allowed]
            enough = int(np.searchsorted(self.sizes, cpu)) + 1
            if gpus == 1:
                single[served, enough:, -(-milli // STEP) :] += odds
            elif gpus > 1:
                several[served, enough:, gpus:] += odds
        self.unusable = np.arange(MILLI // STEP + 1) * STEP * (1 - single)
        self.usable_whole = several * MILLI * np.arange(self.gpus.max() + 1)

    def measure(self, hosts: np.ndarray, cpu: np.ndarray, free: np.ndarray) -> np.ndarray:
        """Expected idle GPU that the typical request cannot use."""
        level, model = np.searchsorted(self.sizes, cpu, "right"), self.model[hosts]
        whole = (free == MILLI).sum(1)
        parts = self.unusable[model[:, None], level[:, None], np.maximum(free, 0) // STEP]
        result: np.ndarray = parts.sum(1) - self.usable_whole[model, level, whole]
        return result

    def choose(self, task: Any, hosts: np.ndarray) -> int:
        free, cpu = self.free[hosts], self.cpu[hosts]
        before = self.measure(hosts, cpu, free)
        left = cpu - task.cpu_milli
        if task.gpus == 1:
            growth = np.full(free.shape, np.inf)
            for gpu in range(free.shape[1]):
                after = free.copy()
                after[:, gpu] -= task.gpu_milli
                fits = free[:, gpu] >= task.gpu_milli
                growth[fits, gpu] = self.measure(hosts[fits], left[fits], after[fits]) - before[fits]
            self.best = dict(zip(hosts.tolist(), growth.argmin(1), strict=True))
            growth = growth.min(1)
        else:
            after = free.copy()
            after[(free == MILLI) & (np.cumsum(free == MILLI, 1) <= task.gpus)] = 0 if task.gpus else MILLI
            growth = self.measure(hosts, left, after) - before
        return self.first(hosts, -np.floor(100 / (1 + np.exp(growth / MILLI))))

    def choose_gpus(self, task: Any, host: int) -> np.ndarray:
        if task.gpus == 1:
            return np.array([self.best[host]])
        return np.flatnonzero(self.free[host] == MILLI)[: task.gpus]


def _typical(tasks: Sequence[Any]) -> list[tuple[tuple[Any, ...], float]]:
    counts = Counter((task.cpu_milli, task.gpus, task.gpu_milli, task.models) for task in tasks)
    kept, covered = [], 0
    for kind, count in counts.most_common():
        if covered >= COVERED * len(tasks):
            break
        kept.append((kind, count))
        covered += count
    return [(kind, count / covered) for kind, count in kept]


POLICIES: dict[str, Callable[..., Policy]] = {"random": Random, "bestfit": BestFit, "fgd": Fgd}
