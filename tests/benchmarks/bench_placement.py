"""GPUs allocated on a production trace, and the time of a decision; `--peers` runs known policies too.

The protocol is the one of the data's README: arrivals only, a request that fits nowhere is dropped, and the
figure is the mean of allocated percent while 100 % of the capacity has arrived. `--database` places requests
through the server's tables on a PostgreSQL of its own instead. Ends with one line of JSON.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import placement_peers

from remotegpu_server import placement

DATA = Path(__file__).parents[2].parent / "shared" / "data" / "openb"
SEEDS = range(42, 52)
MILLI = 1000
"""A GPU of the trace has this much; here these are its bytes of memory."""
LOAD = 1.3
MIB = 2**20


@dataclass(frozen=True)
class Task:
    """A request of the trace."""

    cpu_milli: int
    memory_mib: int
    gpus: int
    gpu_milli: int
    models: tuple[str, ...]

    @property
    def asked(self) -> int:
        return self.gpus * self.gpu_milli


@dataclass(frozen=True)
class Node:
    """A host of the trace."""

    name: str
    cpu_milli: int
    memory_mib: int
    gpus: int
    model: str


@dataclass(frozen=True)
class Result:
    """One run."""

    allocated_percent: float
    decisions_s: np.ndarray


class Ours:
    """The production code path: what the server calls, without its database."""

    def __init__(self, nodes: Sequence[Node], tasks: Sequence[Task], ranks: np.ndarray) -> None:
        order = sorted(zip(ranks, nodes, strict=True), key=lambda pair: pair[0])
        self._fleet = placement.Fleet(_inventory(node) for _, node in order)
        self._requests = {task: _request(task) for task in set(tasks)}

    def place(self, task: Task) -> bool:
        request = self._requests[task]
        self._fleet.saw(request)
        choice = placement.choose(request, self._fleet)
        if isinstance(choice, placement.Refusal):
            return False
        self._fleet.take(choice.hold)
        return True


def _inventory(node: Node) -> placement.HostInventory:
    return placement.HostInventory(
        id=node.name,
        name=node.name,
        ready=True,
        not_ready_reason=None,
        runtime="docker",
        cpus=node.cpu_milli / 1000,
        memory_bytes=node.memory_mib * MIB,
        cpus_free=node.cpu_milli / 1000,
        memory_free_bytes=node.memory_mib * MIB,
        gpus=tuple(
            placement.GpuInventory(f"{node.name}/{index}", node.model, index, MILLI, MILLI)
            for index in range(node.gpus)
        ),
    )


def _request(task: Task) -> placement.Request:
    return placement.Request(
        gpus=task.gpus,
        cpus=task.cpu_milli / 1000,
        memory_bytes=task.memory_mib * MIB,
        runtime="docker",
        gpu_models=task.models,
        gpu_memory_bytes=task.gpu_milli if 0 < task.asked < MILLI else None,
    )


POLICIES: dict[str, Callable[..., placement_peers.Policy]] = {"ours": Ours, **placement_peers.POLICIES}


def main() -> None:
    options = _options()
    if options.database:
        import placement_database

        print(json.dumps(placement_database.run(read_nodes(options.nodes), read_tasks(options.tasks))))
        return
    nodes, tasks = read_nodes(options.nodes), read_tasks(options.tasks)
    seeds = SEEDS if options.seed is None else [options.seed]
    report: dict[str, object] = {}
    for policy in [*placement_peers.POLICIES, "ours"] if options.peers else [options.policy]:
        report = _run_all(policy, nodes, tasks, seeds)
        print(f"{policy:8} {report['allocated_percent']:.2f} % of {len(list(seeds))} seeds", flush=True)
    print(json.dumps(report))


def _run_all(
    policy: str, nodes: Sequence[Node], tasks: Sequence[Task], seeds: Sequence[int]
) -> dict[str, object]:
    begun = time.perf_counter()
    results = [run(policy, nodes, tasks, seed) for seed in seeds]
    decisions = np.concatenate([result.decisions_s for result in results]) * 1e3
    return {
        "policy": policy,
        "allocated_percent": round(float(np.mean([result.allocated_percent for result in results])), 3),
        "decision_ms_p50": round(float(np.percentile(decisions, 50)), 4),
        "decision_ms_p99": round(float(np.percentile(decisions, 99)), 4),
        "seconds": round(time.perf_counter() - begun, 1),
    }


def run(policy: str, nodes: Sequence[Node], tasks: Sequence[Task], seed: int) -> Result:
    """Send the arrivals of one seed to one policy."""
    arrivals, ranks = arrivals_of(nodes, tasks, seed)
    placer = POLICIES[policy](nodes, tasks, ranks)
    capacity = sum(node.gpus for node in nodes) * MILLI
    arrived = allocated = 0
    at_full_load, decisions = [], np.zeros(len(arrivals))
    for number, index in enumerate(arrivals):
        task = tasks[index]
        arrived += task.asked
        begun = time.perf_counter()
        placed = placer.place(task)
        decisions[number] = time.perf_counter() - begun
        allocated += task.asked if placed else 0
        if round(100 * arrived / capacity) == 100:
            at_full_load.append(100 * allocated / capacity)
    return Result(float(np.mean(at_full_load)), decisions)


def arrivals_of(nodes: Sequence[Node], tasks: Sequence[Task], seed: int) -> tuple[list[int], np.ndarray]:
    """Indices of the tasks in order of arrival, and the hosts' ranks for ties."""
    stream = np.random.default_rng(seed)
    arrivals = [int(index) for index in stream.permutation(len(tasks))]
    limit = LOAD * MILLI * sum(node.gpus for node in nodes)
    asked = sum(task.asked for task in tasks)
    while True:
        index = int(stream.integers(len(tasks)))
        if asked + tasks[index].asked > limit:
            break
        asked += tasks[index].asked
        arrivals.append(index)
    return arrivals, stream.permutation(len(nodes))


def read_nodes(path: Path) -> list[Node]:
    with path.open(newline="") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: row["sn"])
    return [
        Node(row["sn"], int(row["cpu_milli"]), int(row["memory_mib"]), int(row["gpu"]), row["model"])
        for row in rows
    ]


def read_tasks(path: Path) -> list[Task]:
    with path.open(newline="") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: row["name"])
    return [
        Task(
            int(row["cpu_milli"]),
            int(row["memory_mib"]),
            int(row["num_gpu"]),
            int(row["gpu_milli"]),
            tuple(row["gpu_spec"].split("|")) if row["gpu_spec"] else (),
        )
        for row in rows
    ]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=Path, default=DATA / "nodes.csv")
    parser.add_argument("--tasks", type=Path, default=DATA / "tasks_default.csv")
    parser.add_argument("--seed", type=int, help="one seed; otherwise the mean of 42 to 51")
    parser.add_argument("--policy", choices=POLICIES, default="ours")
    parser.add_argument("--peers", action="store_true", help="run the known policies first")
    parser.add_argument("--database", action="store_true", help="through PostgreSQL: decisions per second")
    return parser.parse_args()


if __name__ == "__main__":
    main()
