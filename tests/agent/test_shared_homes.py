"""Homes of two hosts: under one shared root they are the same files, otherwise each host has its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from agent_process import clean_up, get
from joined_host import JoinedHost, server_program

import remotegpu
from remotegpu.types.environments import Environment, PlacementExplanation
from remotegpu_server.testing import LiveServer

PASSWORD = "correct horse battery"
ONE_GPU = {"image": "lab", "gpus": 1, "memory_bytes": 2**28, "cpus": 0.1}


@dataclass
class Site:
    """Two hosts with two simulated GPUs each, ada, and somebody whose environments take GPUs away."""

    admin: remotegpu.Client
    ada: remotegpu.Client
    other: remotegpu.Client
    hosts: dict[str, JoinedHost]

    def run(self, client: remotegpu.Client, name: str = "default", **changes: object) -> Environment:
        made = client.environments.create(name=name, **{**ONE_GPU, **changes})  # type: ignore[arg-type]
        return client.environments.wait_ready(made.id, timeout_s=60)

    def run_on(self, host: str, client: remotegpu.Client, **changes: object) -> Environment:
        """Every other host is cordoned meanwhile."""
        others = [name for name in self.hosts if name != host]
        for name in others:
            self.admin.hosts.cordon(name)
        running = self.run(client, **changes)
        for name in others:
            self.admin.hosts.uncordon(name)
        assert running.host_name == host
        return running

    def stop(self, client: remotegpu.Client, environment: Environment) -> None:
        client.environments.stop(environment.id)
        client.environments.wait_stopped(environment.id, timeout_s=30)

    def explain(self) -> PlacementExplanation:
        return self.ada.placements.explain(**ONE_GPU)  # type: ignore[arg-type]


def _log_in(live: LiveServer, username: str, password: str) -> remotegpu.Client:
    with remotegpu.Client(live.url, "") as anonymous:
        token = anonymous.auth.login(username=username, password=password)
    return remotegpu.Client(live.url, token.secret)


def _site(live: LiveServer, folder: Path, options: list[str]) -> Iterator[Site]:
    clients = [_log_in(live, "admin", live.admin_password)]
    admin = clients[0]
    hosts: dict[str, JoinedHost] = {}
    try:
        for username in ("ada", "other"):
            admin.users.create(username=username, password=PASSWORD)
            clients.append(_log_in(live, username, PASSWORD))
        admin.images.create(
            name="lab", reference="process/lab", runtime="process", command=server_program(folder)
        )
        for name in ("a", "b"):
            own = ["--runtime", "process", "--simulate-gpus", "2xA100-80GB", *options]
            hosts[name] = JoinedHost(live, admin, name, folder / name, own)
            hosts[name].start(admin)
        yield Site(*clients, hosts)
    finally:
        for host in hosts.values():
            host.stop()
            clean_up(host.id, "process")
        for client in clients:
            client.close()


@pytest.fixture
def shared(live_server: LiveServer, tmp_path: Path) -> Iterator[Site]:
    """Both hosts name the same root, as hosts with one NFS mount do."""
    root = tmp_path / "nfs"
    root.mkdir()
    yield from _site(live_server, tmp_path, ["--shared-home", f"nfs={root}"])


@pytest.fixture
def apart(live_server: LiveServer, tmp_path: Path) -> Iterator[Site]:
    yield from _site(live_server, tmp_path, [])


def test_file_in_a_shared_home_is_there_on_the_other_host(shared: Site) -> None:
    on_a = shared.run_on("a", shared.ada)
    assert get(on_a.address, "/write") == "written"
    shared.stop(shared.ada, on_a)

    # a is full now: with a home on a, there would be a note that the files lie there.
    shared.run_on("a", shared.other, gpus=2)
    explained = shared.explain()
    assert (explained.host_name, explained.home_note) == ("b", None)

    shared.ada.environments.start(on_a.id)
    on_b = shared.ada.environments.wait_ready(on_a.id, timeout_s=60)
    assert on_b.host_name == "b"
    assert get(on_b.address, "/read") == "kept"
    assert "files" not in on_b.message
    own = [home for host in shared.hosts.values() for home in (host.state / "homes").glob("*")]
    assert own == [], "no host made a home of its own"


def test_home_on_one_host_draws_its_owner_back_there(apart: Site) -> None:
    on_a = apart.run_on("a", apart.ada)
    assert get(on_a.address, "/write") == "written"
    apart.stop(apart.ada, on_a)
    apart.run_on("b", apart.other)
    explained = apart.explain()
    assert (explained.host_name, explained.home_note) == ("a", None)

    apart.ada.environments.start(on_a.id)
    again = apart.ada.environments.wait_ready(on_a.id, timeout_s=60)
    assert again.host_name == "a"
    assert get(again.address, "/read") == "kept"


def test_full_host_with_the_home_is_named_before_the_other_one_is_taken(apart: Site) -> None:
    on_a = apart.run_on("a", apart.ada)
    assert get(on_a.address, "/write") == "written"
    apart.stop(apart.ada, on_a)
    taking = apart.run_on("a", apart.other, gpus=2)

    explained = apart.explain()
    assert explained.host_name == "b"
    note = explained.home_note
    assert note is not None
    assert "Your newest files lie on a" in note
    assert "On b you get the home that is there" in note

    apart.ada.environments.start(on_a.id)
    on_b = apart.ada.environments.wait_ready(on_a.id, timeout_s=60)
    assert on_b.host_name == "b"
    placed = [
        event.message
        for event in apart.admin.events.list(subject_type="environment", subject_id=on_a.id)
        if note in event.message
    ]
    assert len(placed) == 1, "the start itself says it too"
    assert list((apart.hosts["b"].state / "homes").rglob("kept.txt")) == []
    assert [file.read_text() for file in (apart.hosts["a"].state / "homes").rglob("kept.txt")] == ["kept"]
    apart.stop(apart.ada, on_b)
    apart.stop(apart.other, taking)
