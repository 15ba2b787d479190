"""Stands for a notebook server where its kernels do not matter: answers in 0.1 s, after a pause if asked to.

Usage: quick_notebook.py [SECONDS_UNTIL_IT_LISTENS]
"""

from __future__ import annotations

import json
import os
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:  # the name that http.server asks for
        shown = {"version": "quick", "path": self.path, "environ": dict(os.environ)}
        body = json.dumps(shown).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the output is read by tests of failures."""


time.sleep(float(sys.argv[1]) if len(sys.argv) > 1 else 0)
own = f"http://127.0.0.1:{os.environ.get('REMOTEGPU_PROCESS_PORT')}"  # started without a hub
url = urlsplit(os.environ.get("JUPYTERHUB_SERVICE_URL", own))
ThreadingHTTPServer((url.hostname or "127.0.0.1", url.port or 8888), Handler).serve_forever()
