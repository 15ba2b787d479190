"""C6: a key opens its owner's environments and no other's, and a reclaimed host keeps nothing of its tenant.

The login itself, by a real sshd in a real container, is in ``tests/agent/test_ssh.py``; homes wiped on a real
disk are in ``tests/agent/test_dedicated_host.py``. Here: which keys the host of which tenant is told.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from acceptance.site import Person, SdkAgent, Site
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hub.stack import until

from remotegpu.errors import ApiError, NotFound
from remotegpu.types.environments import Environment


def new_key() -> str:
    public = Ed25519PrivateKey.generate().public_key()
    return public.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


def create(person: Person, host: SdkAgent, server: int = 0) -> Environment:
    """A running environment on that host."""
    made = person.clients[server].environments.create(
        name="c6", image="base", memory_bytes=2**28, host_labels={"only": host.name}
    )
    host.obey()
    found = person.client.environments.get(made.id)
    assert (found.status, found.host_name) == ("running", host.name)
    return found


def test_c6_key_reaches_its_owners_environments_only_and_nothing_of_a_reclaimed_hosts_tenant_is_left(
    site: Site,
) -> None:
    first, second = site.customer(), site.customer()
    ada, bob, eve = site.user(first), site.user(first), site.user(second)
    lent, shared = SdkAgent(site), SdkAgent(site)
    ends = datetime.now(UTC) + timedelta(days=30)
    dedication = site.admin.dedications.create(host=lent.name, customer=first, ends_at=ends)
    with pytest.raises(ApiError):
        eve.client.environments.create(
            name="x", image="base", memory_bytes=2**28, host_labels={"only": lent.name}, queue=False
        )
    of_ada, of_bob, of_eve = create(ada, lent), create(bob, lent, 1), create(eve, shared, 1)
    assert lent.keys() == {of_ada.id: [], of_bob.id: []}

    key = ada.clients[1].ssh_keys.create(name="laptop", public_key=new_key())
    assert lent.keys() == {of_ada.id: [key.public_key], of_bob.id: []}
    assert shared.keys() == {of_eve.id: []}
    ada.client.ssh_keys.delete(key.id)
    assert lent.keys() == {of_ada.id: [], of_bob.id: []}, "gone with the next heartbeat"

    key = ada.client.ssh_keys.create(name="laptop", public_key=new_key())
    assert lent.keys()[of_ada.id] == [key.public_key]
    site.admins[1].dedications.reclaim(dedication.id, reason="the project is over", force=True)

    def ended() -> bool:
        lent.beat()
        lent.obey()
        return site.admin.dedications.get(dedication.id).status == "ended"

    until("the host is clean", ended, timeout_s=60)
    assert {one.status for one in site.admin.dedications.get(dedication.id).steps} == {"done"}
    assert ada.client.environments.get(of_ada.id).status == "stopped"
    site.admin.dedications.create(host=lent.name, customer=second, ends_at=ends)
    theirs = eve.client.environments.create(
        name="there", image="base", memory_bytes=2**28, host_labels={"only": lent.name}
    )
    lent.obey()
    assert eve.client.environments.get(theirs.id).host_name == lent.name
    assert lent.keys() == {theirs.id: []}, "no key of the former tenant"

    for client in ada.clients:
        with pytest.raises(NotFound):
            client.environments.access(theirs.id)
    with pytest.raises(ApiError):
        ada.client.environments.start(of_ada.id, queue=False)
    again = ada.clients[1].ssh_keys.create(name="another", public_key=new_key())
    assert again.public_key not in str(lent.keys())
