"""C3: parallel creates at a limit, and at the GPUs of one host, over two servers.

Hosts have no range of ports of which the server gives some out: each workload listens on a port that its
host's kernel or its container's network gives it. So C3b asserts what a port race
would break: addresses differ.
"""

from __future__ import annotations

import pytest
from acceptance.site import SMALL, Site, at_once

import remotegpu
from remotegpu.errors import NoCapacity, QuotaExceeded
from remotegpu.types.environments import Environment

QUOTA, PARALLEL = 3, 12


@pytest.mark.parametrize(("resource", "gpus"), [("gpus", 1), ("environments", 0)])
def test_c3a_parallel_creates_at_a_quota_let_exactly_that_many_through(
    site: Site, resource: str, gpus: int
) -> None:
    ada = site.user(**{resource: QUOTA})
    done, refused = at_once(
        [
            lambda number=number: ada.clients[number % 2].environments.create(  # type: ignore[misc]
                name=f"c3a-{number}", image="quick", gpus=gpus, **SMALL
            )
            for number in range(PARALLEL)
        ]
    )
    assert len(done) == QUOTA, refused
    assert len(refused) == PARALLEL - QUOTA
    for error in refused:
        assert isinstance(error, QuotaExceeded), error
        assert error.status == 409
        assert (error.data["resource"], error.data["requested"], error.data["available"]) == (resource, 1, 0)
    for client in ada.clients:
        (line,) = [
            one for one in client.quotas.mine().lines if one.resource == resource and one.subject == "user"
        ]
        assert (line.used, line.limit, line.available) == (QUOTA, QUOTA, 0)
        assert {one.id for one in client.environments.list()} == {one.id for one in done}


def test_c3b_parallel_creates_for_the_gpus_of_one_host_hold_each_once_and_freed_ones_are_given_out_again(
    site: Site,
) -> None:
    people = [site.user(site.customer()) for _ in range(3)]

    def create(number: int) -> Environment:
        client = people[number % 3].clients[number % 2]
        return client.environments.create(name=f"c3b-{number}", image="quick", gpus=1, queue=False, **SMALL)

    done, refused = at_once([lambda number=number: create(number) for number in range(PARALLEL)])  # type: ignore[misc]
    assert len(done) == 4, refused
    for error in refused:
        assert isinstance(error, NoCapacity), error
        assert error.data["wait"]["rule"], "a clear refusal"
        assert error.hint
    running = [site.admin.environments.wait_ready(one.id, timeout_s=60, progress=False) for one in done]
    held = [gpu.uuid for one in running for gpu in one.allocated_gpus]
    assert len(held) == len(set(held)) == 4
    assert len({one.address for one in running}) == 4, "no address is given twice"
    assert {one.uuid: one.environment_id for one in site.admins[1].gpus.list(host="gpu-host")} == {
        gpu.uuid: one.id for one in running for gpu in one.allocated_gpus
    }

    freed = running[0].allocated_gpus[0].uuid
    with pytest.raises(NoCapacity):
        create(50)
    site.end(running[0].id)
    again = people[1].clients[1].environments.create(name="again", image="quick", gpus=1, **SMALL)
    again = site.admin.environments.wait_ready(again.id, timeout_s=60, progress=False)
    assert [gpu.uuid for gpu in again.allocated_gpus] == [freed]
    with pytest.raises(remotegpu.errors.ApiError, match=r"."):
        create(51)
