"""The walk of a new user into a full fleet: told everything, queued, and started without another click.

Through the hub's form it is ``tests/hub/test_spawning.py``; with past runs and other customers ahead it is
``tests/server/test_queue.py``. Here once through REST and once through the SDK, with a real agent.
"""

from __future__ import annotations

from typing import Any, Protocol

import httpx
import pytest
from acceptance.site import PASSWORD, SMALL, SdkAgent, Site
from hub.stack import until

import remotegpu
from remotegpu.types.hosts import RuntimeKind


class Door(Protocol):
    """A way in; answers are wire objects as plain values."""

    def __init__(self, site: Site, username: str) -> None: ...
    def explain(self, **asked: Any) -> dict[str, Any]: ...
    def refusal(self, **asked: Any) -> dict[str, Any]: ...
    def create(self, **asked: Any) -> dict[str, Any]: ...
    def get(self, environment_id: str) -> dict[str, Any]: ...


class Rest:
    """What ``curl`` does."""

    def __init__(self, site: Site, username: str) -> None:
        url = site.servers[1].url
        signed_in = httpx.post(f"{url}/v1/auth/login", json={"username": username, "password": PASSWORD})
        self._url, self._headers = url, {"Authorization": f"Bearer {signed_in.json()['secret']}"}

    def _ask(self, method: str, path: str, status: int, body: object = None) -> dict[str, Any]:
        answer = httpx.request(method, self._url + path, headers=self._headers, json=body)
        assert answer.status_code == status, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def explain(self, **asked: Any) -> dict[str, Any]:
        return self._ask("POST", "/v1/placements:explain", 200, asked)

    def refusal(self, **asked: Any) -> dict[str, Any]:
        data: dict[str, Any] = self._ask("POST", "/v1/environments", 503, asked | {"queue": False})["data"]
        return data

    def create(self, **asked: Any) -> dict[str, Any]:
        return self._ask("POST", "/v1/environments", 201, asked)

    def get(self, environment_id: str) -> dict[str, Any]:
        return self._ask("GET", f"/v1/environments/{environment_id}", 200)


class Sdk:
    """What a script does."""

    def __init__(self, site: Site, username: str) -> None:
        self._client = site.sign_in(username).clients[1]

    def explain(self, **asked: Any) -> dict[str, Any]:
        return self._client.placements.explain(**asked).model_dump(mode="json")

    def refusal(self, **asked: Any) -> dict[str, Any]:
        with pytest.raises(remotegpu.errors.NoCapacity) as refused:
            self._client.environments.create(**asked, queue=False)
        return dict(refused.value.data)

    def create(self, **asked: Any) -> dict[str, Any]:
        return self._client.environments.create(**asked).model_dump(mode="json")

    def get(self, environment_id: str) -> dict[str, Any]:
        return self._client.environments.get(environment_id).model_dump(mode="json")


@pytest.mark.parametrize("door", [Rest, Sdk])
def test_done_when_full_fleet_tells_all_and_starts_by_itself_when_a_gpu_is_released(
    site: Site, door: type[Door]
) -> None:
    holder, newcomer = site.user(site.customer()), site.user(site.customer())
    held = holder.client.environments.create(
        name="all", image="quick", gpus=4, gpu_models=["A100-80GB"], max_lifetime_s=7200, **SMALL
    )
    site.admin.environments.wait_ready(held.id, timeout_s=60, progress=False)
    other = SdkAgent(site, runtime=RuntimeKind.PROCESS)
    way = door(site, newcomer.name)
    asked: dict[str, Any] = {"image": "quick", "gpus": 1, "gpu_models": ["A100-80GB"], **SMALL}

    explained = way.explain(**asked)
    assert explained["outcome"] == "waits"
    refused = way.refusal(name="now", **asked)
    made = way.create(name="mine", **asked)
    assert (made["status"], made["queue_position"]) == ("pending", 1)
    assert made["message"]
    for wait in (explained["wait"], refused["wait"], made["wait"]):
        assert wait["position"] == 1
        assert "A100-80GB" in wait["rule"]
        assert wait["estimate"]["basis"] == "known_ends"
        assert wait["estimate"]["p50_at"] <= wait["estimate"]["p90_at"]
        assert {"gpu_models": ["H100-80GB"]} in [one["fields"] for one in wait["counter_offers"]]
        assert holder.name not in str(wait), "privacy-safe"
    offer = next(one["fields"] for one in made["wait"]["counter_offers"] if "gpu_models" in one["fields"])
    taken = way.create(name="offer", **(asked | offer))
    assert (taken["status"], taken["host_name"]) == ("starting", other.name), "an offer that is taken starts"

    holder.client.environments.stop(held.id)
    started = until("it runs", lambda: (one := way.get(made["id"]))["status"] == "running" and one)
    assert started
    assert started["generation"] == made["generation"], "nobody started it again"
    assert [one["model"] for one in started["allocated_gpus"]] == ["A100-80GB"]
    assert started["wait"] is None
