"""``python -m remotegpu_server.standalone up|down|status``."""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from remotegpu_server.standalone import down, signals, status
from remotegpu_server.standalone.failure import StepFailed
from remotegpu_server.standalone.installation import Installation
from remotegpu_server.standalone.process import start_detached
from remotegpu_server.standalone.report import say, say_failure
from remotegpu_server.standalone.supervisor import Supervisor, read_state
from remotegpu_server.standalone.up import Up, summary


class _AlreadyRunning(Exception):
    """Another supervisor holds this data folder."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m remotegpu_server.standalone", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up", help="start everything, and keep it running")
    up.add_argument(
        "--detach", action="store_true", help="return when it is ready; it goes on in the background"
    )
    commands.add_parser("down", help="stop everything that `up` started, notebooks of this machine included")
    commands.add_parser("status", help="print what runs, as JSON")
    arguments = parser.parse_args()
    try:
        installation = Installation.from_environ(os.environ)
        if arguments.command == "status":
            say(json.dumps(status.describe(installation), indent=2))
            return 0
        if arguments.command == "down":
            return down.run(installation, os.environ)
        installation.make_folders()
        return _up_detached(installation) if arguments.detach else _up(installation, os.environ)
    except StepFailed as failure:
        say_failure(failure)
        return 1


def _up(installation: Installation, environ: Mapping[str, str]) -> int:
    """Be the supervisor, in this process."""
    try:
        with _only_one(installation):
            return _supervise(installation, environ)
    except _AlreadyRunning:
        return _say_running(installation)


def _supervise(installation: Installation, environ: Mapping[str, str]) -> int:
    supervisor = Supervisor(installation, say)
    code = 0
    signals.listen()
    try:
        say(f"RemoteGPU in {installation.home}")
        Up(installation, environ, supervisor).run()
        say(summary(installation))
        supervisor.watch()
    except signals.StopWanted:
        signals.ignore()  # a second one (make passes on its own) must not end the stopping
        say("\nstopping")
    except StepFailed as failure:
        say_failure(failure)
        code = 1
    finally:
        signals.ignore()
        down.stop_everything(installation, environ, supervisor.stop)
    return code


def _up_detached(installation: Installation) -> int:
    """Start a supervisor in the background, show what it says, and return when it is ready."""
    log = installation.log("supervisor")
    if read_state(installation).supervisor is not None:
        return _say_running(installation)
    heard = log.stat().st_size if log.exists() else 0
    argv = [sys.executable, "-u", "-m", "remotegpu_server.standalone", "up"]
    supervisor = start_detached(argv, env=os.environ, log=log, cwd=installation.home)
    while True:
        ended = supervisor.poll()
        heard = _relay(log, heard)
        if ended is not None:
            return ended
        state = read_state(installation)
        if (
            state.supervisor is not None
            and state.supervisor.pid == supervisor.pid
            and "ready_since" in state.facts
        ):
            _relay(log, heard)
            say(f"  it goes on in the background; its log is {log}; `make down` stops it")
            supervisor.returncode = 0  # it is meant to outlive us
            return 0
        time.sleep(0.1)


def _say_running(installation: Installation) -> int:
    """Another supervisor is at it: wait until it is ready, and say where."""
    deadline = time.monotonic() + 1200
    while time.monotonic() < deadline:
        state = read_state(installation)
        if state.supervisor is None:
            break
        if "ready_since" in state.facts:
            say(f"already running (supervisor: process {state.supervisor.pid}){summary(installation)}")
            return 0
        time.sleep(0.2)
    raise StepFailed(
        "up", "another `make up` of this data folder ended before it was ready", "Run `make up` again.",
        log=installation.log("supervisor"),
    )  # fmt: skip


def _relay(log: Path, start: int) -> int:
    """Copy what was added to the log to our output; answers where it ends now."""
    with log.open("rb") as file:
        file.seek(start)
        added = file.read()
    sys.stdout.write(added.decode(errors="replace"))
    sys.stdout.flush()
    return start + len(added)


@contextmanager
def _only_one(installation: Installation) -> Iterator[None]:
    """Hold the data folder; the lock goes with the process, however that ends."""
    with (installation.run / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _AlreadyRunning from None
        yield


if __name__ == "__main__":
    sys.exit(main())
