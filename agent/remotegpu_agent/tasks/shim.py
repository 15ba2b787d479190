"""The little shell around every attempt: joins its limits, pumps its output into a file, keeps its exit code.

Both streams go through one pipe to a ``cat`` that appends to the attempt's ``log``, so ``> /dev/stderr``
works, the order is kept, every byte arrives, and no agent is needed. ``ulimit -f`` bounds the file; after
that, or when the disk is full, a second ``cat`` throws the rest away, and the writer never notices.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

from remotegpu.types.agent import ClaimedAttempt

CAT = shutil.which("cat") or "/bin/cat"
NAME = "rgpu-shim"
"""Of the loader inside containers, and so of the processes that are the platform's and not the task's."""
INSIDE = "/run/remotegpu"
SCRIPT = f"{INSIDE}/script"
INPUT = f"{INSIDE}/input"
LOG = f"{INSIDE}/log"
SAID = f"{INSIDE}/said"
SHIM = f"{INSIDE}/shim"

PROCESS = """
trap : TERM INT HUP
folder=$1 cap=$2 cat=$3 groups=$4
shift 4
exec 3<&0 </dev/null
(
    trap '' TERM INT HUP XFSZ
    ulimit -f "$cap"
    "$cat" >>"$folder/log" || exec "$cat" >/dev/null
) <&3 3<&- >/dev/null 2>&1 &
echo "$!" >"$folder/pump"
exec 3<&-
for group in $groups; do echo 0 >"$group/cgroup.procs"; done
"$@"
echo "$?" 1<>"$folder/exit"
"""
"""Arguments: folder, cap in blocks of 512 bytes, ``cat``, control groups, then the command. Standard input is
the pipe's end to read, standard output and error the end to write."""

CONTAINER = """
trap : TERM INT HUP
cap=$1
shift
cat="%(shim)s/%(name)s --library-path %(shim)s %(shim)s/cat"
code=$(
    trap : TERM INT HUP
    {
        {
            trap : TERM INT HUP
            "$@" 4>&-
            echo "$?" >&4
            exec >&- 2>&- 4>&-
            pass=0
            while [ "$pass" -lt 50 ]; do
                pass=$((pass + 1)) left=
                for process in /proc/[0-9]*; do
                    [ "${process#/proc/}" = 1 ] && continue
                    read -r name <"$process/comm" || continue
                    [ "$name" = %(name)s ] && continue
                    left=1
                    kill -KILL "${process#/proc/}"
                done 2>/dev/null
                [ -z "$left" ] && break
            done
        } 2>&1 | (
            trap '' TERM INT HUP XFSZ
            exec 2>/dev/null 4>&-
            ulimit -f "$cap"
            $cat >>%(log)s || exec $cat >/dev/null
        )
    } 4>&1
)
exit "$code"
""" % {"shim": SHIM, "name": NAME, "log": LOG}  # noqa: UP031  braces are the shell's
"""The same inside a container, where the engine keeps the exit code and nobody outlives the command."""


def blocks(cap_bytes: int) -> int:
    """One more than the cap needs: a log longer than the cap tells that something was dropped."""
    return cap_bytes // 512 + 2


def command_of(spec: ClaimedAttempt, script: str) -> list[str] | None:
    """What to run; ``None``: what the image names. ``script`` is the script's path where it runs."""
    if spec.script is not None:
        return [script] if spec.script.startswith("#!") else ["sh", script]
    return spec.command


class NoShell(Exception):
    """This host's shell cannot be brought into containers."""


def bundle(root: Path) -> Path:
    """A folder with this host's shell, ``cat``, libraries and loader: containers need none of their own.

    The loader is run by name, so nothing of the image is used. Made once, and anew after an upgrade of the
    host. Raises :class:`NoShell`.
    """
    shell = os.path.realpath(shutil.which("dash") or "/bin/sh")
    files = {"sh": shell, "cat": os.path.realpath(CAT)}
    try:
        for program in (shell, files["cat"]):
            files |= _libraries(program)
        stamp = hashlib.sha256()
        for name, path in sorted(files.items()):
            found = os.stat(path)
            stamp.update(f"{name} {path} {found.st_size} {found.st_mtime_ns}\n".encode())
        folder = root / f"shim-{stamp.hexdigest()[:16]}"
        if not folder.is_dir():
            _copy(files, folder)
    except (OSError, subprocess.SubprocessError, LookupError) as error:
        raise NoShell(f"The shell of this host cannot be used in containers: {error}") from error
    return folder


def _libraries(program: str) -> dict[str, str]:
    """Name -> path of what a program loads; the loader itself under :data:`NAME`."""
    loader = _loader(program)
    told = subprocess.run(
        [loader, "--list", program], capture_output=True, text=True, timeout=10, check=True, env={}
    ).stdout
    found = {NAME: os.path.realpath(loader)}
    for line in told.splitlines():
        name, arrow, path = line.strip().partition(" => ")
        if arrow and path.startswith("/"):
            found[os.path.basename(name)] = os.path.realpath(path.split(" (")[0])
    return found


def _loader(program: str) -> str:
    """The interpreter that an ELF file names."""
    data = Path(program).read_bytes()
    start = data.index(b"/lib", 64)
    name = data[start : data.index(b"\0", start)].decode()
    if "ld-" not in name:
        raise LookupError(f"{program} names no loader")
    return name


def _copy(files: dict[str, str], folder: Path) -> None:
    making = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(parents=True)
    for name, path in files.items():
        shutil.copyfile(path, making / name)
        (making / name).chmod(0o755)
    making.chmod(0o755)
    try:
        making.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
        shutil.rmtree(making)


def entrypoint(cap_bytes: int) -> list[str]:
    """How a container begins; the command follows."""
    loader = f"{SHIM}/{NAME}"
    return [loader, "--library-path", SHIM, f"{SHIM}/sh", "-c", CONTAINER, "sh", str(blocks(cap_bytes))]
