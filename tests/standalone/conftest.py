"""An installation whose parts are small stand-ins, for the supervisor's own behaviour."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from remotegpu_server.standalone.installation import Installation
from remotegpu_server.standalone.supervisor import Supervisor, read_state


@pytest.fixture
def installation(tmp_path: Path) -> Iterator[Installation]:
    made = Installation(home=tmp_path / "home", port=18900)
    made.make_folders()
    yield made
    for child in read_state(made).children.values():
        child.stop(patience_s=0)


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def supervisor(installation: Installation, said: list[str]) -> Iterator[Supervisor]:
    made = Supervisor(installation, said.append)
    yield made
    for name in ("hub", "proxy", "agent", "server"):
        made.stop(name)
