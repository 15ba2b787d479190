"""`%gpu` through IPython's own shell."""

from __future__ import annotations

import atexit
from collections.abc import Iterator

import pytest
from IPython.core.interactiveshell import InteractiveShell
from notebooks.standin import StandIn, gpu, standin, usage


@pytest.fixture
def shell(server: StandIn) -> Iterator[InteractiveShell]:
    shell = InteractiveShell()
    shell.history_manager.enabled = False
    shell.run_line_magic("load_ext", "remotegpu_notebooks")
    yield shell
    shell.run_line_magic("unload_ext", "remotegpu_notebooks")
    assert "gpu" not in shell.magics_manager.magics["line"]
    atexit.unregister(shell.atexit_operations)
    shell.atexit_operations()


@pytest.mark.parametrize("line", ["", "status", " STATUS "])
def test_gpu_shows_gpus_and_quota(shell: InteractiveShell, line: str) -> None:
    answer = shell.run_line_magic("gpu", line)
    for form in (repr(answer), answer._repr_html_()):
        assert "A100-80GB" in form
        assert "simulated" in form
        assert "1 of 2" in form


def test_gpu_quota_shows_limits_alone(shell: InteractiveShell) -> None:
    text = repr(shell.run_line_magic("gpu", "quota"))
    assert "unlimited" in text
    assert "A100" not in text


def test_gpu_list_shows_capacity(shell: InteractiveShell) -> None:
    assert "5 of 8" in repr(shell.run_line_magic("gpu", "list"))


def test_gpu_with_an_unknown_word_shows_the_usage_escaped(shell: InteractiveShell) -> None:
    answer = shell.run_line_magic("gpu", "<script>")
    assert "%gpu quota" in repr(answer)
    assert "<script>" not in answer._repr_html_()


def test_gpu_with_a_hostile_name_is_escaped(shell: InteractiveShell, server: StandIn) -> None:
    server.usage = usage(gpu(model="<img src=x onerror=alert(1)>"))
    assert "<img" not in shell.run_line_magic("gpu", "")._repr_html_()


@pytest.mark.parametrize("line", ["", "quota", "list"])
def test_gpu_without_a_server_answers_a_sentence(
    shell: InteractiveShell, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    with standin() as gone:
        pass
    monkeypatch.setenv("REMOTEGPU_URL", gone.url)
    assert "cannot be reached" in repr(shell.run_line_magic("gpu", line))
