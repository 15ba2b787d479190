"""Control groups for attempts that run as processes: limits, what they used, and everything that is in them.

Below the agent's own group, in either version. Where the kernel, or the agent's rights, allow none, attempts
have no limits, and the host says so.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
NAME = "remotegpu-tasks"
PIDS_LIMIT = 1024
_V1 = ("memory", "pids", "cpu")
_PERIOD_US = 100_000


class Groups:
    """The groups of one host's attempts."""

    def __init__(self, root: Path = ROOT, own: Path = Path("/proc/self/cgroup")) -> None:
        self.problem: str | None = None
        self._bases: dict[str, Path] = {}
        """Controller -> folder; ``""`` is the one folder of version 2."""
        try:
            self._bases = self._find(root, own.read_text())
        except OSError as error:
            self.problem = f"no control groups: {error.strerror or error}"
        missing = [name for name in _V1 if not self._has(name)]
        if missing and self.problem is None:
            self.problem = f"no control groups for {', '.join(missing)}"

    def _find(self, root: Path, own: str) -> dict[str, Path]:
        places = dict(line.split(":", 2)[1:] for line in own.splitlines())
        if (root / "cgroup.controllers").exists():
            return {"": self._make_v2(root / places[""].lstrip("/"))}
        found: dict[str, Path] = {}
        for names, place in places.items():
            for name in names.split(","):
                if name in _V1:
                    base = root / name / place.lstrip("/") / NAME
                    base.mkdir(exist_ok=True)
                    found[name] = base
        return found

    def _make_v2(self, own: Path) -> Path:
        """A group with controllers below may hold no process itself, so the agent moves into one of its own.

        With systemd this takes ``Delegate=yes``. Others in the agent's group keep the controllers away.
        """
        if own.name == "remotegpu-agent":
            own = own.parent
        base = own / NAME
        base.mkdir(exist_ok=True)
        wanted = "+memory +pids +cpu"
        with suppress(OSError):
            (own / "remotegpu-agent").mkdir(exist_ok=True)
            (own / "remotegpu-agent" / "cgroup.procs").write_text(str(os.getpid()))
            (own / "cgroup.subtree_control").write_text(wanted)
            (base / "cgroup.subtree_control").write_text(wanted)
        return base

    def _has(self, controller: str) -> bool:
        if "" in self._bases:
            with suppress(OSError):
                return controller in (self._bases[""] / "cgroup.subtree_control").read_text().split()
            return False
        return controller in self._bases

    def create(self, name: str, *, memory_bytes: int, cpus: float) -> list[Path]:
        """The groups that its first process must join. A limit that the kernel refuses is left out."""
        groups = []
        for controller, base in self._bases.items():
            group = base / name
            try:
                group.mkdir(exist_ok=True)
            except OSError as error:
                self.problem = f"no control groups: {error.strerror or error}"
                continue
            for file, value in _limits(controller, memory_bytes, cpus):
                with suppress(OSError):
                    (group / file).write_text(value)
            groups.append(group)
        return groups


def processes_in(groups: Iterable[Path]) -> set[int]:
    found: set[int] = set()
    for group in groups:
        with suppress(OSError):
            found.update(int(pid) for pid in (group / "cgroup.procs").read_text().split())
    return found


def forbid_forks(groups: Iterable[Path]) -> None:
    """What is being killed must not multiply meanwhile."""
    for group in groups:
        with suppress(OSError):
            (group / "pids.max").write_text("0")


def peak_bytes(groups: Iterable[Path]) -> int | None:
    """The most memory that was used at once, file cache included."""
    for group in groups:
        for file in ("memory.peak", "memory.max_usage_in_bytes"):
            with suppress(OSError, ValueError):
                return int((group / file).read_text())
    return None


def out_of_memory(groups: Iterable[Path]) -> bool:
    """Whether the kernel killed a process of it for want of memory."""
    for group in groups:
        for file in ("memory.events", "memory.oom_control"):
            with suppress(OSError, ValueError):
                told = dict(line.split() for line in (group / file).read_text().splitlines())
                if int(told.get("oom_kill", 0)):
                    return True
    return False


def remove(groups: Iterable[Path]) -> list[Path]:
    """Those that are still there: a process that has just ended leaves its group a little later."""
    left = []
    for group in groups:
        try:
            group.rmdir()
        except FileNotFoundError:
            continue
        except OSError:
            left.append(group)
    return left


def _limits(controller: str, memory_bytes: int, cpus: float) -> list[tuple[str, str]]:
    quota = str(max(1000, round(cpus * _PERIOD_US)))
    v1 = {
        "memory": [
            ("memory.limit_in_bytes", str(memory_bytes)),
            ("memory.memsw.limit_in_bytes", str(memory_bytes)),
        ],
        "pids": [("pids.max", str(PIDS_LIMIT))],
        "cpu": [("cpu.cfs_period_us", str(_PERIOD_US)), ("cpu.cfs_quota_us", quota)],
    }
    v2 = [
        ("memory.max", str(memory_bytes)),
        ("memory.swap.max", "0"),
        ("pids.max", str(PIDS_LIMIT)),
        ("cpu.max", f"{quota} {_PERIOD_US}"),
    ]
    return v2 if controller == "" else v1[controller]
