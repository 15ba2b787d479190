"""The few requests that `up`, `status` and `down` make, as the admin through the hub's service token."""

from __future__ import annotations

import time
from typing import Any

import httpx

from remotegpu_server.standalone.failure import StepFailed
from remotegpu_server.standalone.installation import ADMIN, HOST_NAME, Installation

DOCKER_IMAGE = "base"
DOCKER_REFERENCE = "remotegpu/base:latest"
PROCESS_IMAGE = "host-python"

_IMAGES: dict[str, dict[str, Any]] = {
    "docker": {
        "name": DOCKER_IMAGE,
        "reference": DOCKER_REFERENCE,
        "display_name": "JupyterLab",
        "description": "Python with JupyterLab and RemoteGPU's widgets.",
        "runtime": "docker",
    },
    "process": {
        "name": PROCESS_IMAGE,
        "reference": PROCESS_IMAGE,
        "display_name": "This machine's Python",
        "description": "JupyterLab as a process of this machine, for evaluation: not isolated from it.",
        "runtime": "process",
        "command": ["python", "-m", "remotegpu_notebooks.without_image"],
    },
}
_ALIVE = ("starting", "running", "stopping", "unreachable")


class Api:
    """Our server, as seen by its own installation."""

    def __init__(self, installation: Installation, *, timeout_s: float = 10) -> None:
        self._http = httpx.Client(
            base_url=installation.server_url,
            headers={
                "Authorization": f"Bearer {installation.hub_token_file.read_text().strip()}",
                "X-RemoteGPU-On-Behalf-Of": ADMIN,
            },
            timeout=timeout_s,
            trust_env=False,
        )

    def __enter__(self) -> Api:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def host(self) -> dict[str, Any] | None:
        """This machine as a host, or None if it has none yet."""
        answer = self._http.get(f"/v1/hosts/{HOST_NAME}")
        return None if answer.status_code == httpx.codes.NOT_FOUND else _content(answer)

    def create_host(self) -> dict[str, Any]:
        return _content(self._http.post("/v1/hosts", json={"name": HOST_NAME}))

    def enrollment_secret(self) -> str:
        answer = self._http.post(f"/v1/hosts/{HOST_NAME}/enrollment-tokens", json={"expires_in_s": 600})
        return str(_content(answer)["secret"])

    def offer_image(self, runtime: str) -> str:
        """Put the image of this runtime on the allow-list and take the other one's off; answers its name."""
        for kind, image in _IMAGES.items():
            path = f"/v1/images/{image['name']}"
            known = self._http.get(path)
            if known.status_code == httpx.codes.NOT_FOUND:
                if kind == runtime:
                    _content(self._http.post("/v1/images", json=image))
                continue
            wanted = "active" if kind == runtime else "withdrawn"
            if _content(known)["status"] != wanted:
                _content(self._http.patch(path, json={"status": wanted}))
        return str(_IMAGES[runtime]["name"])

    def stop_environments(self, within_s: float) -> tuple[int, int]:
        """Ask that everything on this host stops, and wait for it: how many there were, how many are left."""
        running = self._on_this_host()
        for environment in running:
            answer = self._http.post(f"/v1/environments/{environment['id']}:stop")
            if answer.status_code not in (httpx.codes.NOT_FOUND, httpx.codes.CONFLICT):
                _content(answer)
        deadline = time.monotonic() + within_s
        left = running
        while left and time.monotonic() < deadline:
            time.sleep(0.2)
            left = self._on_this_host()
        return len(running), len(left)

    def _on_this_host(self) -> list[dict[str, Any]]:
        found = []
        for status in _ALIVE:
            cursor: str | None = None
            while True:
                query = {"status": status, "limit": "200"} | ({"cursor": cursor} if cursor else {})
                page = _content(self._http.get("/v1/environments", params=query))
                found += [entry for entry in page["items"] if entry["host_name"] == HOST_NAME]
                cursor = page["next_cursor"]
                if cursor is None:
                    break
        return found


def answers(url: str, *, timeout_s: float = 2) -> bool:
    """Whether an address answers with success."""
    try:
        return httpx.get(url, timeout=timeout_s, trust_env=False).is_success
    except httpx.HTTPError:
        return False


def _content(answer: httpx.Response) -> dict[str, Any]:
    if answer.is_error:
        request = answer.request
        raise StepFailed(
            "server",
            f"{request.method} {request.url.path} answered {answer.status_code}: {answer.text[:500]}",
            "Read the server's log; `make down` and `make up` start everything afresh.",
        )
    content: dict[str, Any] = answer.json() if answer.content else {}
    return content
