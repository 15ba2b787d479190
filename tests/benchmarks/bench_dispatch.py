"""From submit to the first instruction of the process: an idle local host, the process runtime.

The task is `date`, which prints the clock of this machine, so what its own start costs is in the figure. Each
is submitted when the one before has been released. Ends with one line of JSON: p50_ms, p99_ms.
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np
from live_site import Site, live_site


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=100)
    arguments = parser.parse_args()
    with live_site() as site:
        _dispatch(site)  # the first one makes the home and fills caches
        seconds = [_dispatch(site) for _ in range(arguments.tasks)]
    print(
        json.dumps(
            {
                "tasks": len(seconds),
                "p50_ms": round(float(np.percentile(seconds, 50)) * 1e3, 1),
                "p99_ms": round(float(np.percentile(seconds, 99)) * 1e3, 1),
            }
        )
    )


def _dispatch(site: Site) -> float:
    begun = time.time_ns()
    task_id = site.admin.tasks.submit(image="base", command=["date", "+%s%N"], memory_bytes=2**27).tasks[0].id
    site.admin.tasks.wait(task_id, timeout_s=30)
    first = int(site.admin.tasks.logs(task_id).text)
    while site.admin.tasks.attempts(task_id).items[0].released_at is None:
        time.sleep(0.02)
    return (first - begun) / 1e9


if __name__ == "__main__":
    main()
