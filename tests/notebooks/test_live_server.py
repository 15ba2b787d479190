"""The magics against the real server: what the stand-in cannot prove."""

from __future__ import annotations

from typing import Any

import pytest

from remotegpu_notebooks import magics


def test_gpu_on_the_real_server_shows_quota_and_capacity(
    live_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REMOTEGPU_URL", live_server.url)
    monkeypatch.setenv("REMOTEGPU_TOKEN", live_server.admin_headers["Authorization"].removeprefix("Bearer "))
    monkeypatch.delenv("REMOTEGPU_ENVIRONMENT_ID", raising=False)
    assert "Quota GPUs (yours)" in repr(magics.gpu("quota"))
    assert repr(magics.gpu("list")) == "No GPUs are known here yet."
    assert "does not run in a RemoteGPU environment" in repr(magics.gpu(""))
