"""Starts agents by forking one process that has imported them: twenty starts would take a minute otherwise.

One line of JSON in, ``[log file, argument, …]``, one line out: the agent's pid. Each is a process of its own,
as ``remotegpu-agent`` is.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys

from remotegpu_agent import __main__, runner


def main() -> None:
    assert runner, "imported here, so that no agent has to"
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks how they ended
    started = []
    for line in sys.stdin:
        log, *arguments = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _be_an_agent(log, arguments)
        started.append(pid)
        print(pid, flush=True)
    for pid in started:  # a test that was killed leaves none behind
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _be_an_agent(log: str, arguments: list[str]) -> None:
    code = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        code = __main__.main(arguments)
    finally:
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
