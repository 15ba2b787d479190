"""Workloads as a server would send them."""

from __future__ import annotations

import sys
from typing import Any

from remotegpu.types.agent import DesiredState, HomeVolume, Workload

SERVER = """
import http.server, os, pathlib, sys, urllib.parse
url = urllib.parse.urlsplit(os.environ["JUPYTERHUB_SERVICE_URL"])
pathlib.Path("started.txt").open("a").write("started\\n")
print("listening", flush=True)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path.startswith("/exit/"):
            print("told to exit", flush=True)
            os._exit(int(self.path.split("/")[2]))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(os.environ.get("ANSWER", "hello").encode())
    def log_message(self, *args):
        pass
http.server.HTTPServer((url.hostname, url.port), Handler).serve_forever()
"""


def workload(workload_id: str = "env-1", **changes: Any) -> Workload:
    """A CPU-only workload that a process host can run."""
    fields: dict[str, Any] = {
        "id": workload_id,
        "generation": 1,
        "desired": DesiredState.RUNNING,
        "name": "default",
        "owner": "ada",
        "image_reference": "remotegpu-agent-test:latest",
        "image_digest": None,
        "command": [sys.executable, "-c", SERVER],
        "env": {"JUPYTERHUB_SERVICE_URL": "http://0.0.0.0:8888/user/ada/"},
        "secret_env": {},
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
