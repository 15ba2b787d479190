"""C9, as far as this release goes: totals equal row counts, and /metrics takes its own credential only.

Series per GPU and the rules of alerts come with the monitoring; what a heartbeat said of a GPU is compared
here with what the API says of it.
"""

from __future__ import annotations

import httpx
import pytest
from acceptance.site import SMALL, SdkAgent, Site
from hub.stack import until

from remotegpu.errors import Forbidden, Unauthorized
from remotegpu.types import agent as wire


def test_c9_totals_equal_row_counts_with_hosts_in_every_state(site: Site) -> None:
    site.admin.hosts.create(name="c9-pending")
    states = {"available": None, "cordoned": "cordon", "draining": "drain", "maintenance": "maintenance",
              "retired": "retire"}  # fmt: skip
    hosts = {state: SdkAgent(site, gpus=2) for state in states}
    for state, verb in states.items():
        if verb is not None:
            if verb in ("maintenance", "retire"):
                site.admin.hosts.cordon(hosts[state].name)
            getattr(site.admins[1].hosts, verb)(hosts[state].name)
        assert site.admin.hosts.get(hosts[state].name).operational == state
    ada = site.user()
    holder = ada.client.environments.create(name="c9", image="quick", gpus=1, **SMALL)
    waiter = ada.client.environments.create(name="c9-waits", image="quick", gpus=4, **SMALL)
    assert waiter.status == "pending"
    site.admin.environments.wait_ready(holder.id, timeout_s=60, progress=False)

    listed = list(site.admin.hosts.list(limit=200))
    ready = [one for one in listed if one.ready]
    gpus = list(site.admin.gpus.list(limit=200))
    for admin in site.admins:
        totals = admin.capacity.get()
        assert totals.hosts_total == len(listed) == site.rows("SELECT count(*) FROM hosts")[0][0]
        assert totals.hosts_ready == len(ready)
        assert sum(one.free for one in totals.gpu_models) == sum(one.free for one in gpus)
        assert totals.pending_environments == len(list(admin.environments.list(status="pending"))) == 1
    in_service = "SELECT count(*) FROM gpus"
    assert len(gpus) == site.rows(in_service)[0][0]
    assert sum(one.gpus_total for one in listed) == len(gpus)
    assert sum(one.gpus_free for one in listed) == sum(one.free for one in gpus)
    held = site.rows("SELECT count(*) FROM allocations WHERE released_at IS NULL")[0][0]
    assert sum(one.allocation_id is not None for one in gpus) == held == 1
    by_state = dict(site.rows("SELECT operational, count(*) FROM hosts GROUP BY 1"))
    assert {state: sum(one.operational == state for one in listed) for state in by_state} == by_state
    assert by_state.keys() == {"pending", *states}
    customers = list(site.admin.customers.list(limit=200))
    assert sum(one.users for one in customers) == site.rows("SELECT count(*) FROM users")[0][0]


def test_c9_gpus_show_what_the_last_heartbeat_said(site: Site) -> None:
    host = SdkAgent(site, gpus=2)
    said = {
        uuid: {"utilization_percent": 40.0 + index, "memory_used_bytes": 2**30 + index, "temperature_c": 61.0}
        for index, uuid in enumerate(host.gpus)
    }
    beats = [wire.HeartbeatGpu.model_validate({"uuid": uuid, "metrics": one}) for uuid, one in said.items()]
    host.client.agent.heartbeat(host.heartbeat(gpus=beats))

    def shown() -> bool:
        found = {one.uuid: one.metrics for one in site.admin.gpus.list(host=host.name)}
        return found == {one.uuid: one.metrics for one in beats}

    until("the samples are written", shown)


def test_c9_metrics_take_their_own_credential_and_refuse_others(site: Site) -> None:
    ada = site.user()
    scraper = site.admin.tokens.create(name="prometheus", scopes=["metrics"]).secret
    for number, server in enumerate(site.servers):
        up = site.client(scraper, number).health.metrics()
        assert "remotegpu_leading" in up
        assert "remotegpu_http_request_seconds_count" in up
        with pytest.raises(Forbidden):
            site.client(scraper, number).hosts.list()
        with pytest.raises(Forbidden):
            ada.clients[number].health.metrics()
        with pytest.raises(Unauthorized):
            site.client(f"{scraper[:-3]}xyz", number).health.metrics()
        through_a_proxy = httpx.get(f"{server.url}/metrics", headers={"X-Forwarded-For": "192.0.2.1"})
        assert through_a_proxy.status_code == 401, "only a direct client of this machine shows no token"
    leading = [site.client(scraper, number).health.metrics() for number in (0, 1)]
    assert sum("remotegpu_leading 1.0" in one for one in leading) == 1, "one of them runs the loops"
