"""The environment of a notebook: variables, a scripted server behind them, and no one's own configuration."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from notebooks.standin import ENVIRONMENT, TOKEN, StandIn, standin


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[StandIn]:
    """A server, and the variables that every environment gets."""
    with standin() as script:
        monkeypatch.setenv("REMOTEGPU_URL", script.url)
        monkeypatch.setenv("REMOTEGPU_TOKEN", TOKEN)
        monkeypatch.setenv("REMOTEGPU_ENVIRONMENT_ID", ENVIRONMENT)
        monkeypatch.setenv("HOME", str(tmp_path))
        yield script
