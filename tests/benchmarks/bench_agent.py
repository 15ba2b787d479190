"""CPU and memory of a real agent process with 8 simulated GPUs at one sample per second, over a minute.

The server beside it is a tiny one in this process; it asks for a heartbeat every ten seconds, as the real
one does. Ends with one line of JSON: cpu_percent (of one core), rss_mb.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parents[1] / "agent"))

from scripted_server import CREDENTIAL, HOST_ID, ScriptedServer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--runtime", default="auto", choices=["auto", "docker", "process"])
    parser.add_argument("--gpus", default="8xA100-80GB")
    arguments = parser.parse_args()
    server = ScriptedServer(pace_s=10.0)
    with tempfile.TemporaryDirectory(prefix="remotegpu-bench-agent-") as folder:
        state_dir = Path(folder)
        credential = {"url": server.url, "host_id": HOST_ID, "host_name": "bench", "secret": CREDENTIAL}
        (state_dir / "credential.json").write_text(json.dumps(credential))
        agent = subprocess.Popen(
            [sys.executable, "-m", "remotegpu_agent", "run", "--state-dir", folder,
             "--runtime", arguments.runtime, "--simulate-gpus", arguments.gpus],
            env={name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"},
        )  # fmt: skip
        try:
            server.until("the agent has registered", lambda: server.sessions)
            time.sleep(2.0)  # starting up is not part of the measurement
            result = measure(psutil.Process(agent.pid), arguments.seconds)
            status = json.loads((state_dir / "status.json").read_text())
        finally:
            agent.terminate()
            agent.wait(timeout=20)
            server.close()
    heartbeats = len(server.heartbeats)
    assert heartbeats >= arguments.seconds / 12 - 1, f"only {heartbeats} heartbeats came"
    assert len(server.heartbeats[-1].gpus) == sum(1 for _ in server.sessions[0].inventory.gpus)
    print(f"runtime {status['runtime']}, {heartbeats} heartbeats, {arguments.gpus} (simulated)")
    print(json.dumps(result))


def measure(agent: psutil.Process, seconds: float) -> dict[str, float]:
    before, began = _cpu_seconds(agent), time.monotonic()
    highest = 0
    while (left := began + seconds - time.monotonic()) > 0:
        time.sleep(min(1.0, left))
        highest = max(highest, agent.memory_info().rss)
    used = _cpu_seconds(agent) - before
    return {
        "cpu_percent": round(100 * used / (time.monotonic() - began), 3),
        "rss_mb": round(highest / 1e6, 1),
    }


def _cpu_seconds(agent: psutil.Process) -> float:
    """Its own and that of the children it waited for (iptables)."""
    times = agent.cpu_times()
    return times.user + times.system + times.children_user + times.children_system


if __name__ == "__main__":
    main()
