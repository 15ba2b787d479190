"""Waiting for an environment, and what a person sees meanwhile."""

from __future__ import annotations

import io
import sys
from types import SimpleNamespace

import pytest

import remotegpu
from remotegpu import _progress
from remotegpu.types.environments import Environment

from .samples import environment, page
from .scripted_server import ScriptedServer, answers, refuses, says


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("remotegpu._sync.wait.FIRST_PAUSE_S", 0.0)


def test_wait_follows_until_it_runs_and_reports_every_look(
    client: remotegpu.Client, server: ScriptedServer
) -> None:
    server.play(
        answers(environment(status="pending", reason="no_free_gpu", queue_position=2)),
        answers(environment(status="starting", reason="pulling", progress_percent=43)),
        answers(environment()),
    )
    seen: list[Environment] = []
    ready = client.environments.wait_ready("env1", timeout_s=30, progress=seen.append)
    assert ready.status == "running"
    assert [one.status for one in seen] == ["pending", "starting", "running"]


def test_wait_survives_a_server_that_restarts(client: remotegpu.Client, server: ScriptedServer) -> None:
    server.play(*[says(502, "")] * 4, answers(environment()))  # one more than the client itself repeats
    assert client.environments.wait_ready("env1", timeout_s=30, progress=False).status == "running"


def test_failed_start_raises_with_reason_and_last_output(
    client: remotegpu.Client, server: ScriptedServer
) -> None:
    server.play(
        answers(
            environment(status="failed", reason="exited", message="It ended.", log_tail="Traceback\nboom\n")
        )
    )
    with pytest.raises(remotegpu.WaitFailed, match="It ended") as caught:
        client.environments.wait_ready("env1", timeout_s=30, progress=False)
    assert (caught.value.reason, caught.value.log_tail) == ("exited", "Traceback\nboom\n")
    assert str(caught.value).endswith("boom")


def test_wait_that_takes_too_long_says_what_was_seen_last(
    client: remotegpu.Client, server: ScriptedServer
) -> None:
    server.play(answers(environment(status="pending", message="Waits for one A100.")))
    with pytest.raises(remotegpu.WaitTimeout, match=r"last seen: work: pending Waits for one A100\."):
        client.environments.wait_ready("env1", timeout_s=0, progress=False)


def test_wait_for_what_is_gone_ends_at_once(client: remotegpu.Client, server: ScriptedServer) -> None:
    server.play(refuses(404, "not_found"))
    with pytest.raises(remotegpu.NotFound):
        client.environments.wait_ready("env1", timeout_s=30, progress=False)


@pytest.mark.parametrize("end", ["stopped", "failed", "deleted"])
def test_wait_stopped_ends_when_it_runs_no_more(
    client: remotegpu.Client, server: ScriptedServer, end: str
) -> None:
    server.play(answers(environment(status="stopping")), answers(environment(status=end)))
    assert client.environments.wait_stopped("env1", timeout_s=30).status == end


def test_pauses_of_a_wait_grow_to_two_seconds(
    client: remotegpu.Client, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("remotegpu._sync.wait.FIRST_PAUSE_S", 0.25)
    monkeypatch.setattr(
        "remotegpu._sync.wait.time", SimpleNamespace(monotonic=lambda: 0.0, sleep=pauses.append)
    )
    server.play(*[answers(environment(status="starting"))] * 20, answers(environment()))
    client.environments.wait_ready("env1", timeout_s=600, progress=False)
    assert pauses[0] == 0.25
    assert pauses == sorted(pauses)
    assert pauses[-1] == 2.0


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_in_a_terminal_is_one_line_without_control_characters(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    evil = "pull\x1b]0;pwned\x07ing\nnext"
    made = Environment.model_validate(environment(status="starting", progress_percent=50, message=evil))
    with _progress.display(True) as show:
        show(made)
    written = sys.stderr.getvalue()  # type: ignore[attr-defined]
    assert "[##########..........] 50 %" in written
    assert written.count("\n") == 1
    assert written.replace("\r\x1b[K", "").rstrip("\n").isprintable()


def test_progress_in_a_pipe_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    with _progress.display(True) as show:
        show(Environment.model_validate(environment()))
    assert capsys.readouterr() == ("", "")


def test_progress_in_a_notebook_updates_one_display(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[tuple[str, dict[str, str]]] = []

    class Handle:
        def update(self, bundle: dict[str, str], *, raw: bool) -> None:
            shown.append(("update", bundle))

    def display(bundle: dict[str, str], *, raw: bool, display_id: bool) -> Handle:
        shown.append(("new", bundle))
        return Handle()

    shell = SimpleNamespace(kernel=object())
    notebook = SimpleNamespace(get_ipython=lambda: shell, display=SimpleNamespace(display=display))
    monkeypatch.setitem(sys.modules, "IPython", notebook)
    with _progress.display(True) as show:
        show(Environment.model_validate(environment(message="<b>hi</b>")))
        show(Environment.model_validate(environment()))
    assert [kind for kind, _ in shown] == ["new", "update"]
    assert "&lt;b&gt;" in shown[0][1]["text/html"]


def test_list_in_a_notebook_is_an_escaped_table(client: remotegpu.Client, server: ScriptedServer) -> None:
    server.play(answers(page(environment(name="<script>"), next_cursor="2")), answers(page()))
    table = client.environments.list()._repr_html_()
    assert "&lt;script&gt;" in table
    assert "<script>" not in table
    assert "More follow" in table
    assert "none" in client.environments.list()._repr_html_()
