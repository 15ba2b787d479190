"""Workloads as a server would send them."""

from __future__ import annotations

import sys
from typing import Any

from remotegpu.types.agent import DesiredState, HomeVolume, Workload

IMAGE = "remotegpu-agent-test:latest"

SERVER = """
import http.server, os, pathlib, signal, subprocess, sys, urllib.parse
if os.environ.get("IGNORE_TERM"):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    subprocess.Popen(["sleep", "600"], start_new_session=True)
kept = pathlib.Path(os.environ["HOME"], "kept.txt")
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        words = self.path.split("/")
        text = "hello"
        if words[1] == "exit":
            print("told to exit with", words[2], flush=True)
            os._exit(int(words[2]))
        elif words[1] == "write":
            kept.write_text("kept")
            text = "written"
        elif words[1] == "read":
            text = kept.read_text()
        elif words[1] == "env":
            text = os.environ.get(words[2], "(unset)")
        self.send_response(200)
        self.end_headers()
        self.wfile.write(text.encode())
    def log_message(self, *args):
        pass
url = urllib.parse.urlsplit(os.environ["JUPYTERHUB_SERVICE_URL"])
server = http.server.HTTPServer((url.hostname, url.port), Handler)
print("listening", flush=True)
server.serve_forever()
"""
"""What the C server of the test image does, for hosts that run processes."""


def workload(workload_id: str = "env-1", **changes: Any) -> Workload:
    """A CPU-only workload that either runtime can run: containers ignore this command's paths."""
    fields: dict[str, Any] = {
        "id": workload_id,
        "generation": 1,
        "desired": DesiredState.RUNNING,
        "name": "default",
        "owner": "ada",
        "image_reference": IMAGE,
        "image_digest": None,
        "command": [sys.executable, "-c", SERVER],
        "env": {},
        "secret_env": {"JUPYTERHUB_SERVICE_URL": "http://0.0.0.0:8888/user/ada/"},
        "gpu_uuids": [],
        "cpus": 1.0,
        "memory_bytes": 128 * 2**20,
        "home": HomeVolume(volume_id=f"vol-{workload_id}", shared=False),
        "port": 8888,
        "stop_grace_s": 5.0,
        "start_timeout_s": 30.0,
    }
    return Workload(**{**fields, **changes})


def absent(of: Workload) -> Workload:
    return of.model_copy(update={"desired": DesiredState.ABSENT})
