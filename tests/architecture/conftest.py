"""The SDK as somebody else gets it."""

from __future__ import annotations

from pathlib import Path

import pytest
import sdk_wheel


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sdk_wheel.built(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python with the wheel and nothing else."""
    return sdk_wheel.installed(wheel, tmp_path_factory.mktemp("sdk"))
