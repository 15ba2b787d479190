"""From submit to the first instruction of the process: an idle local host, the process runtime.

The task is `date`, which prints the clock of this machine, so what its own start costs is in the figure. Each
is submitted when the one before has been released and its host is idle again; nobody asks for it meanwhile.
Then Slurm and Ray do the same on the same machine, one after the other, so that no other daemons disturb.
Ends with one line of JSON: p50_ms, p99_ms, slurm_p50_ms, ray_p50_ms, our p50 as a part of theirs (of_slurm,
of_ray), and the load of the machine at the end. A peer that cannot run is null, and why is printed above.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable

import numpy as np
from dispatch_peers import COMMAND, first_instruction, ray_s, slurm_s
from live_site import Site, live_site


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=100)
    parser.add_argument("--jobs", type=int, default=20, help="of each peer")
    arguments = parser.parse_args()
    with live_site() as site:
        _dispatch(site)  # the first one makes the home and fills caches
        ours = [_dispatch(site) for _ in range(arguments.tasks)]
    p50_ms = _ms(ours, 50)
    found: dict[str, object] = {"tasks": len(ours), "p50_ms": p50_ms, "p99_ms": _ms(ours, 99)}
    for peer, seconds in (("slurm", slurm_s(arguments.jobs)), ("ray", ray_s(arguments.jobs))):
        if isinstance(seconds, str):
            print(seconds)
            found |= {f"{peer}_p50_ms": None, f"of_{peer}": None}
        else:
            peer_ms = _ms(seconds, 50)
            found |= {f"{peer}_p50_ms": peer_ms, f"of_{peer}": round(p50_ms / peer_ms, 2)}
    print(json.dumps(found | {"load": [round(one, 1) for one in os.getloadavg()]}))


def _dispatch(site: Site) -> float:
    task_id = ""

    def submit() -> Callable[[], str]:
        nonlocal task_id
        task_id = site.admin.tasks.submit(image="base", command=COMMAND, memory_bytes=2**27).tasks[0].id
        return lambda: site.admin.tasks.logs(task_id).text

    seconds = first_instruction(submit)
    deadline = time.monotonic() + 30
    while site.admin.tasks.attempts(task_id).items[0].released_at is None:
        assert time.monotonic() < deadline, f"{task_id} was not released within 30 s"
        time.sleep(0.1)
    return seconds


def _ms(seconds: list[float], percentile: float) -> float:
    return round(float(np.percentile(seconds, percentile)) * 1e3, 1)


if __name__ == "__main__":
    main()
