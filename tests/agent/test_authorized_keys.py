"""Keys on a host: exactly those of the desired set, replaced at once, gone with the workload."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from remotegpu_agent import container_spec
from remotegpu_agent.activity import open_connections
from remotegpu_agent.authorized_keys import KeyFolders


def test_keys_are_replaced_readable_and_forgotten(tmp_path: Path) -> None:
    folders = KeyFolders(tmp_path / "ssh")
    folders.write("env-1", [])
    assert not (tmp_path / "ssh").exists(), "nothing is made for a workload that is to be removed"
    folders.write("env-1", ["ssh-ed25519 AAAA", "ssh-rsa BBBB"])
    path = folders.folder("env-1") / "authorized_keys"
    assert path.read_text() == "ssh-ed25519 AAAA\nssh-rsa BBBB\n"
    assert path.stat().st_mode & 0o777 == 0o644
    before = path.stat().st_ino
    folders.write("env-1", ["ssh-ed25519 AAAA", "ssh-rsa BBBB"])
    assert path.stat().st_ino == before, "what is right is left alone"
    folders.write("env-1", [])
    assert path.read_text() == ""
    assert [one.name for one in path.parent.iterdir()] == ["authorized_keys"]
    folders.forget("env-1")
    assert list((tmp_path / "ssh").iterdir()) == []


@pytest.mark.parametrize("workload_id", ["../up", "", "a/b", ".hidden", "a\n"])
def test_id_that_leads_elsewhere_is_refused(tmp_path: Path, workload_id: str) -> None:
    with pytest.raises(ValueError, match="workload id"):
        KeyFolders(tmp_path).write(workload_id, ["ssh-ed25519 AAAA"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("ssh=2222", {"ssh": 2222}),
        ("ssh=2222, desktop=6080", {"ssh": 2222, "desktop": 6080}),
        ("ssh=22", {}),
        ("web=8888", {}),
        ("ssh=99999", {}),
        ("SSH=2222,=2222,ssh,ssh=x", {}),
        (",".join(f"p{number}=300{number}" for number in range(10)), 8),
        (None, {}),
    ],
)
def test_endpoints_of_an_image_are_the_well_formed_ones(label: str | None, expected: object) -> None:
    labels = {container_spec.ENDPOINTS: label} if label is not None else None
    found = container_spec.endpoints(labels, taken=8888)
    assert (len(found) if isinstance(expected, int) else found) == expected


def test_connections_are_those_to_the_named_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert open_connections("self", [port], loopback=True) == 0
        with socket.create_connection(("127.0.0.1", port)):
            assert open_connections("self", [port], loopback=True) == 1
            assert open_connections("self", [port], loopback=False) == 0
    assert open_connections(2**22 + 1, [port], loopback=True) is None
