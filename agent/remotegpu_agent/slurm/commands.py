"""The only caller of Slurm's programs. What they answer is the truth; their silence means nothing."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass

from remotegpu_agent.runtime import RuntimeUnavailable

COMMAND_S = 60.0
"""A controller that is away makes the programs try for a while by themselves."""
JOBS_EVERY_S = 1.0
"""All attempts of all nodes share one look at the queue, at most this often."""
NODES_EVERY_S = 5.0
JOB_PREFIX = "rg-"
ENDED = frozenset(
    {
        "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY",
        "PREEMPTED", "REVOKED", "TIMEOUT",
    }
)  # fmt: skip
"""``COMPLETING`` is none of them: something may still run."""
_AWAY = (
    "unable to contact slurm controller", "socket timed out", "connection refused", "connection failure",
    "zero bytes were transmitted", "standby mode", "protocol authentication error", "could not establish",
    "communication", "munge", "temporarily", "try again", "resource temporarily",
)  # fmt: skip
"""What the programs say of a controller that is away, or of their way to it."""


class Refused(Exception):
    """Slurm will not have it, however often it is asked; with its own words."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One line of the queue. What has ended stays in it for a while (``MinJobAge``)."""

    id: str
    state: str
    name: str
    comment: str
    reason: str

    @property
    def ended(self) -> bool:
        return self.state in ENDED


@dataclass(frozen=True, kw_only=True)
class Node:
    """One node of a partition, as ``sinfo`` tells it."""

    name: str
    state: str
    """Such as ``idle``, or ``down*`` for one that does not respond."""
    cpus: int
    memory_mib: int
    free_memory_mib: int | None
    gres: str
    reason: str | None
    version: str


class Slurm:
    """Slurm, as this machine's configuration reaches it, shared by the agents of all nodes."""

    def __init__(self, partition: str) -> None:
        self.partition = partition
        self._jobs: tuple[float, list[Job]] = (float("-inf"), [])
        self._jobs_lock = asyncio.Lock()
        self._nodes: tuple[float, dict[str, Node]] = (float("-inf"), {})
        self._nodes_lock = asyncio.Lock()

    async def jobs(self, *, newer_than: float | None = None) -> list[Job]:
        """Jobs of attempts, seen a moment ago, or after ``newer_than`` (``time.monotonic``)."""
        oldest = time.monotonic() - JOBS_EVERY_S if newer_than is None else newer_than
        async with self._jobs_lock:
            if self._jobs[0] < oldest:
                seen_at = time.monotonic()
                text = await _run(["squeue", "--noheader", "--me", "--states=all", "--format=%i|%T|%j|%k|%r"])
                self._jobs = (seen_at, [job for line in text.splitlines() if (job := _job(line)) is not None])
            return self._jobs[1]

    async def nodes(self) -> dict[str, Node]:
        """By name."""
        async with self._nodes_lock:
            if self._nodes[0] < time.monotonic() - NODES_EVERY_S:
                seen_at = time.monotonic()
                text = await _run(
                    ["sinfo", "--noheader", "--Node", f"--partition={self.partition}",
                     "--format=%N|%T|%c|%m|%e|%G|%v|%E"]
                )  # fmt: skip
                self._nodes = (seen_at, {node.name: node for node in map(node_of, text.splitlines())})
            return self._nodes[1]

    async def longest_s(self) -> float | None:
        """The partition's time limit; ``None``: it has none."""
        text = await _run(["sinfo", "--noheader", f"--partition={self.partition}", "--format=%l"])
        return time_limit_s(text.split("\n")[0].strip())

    async def submit(self, options: Sequence[str], script: str) -> str:
        """The new job's number. Raises Refused.

        RuntimeUnavailable does not mean that there is no job: its number may have been lost on the way.
        """
        words = ["sbatch", "--parsable", f"--partition={self.partition}", *options]
        return (await _run(words, script)).strip().partition(";")[0]

    async def terminate(self, job_id: str) -> None:
        """TERM to all of it, the job's shell included."""
        await self._cancel("--full", "--signal=TERM", job_id)

    async def kill(self, job_id: str) -> None:
        """KILL to all of it; one that waits leaves the queue."""
        await self._cancel("--full", "--signal=KILL", job_id)
        await self._cancel(job_id)

    async def _cancel(self, *words: str) -> None:
        try:
            await _run(["scancel", *words])
        except Refused as refused:
            if "already completing or completed" not in str(refused) and "Invalid job id" not in str(refused):
                raise RuntimeUnavailable(f"scancel: {refused}") from refused


async def _run(words: Sequence[str], text: str = "") -> str:
    """Its output. Raises RuntimeUnavailable, and Refused where Slurm answered with a no."""
    try:
        process = await asyncio.create_subprocess_exec(
            *words,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=_environment(),
            cwd="/",
        )
    except OSError as error:
        raise RuntimeUnavailable(f"{words[0]} cannot be run: {error}") from error
    try:
        async with asyncio.timeout(COMMAND_S):
            output, errors = await process.communicate(text.encode())
    except TimeoutError:
        raise RuntimeUnavailable(f"{words[0]} did not answer within {COMMAND_S:.0f} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode == 0:
        return output.decode(errors="replace")
    said = errors.decode(errors="replace").strip()
    if words[0] not in ("sbatch", "scancel") or any(sign in said.lower() for sign in _AWAY):
        raise RuntimeUnavailable(f"Slurm does not answer: {_first_line(said)}")
    raise Refused(said)


def _first_line(text: str) -> str:
    return (text.splitlines() or ["(it says nothing)"])[0][:200]


def _environment() -> dict[str, str]:
    """For Slurm's programs, and so for jobs: nothing of the agent's but how Slurm is found and asked."""
    kept = ("PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "TZ")
    found = {name: os.environ[name] for name in kept if name in os.environ}
    return found | {
        name: value for name, value in os.environ.items() if name.startswith(("SLURM_CONF", "SBATCH_"))
    }


def _job(line: str) -> Job | None:
    fields = line.split("|", 4)
    if len(fields) < 5 or not fields[2].startswith(JOB_PREFIX):
        return None
    number, state, name, comment, reason = fields
    return Job(id=number, state=state, name=name, comment=comment, reason=reason)


def node_of(line: str) -> Node:
    name, state, cpus, memory, free, gres, version, reason = line.split("|", 7)
    return Node(
        name=name,
        state=state,
        cpus=int(cpus),
        memory_mib=int(memory.rstrip("+")),
        free_memory_mib=int(free) if free.isdigit() else None,
        gres="" if gres == "(null)" else gres,
        reason=None if reason in ("none", "None", "") else reason,
        version=version,
    )


def time_limit_s(text: str) -> float | None:
    """``1-02:03:04``, ``2:03:04``, ``03:04`` or ``infinite`` -> seconds."""
    days, dash, rest = text.partition("-")
    if not dash:
        days, rest = "0", text
    try:
        parts = [int(part) for part in rest.split(":")]
        seconds = 0
        for part in parts:
            seconds = seconds * 60 + part
        return float(int(days) * 86400 + seconds)
    except ValueError:
        return None
