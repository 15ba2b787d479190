"""The guard: ends attempts whose lease is long over, because their agent is frozen or dead.

A program of its own, started by the agent and outliving it: ``python -I -S guard.py STATE_DIR ENGINE``.
It imports nothing of the agent and as little as possible else, since it must stay small. The agent keeps, for
each attempt, a file ``attempts/<id>/lease`` with the moment of its fence; the guard gives the agent a little
time of its own after that, then TERM, then KILL. It ends when there has been nothing to guard for a while.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import stat
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from typing import Any

LOOK_EVERY_S = 0.5
AGENT_FIRST_S = 1.0
"""An agent that lives ends it by itself, in the moment of the fence."""
IDLE_S = 10.0
ENGINE_S = 10.0
LOG_BYTES = 1_000_000


def main(state_dir: str, docker_socket: str) -> None:
    lock = os.open(os.path.join(state_dir, "guard.lock"), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    shorten_log()
    attempts = os.path.join(state_dir, "attempts")
    idle_since = now()
    while now() - idle_since < IDLE_S:
        if look(attempts, docker_socket):
            idle_since = now()
        time.sleep(LOOK_EVERY_S)


def shorten_log() -> None:
    """What earlier guards said goes, once it is much. It was opened to append: writing begins anew."""
    try:
        found = os.fstat(sys.stdout.fileno())
        if stat.S_ISREG(found.st_mode) and found.st_size > LOG_BYTES:
            os.ftruncate(sys.stdout.fileno(), 0)
    except OSError:
        return


def now() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def look(attempts: str, docker_socket: str) -> int:
    """End what is overdue; answers how many leases still matter."""
    leases = 0
    try:
        names = os.listdir(attempts)
    except OSError:
        return 0
    for name in names:
        if name.startswith("."):  # it was released, and is being deleted
            continue
        lease = read(os.path.join(attempts, name, "lease"))
        if lease is None:
            continue
        overdue = now() - float(lease["fence_at"]) - AGENT_FIRST_S
        if overdue >= 0:
            note(os.path.join(attempts, name, "stop"), float(lease["grace_s"]))
        if overdue < 0 or end(name, lease, docker_socket, kill=overdue >= float(lease["grace_s"])):
            leases += 1
    return leases


def read(path: str) -> dict[str, Any] | None:
    try:
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            this_boot = file.read().strip()
        return found if isinstance(found, dict) and found.get("boot_id") == this_boot else None
    except (OSError, ValueError):
        return None


def note(path: str, grace_s: float) -> None:
    """For the agent, should it come back: why it was ended."""
    try:
        with open(path, "x", encoding="utf-8") as file:
            json.dump({"why": "fenced", "reason": None, "at_s": now(), "grace_s": grace_s}, file)
    except OSError:
        return


_told: set[tuple[str, bool]] = set()
"""TERM is sent once; KILL until nothing is left."""


def end(name: str, lease: dict[str, Any], docker_socket: str, *, kill: bool) -> bool:
    """Answers whether there was anything of it."""
    if (name, False) in _told and not kill:
        return True
    if (name, kill) not in _told:
        say(f"attempt {name}: its lease is over and its agent silent: {'KILL' if kill else 'TERM'}")
        _told.add((name, kill))
    number = signal.SIGKILL if kill else signal.SIGTERM
    container = lease.get("container")
    if container:
        return signal_container(str(container), number, docker_socket)
    found = processes(lease)
    for pid in found:
        try:
            os.kill(pid, number)
        except OSError:
            continue
    return bool(found)


def processes(lease: dict[str, Any]) -> list[int]:
    """Everything in its control groups, with its marker, or in its session."""
    found: set[int] = set()
    groups = lease.get("groups")
    for group in groups if isinstance(groups, list) else []:
        try:
            with open(os.path.join(str(group), "cgroup.procs"), encoding="ascii") as file:
                found.update(int(pid) for pid in file.read().split())
        except (OSError, ValueError):
            continue
    marker = str(lease["marker"]).encode() + b"\0" if lease.get("marker") else None
    session = lease.get("session")
    if isinstance(session, int) and started(session) not in (None, lease.get("ticks")):
        session = None  # the number belongs to another process by now
    for name in os.listdir("/proc"):
        if name.isdigit() and belongs(int(name), marker, session):
            found.add(int(name))
    return sorted(found - {os.getpid()})


def belongs(pid: int, marker: bytes | None, session: object) -> bool:
    try:
        if session is not None and os.getsid(pid) == session:
            return True
        if marker is None:
            return False
        with open(f"/proc/{pid}/environ", "rb") as file:
            return marker in file.read()
    except OSError:
        return False


def started(pid: int) -> int | None:
    """In ticks since the start of the machine; ``None``: there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return int(file.read().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None


def signal_container(container: str, number: int, docker_socket: str) -> bool:
    """Answers whether it ran, as far as one knows."""
    request = f"POST /containers/{container}/kill?signal={number} HTTP/1.0\r\nHost: docker\r\n\r\n"
    try:
        with connect(docker_socket) as connection:
            connection.sendall(request.encode())
            answer = connection.recv(256).split(b"\r\n")[0].decode(errors="replace")
    except (OSError, ValueError) as error:
        say_once(container, f"the engine at {docker_socket} does not answer: {error}")
        return True
    if " 404" in answer or " 409" in answer:  # it is gone, or does not run
        return False
    if " 204" not in answer:
        say_once(container, f"the engine does not end it: {answer}")
    return True


def connect(docker_socket: str) -> socket.socket:
    import socket  # only hosts with containers need it

    if not docker_socket.startswith("/"):
        host, _, port = docker_socket.rpartition(":")
        return socket.create_connection((host, int(port)), ENGINE_S)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(ENGINE_S)
    try:
        connection.connect(docker_socket)
    except OSError:
        connection.close()
        raise
    return connection


_said: set[tuple[str, str]] = set()


def say_once(name: str, text: str) -> None:
    """It is looked at twice a second, and an engine may be away for days."""
    if (name, text) not in _said:
        _said.add((name, text))
        say(f"{name}: {text}")


def say(text: str) -> None:
    print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}", flush=True)  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "")
