"""C4: an environment's life through the hub, and its death by another hand.

With containers (``docker rm -f``, ``docker kill``) the same is in ``tests/agent/test_with_real_server.py``.
"""

from __future__ import annotations

import os
import re
import signal

import httpx
import pytest
from acceptance.site import Site
from bs4 import BeautifulSoup
from hub.stack import Hub, until

from remotegpu_agent import processes

pytestmark = [pytest.mark.hub, pytest.mark.timeout(180)]
HEARTBEAT_S = 10.0


def processes_of(site: Site, environment_id: str) -> list[int]:
    return processes.marked(f"{site.host.id}/{environment_id}/")


def test_c4a_url_works_in_both_running_phases_and_nothing_is_left_after_the_delete(
    site: Site, hub: Hub
) -> None:
    ada = site.user(gpus=1, environments=1)
    url, ids = f"{hub.url}/user/{ada.name}/c4a/api", set()
    for generation in (1, 2):
        assert hub.spawn(ada.name, "c4a", image="quick", gpus=1).is_success
        hub.await_ready(ada.name, "c4a")
        shown = httpx.get(url).json()
        assert shown["version"] == "quick"
        (environment,) = ada.clients[1].environments.list(name="c4a")
        assert (environment.status, environment.generation) == ("running", generation)
        assert shown["environ"]["REMOTEGPU_SIMULATED_GPUS"] == environment.allocated_gpus[0].uuid
        ids.add(environment.id)
        hub.delete(ada.name, "c4a")
        hub.await_stopped(ada.name, "c4a")
        assert not httpx.get(url).is_success
        stopped = ada.clients[1].environments.wait_stopped(environment.id, timeout_s=30, progress=False)
        assert (stopped.allocated_gpus, stopped.address) == ([], None)
    assert len(ids) == 1, "the second start is the same environment"
    assert hub.delete(ada.name, "c4a", remove=True).is_success
    until("it is deleted", lambda: not ada.client.environments.list().items)
    (environment_id,) = ids
    assert processes_of(site, environment_id) == []
    assert all(one.free for one in site.admins[1].gpus.list(host="gpu-host"))
    used = {one.resource: one.used for one in ada.clients[1].quotas.mine().lines if one.subject == "user"}
    assert (used["gpus"], used["environments"]) == (0, 0)
    live = "SELECT count(*) FROM {0} WHERE environment_id = :id AND released_at IS NULL"
    for table in ("allocations", "placements"):
        assert site.rows(live.format(table), id=environment_id) == [(0,)]


def test_c4b_killed_workload_is_an_error_with_a_cause_within_a_heartbeat_and_the_hub_shows_it(
    site: Site, hub: Hub
) -> None:
    ada = site.user()
    hub.spawn(ada.name, image="quick", gpus=1)
    hub.await_ready(ada.name)
    (environment,) = ada.client.environments.list()
    (notebook,) = [pid for pid in processes_of(site, environment.id) if os.getsid(pid) != pid]
    os.kill(notebook, signal.SIGKILL)  # the leader of its session watches it, as an engine does a container
    failed = until(
        "it failed",
        lambda: (one := ada.clients[1].environments.get(environment.id)).status == "failed" and one,
        timeout_s=HEARTBEAT_S,
    )
    assert failed
    assert (failed.reason, failed.exit_code) == ("exited", 128 + signal.SIGKILL)
    assert failed.message
    assert failed.generation == 1, "nothing starts it again"
    until("its GPU is free", lambda: all(one.free for one in site.admin.gpus.list(host="gpu-host")))
    hub.await_stopped(ada.name)
    with hub.signed_in(ada.name) as person:
        page = BeautifulSoup(person.http.get("/services/remotegpu/").text, "html.parser")
        text = re.sub(r"\s+", " ", page.get_text(" "))
    assert "failed" in text, text
    assert failed.message in text, text
