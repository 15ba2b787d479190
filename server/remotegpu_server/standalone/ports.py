"""Whether a port is free, and who has it."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from remotegpu_server.standalone.failure import StepFailed

_LISTEN = "0A"


def require_free(addresses: dict[str, tuple[str, int]]) -> None:
    """Raise StepFailed for the first of ``{use: (address, port)}`` that is taken."""
    for use, (address, port) in addresses.items():
        if _is_free(address, port):
            continue
        raise StepFailed(
            "ports",
            f"port {port} on {address} ({use}) is taken by {_holder(port)}",
            f"Stop that program, or choose other ports, such as REMOTEGPU_PORT={_other(port)} make up.",
        )


def _is_free(address: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError:
            return False
    return True


def _other(port: int) -> int:
    return port + 1000 if port < 60000 else 18000


def _holder(port: int) -> str:
    """The program that listens there, as far as this user may know."""
    inodes = _listening_inodes(port)
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            links = [os.readlink(entry) for entry in (folder / "fd").iterdir()]
            command = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:  # ended meanwhile, or another user's
            continue
        if any(link in inodes for link in links):
            return f"process {folder.name} ({Path(command[0].decode(errors='replace')).name})"
    return "a program of another user"


def _listening_inodes(port: int) -> set[str]:
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = Path(table).read_text().splitlines()[1:]
        except FileNotFoundError:
            continue
        for line in lines:
            fields = line.split()
            if fields[3] == _LISTEN and int(fields[1].rpartition(":")[2], 16) == port:
                found.add(f"socket:[{fields[9]}]")
    return found
