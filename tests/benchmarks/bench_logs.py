"""Output of a task in MB/s, from a real process through a real agent into a real server's store.

One task writes as fast as it can; the clock runs from its start until the server has the last byte. What is
stored is read back and compared with what was written, byte by byte. Ends with one line of JSON: mb_per_s,
agent_cpu_percent (of one core), agent_rss_mb, bytes_lost, and the load of the machine at the end.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import time
from collections.abc import Iterator

import psutil
from live_site import Site, live_site

import remotegpu

WRITER = """
import sys
block = b"".join(b"%062d\\n" % number for number in range(16384))
for _ in range({blocks}):
    sys.stdout.buffer.write(block)
"""
"""Each block is 16384 lines of 63 bytes."""
BLOCK = 16384 * 63


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mb", type=int, default=200)
    arguments = parser.parse_args()
    with live_site() as site:
        site.admin.settings.set("tasks.log_cap_bytes", 2**33)
        print(json.dumps(_run(site, blocks=max(1, arguments.mb * 10**6 // BLOCK))))


def _run(site: Site, *, blocks: int) -> dict[str, object]:
    agent = psutil.Process(site.host.pid)
    written = blocks * BLOCK
    command = ["python3", "-c", WRITER.format(blocks=blocks)]
    task_id = site.admin.tasks.submit(image="base", command=command, memory_bytes=2**28).tasks[0].id
    while site.admin.tasks.get(task_id).status not in ("running", "succeeded"):
        time.sleep(0.01)
    before, begun, highest = _cpu_seconds(agent), time.monotonic(), 0
    while (seen := site.admin.tasks.logs(task_id, offset=written, limit=1)).size_bytes < written:
        highest = max(highest, agent.memory_info().rss)
        assert time.monotonic() - begun < 300, f"only {seen.size_bytes} of {written} bytes came"
        time.sleep(0.05)
    seconds = time.monotonic() - begun
    used = _cpu_seconds(agent) - before
    assert site.admin.tasks.wait(task_id, timeout_s=60).status == "succeeded"
    return {
        "mb": round(written / 1e6, 1),
        "mb_per_s": round(written / 1e6 / seconds, 1),
        "agent_cpu_percent": round(100 * used / seconds, 1),
        "agent_rss_mb": round(highest / 1e6, 1),
        "bytes_lost": _lost(site.admin, task_id, blocks),
        "load": [round(one, 1) for one in os.getloadavg()],
    }


def _lost(admin: remotegpu.Client, task_id: str, blocks: int) -> int:
    """How many bytes differ from what was written, or are missing, or are too many."""
    block = b"".join(b"%062d\n" % number for number in range(16384))
    wrong, offset, stored = 0, 0, b""
    for part in _parts(admin, task_id):
        stored += part
        while len(stored) >= BLOCK:
            wrong += 0 if stored[:BLOCK] == block else BLOCK
            offset, stored = offset + BLOCK, stored[BLOCK:]
    return wrong + len(stored) + abs(blocks * BLOCK - offset)


def _parts(admin: remotegpu.Client, task_id: str) -> Iterator[bytes]:
    offset = 0
    while data := base64.b64decode((found := admin.tasks.logs(task_id, offset=offset)).data):
        offset = found.next_offset
        yield data


def _cpu_seconds(agent: psutil.Process) -> float:
    times = agent.cpu_times()
    return times.user + times.system


if __name__ == "__main__":
    main()
