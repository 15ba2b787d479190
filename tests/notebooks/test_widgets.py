"""The real anywidget class against a server over HTTP."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from notebooks.standin import TOKEN, StandIn, gpu, standin, usage

from remotegpu_notebooks.feed import Feed
from remotegpu_notebooks.source import ServerSource
from remotegpu_notebooks.widgets import Dashboard

SOON_S = 10


class Shown:
    """Waits for a view that a predicate accepts."""

    def __init__(self, card: Dashboard) -> None:
        self._changed = threading.Condition()
        self._card = card
        card.observe(self._notify, "view")

    def _notify(self, _change: object) -> None:
        with self._changed:
            self._changed.notify_all()

    def until(self, state: str) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self._card.view["state"] == state, SOON_S), self._card.view


@contextmanager
def dashboard() -> Iterator[tuple[Dashboard, Feed, Shown]]:
    source = ServerSource()
    feed = Feed(source)
    card = Dashboard(feed)
    try:
        yield card, feed, Shown(card)
    finally:
        card.close()
        feed.stop()
        assert feed.idle.wait(SOON_S)
        source.close()


def test_card_with_a_server_shows_gpu_quota_and_uptime(server: StandIn) -> None:
    with dashboard() as (card, _feed, shown):
        shown.until("live")
        view = card.view
        assert view["gpus"][0]["model"] == "A100-80GB"
        assert view["quota"][0]["text"] == "1 of 2"
        assert view["uptime_s"] == pytest.approx(725, abs=30)
        assert view["simulated"]


def test_card_state_never_holds_the_token_or_the_address(server: StandIn) -> None:
    with dashboard() as (card, _feed, shown):
        shown.until("live")
        sent = json.dumps({key: card.get_state()[key] for key in ("view", "_esm", "_css")})
        bundle = json.dumps(card._repr_mimebundle_(), default=str)
        assert TOKEN not in sent + bundle
        assert server.url not in sent + bundle
    assert {token for _, token in server.requests} == {f"Bearer {TOKEN}"}


def test_card_on_a_cpu_environment_says_no_gpu(server: StandIn) -> None:
    server.usage = usage()
    with dashboard() as (card, _feed, shown):
        shown.until("live")
        assert card.view["gpus"] == []
        assert card.view["empty"] == "This environment has no GPU."


def test_card_with_eight_gpus_shows_all_in_order(server: StandIn) -> None:
    server.usage = usage(*(gpu(index) for index in range(8)))
    with dashboard() as (card, _feed, shown):
        shown.until("live")
        assert [shown_gpu["uuid"][:12] for shown_gpu in card.view["gpus"]] == [
            f"GPU-{i:08d}" for i in range(8)
        ]


def test_card_keeps_old_values_with_their_age_while_the_server_fails_and_recovers(server: StandIn) -> None:
    with dashboard() as (card, feed, shown):
        shown.until("live")
        server.broken = (503, {"error": "unavailable", "detail": "Away.", "hint": None, "request_id": "r"})
        feed.wake()
        shown.until("stale")
        assert card.view["gpus"]
        assert card.view["age_s"] > 0
        assert card.view["notice"].startswith("Away.")
        server.broken = None
        feed.wake()
        shown.until("live")
        assert card.view["notice"] is None


def test_card_without_any_server_says_so_and_raises_nothing(
    server: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    with standin() as gone:
        pass
    monkeypatch.setenv("REMOTEGPU_URL", gone.url)
    with dashboard() as (card, _feed, shown):
        shown.until("stale")
        assert card.view["notice"] == "The RemoteGPU server cannot be reached."
        assert card.view["age_s"] is None
        assert "cannot be reached" in repr(card)


def test_card_with_a_revoked_token_says_so(server: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REMOTEGPU_TOKEN", "rgw_old_" + "x" * 43)
    with dashboard() as (card, _feed, shown):
        shown.until("stale")
        assert card.view["notice"] == "The token of this environment is not valid any more."


def test_card_outside_of_any_environment_says_so(server: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("REMOTEGPU_URL", "REMOTEGPU_TOKEN", "REMOTEGPU_ENVIRONMENT_ID"):
        monkeypatch.delenv(name)
    with dashboard() as (card, _feed, shown):
        shown.until("stale")
        assert card.view["empty"] == "This notebook does not run in a RemoteGPU environment."


def test_card_whose_frontend_reports_gone_stops_the_polling_and_a_ping_resumes_it(server: StandIn) -> None:
    with dashboard() as (card, feed, shown):
        shown.until("live")
        card._handle_custom_msg({"type": "gone"}, [])
        assert feed.idle.wait(SOON_S)
        card._handle_custom_msg({"type": "ping"}, [])
        assert not feed.idle.is_set()


def test_closed_card_stops_the_polling(server: StandIn) -> None:
    with dashboard() as (card, feed, shown):
        shown.until("live")
        card.close()
        assert feed.idle.wait(SOON_S)


@pytest.mark.parametrize("message", [None, "ping", [], {}, {"type": "other"}, {"type": ["gone"]}])
def test_message_that_is_not_ours_changes_nothing(server: StandIn, message: object) -> None:
    with dashboard() as (card, feed, shown):
        shown.until("live")
        card._handle_custom_msg(message, [])
        assert not feed.idle.is_set()


def test_mimebundle_has_widget_html_and_text(server: StandIn) -> None:
    with dashboard() as (card, _feed, shown):
        shown.until("live")
        data = card._repr_mimebundle_()
        data = data[0] if isinstance(data, tuple) else data
        assert data["application/vnd.jupyter.widget-view+json"]["model_id"] == card.model_id
        assert "A100-80GB" in data["text/html"]
        assert "A100-80GB" in data["text/plain"]


def test_import_of_the_package_loads_neither_widgets_nor_httpx() -> None:
    code = (
        "import sys, remotegpu_notebooks;"
        "slow = {'anywidget', 'ipywidgets', 'httpx', 'pydantic', 'IPython'};"
        "print(sorted(slow & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
