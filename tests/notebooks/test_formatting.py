from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from notebooks.standin import GIB, gpu, line, quota, usage

from remotegpu.types.hosts import GpuMetrics
from remotegpu.types.quotas import Quota
from remotegpu_notebooks import formatting, rendering
from remotegpu_notebooks.formatting import Reading

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)


def test_gpu_without_any_metric_says_not_reported_and_never_zero() -> None:
    card = formatting.gpu_card(gpu(now=GpuMetrics()))
    assert card["utilization"] == {"label": "Utilisation", "text": "not reported", "fraction": None}
    assert card["memory"]["fraction"] is None
    assert [fact["text"] for fact in card["facts"]] == ["not reported", "not reported"]


def test_gpu_before_its_first_heartbeat_says_not_reported() -> None:
    silent = gpu().model_copy(update={"now": None, "history": []})
    card = formatting.gpu_card(silent)
    assert card["utilization"]["text"] == "not reported"
    assert card["history"] == []


def test_gpu_that_reports_zero_shows_zero() -> None:
    card = formatting.gpu_card(gpu(now=GpuMetrics(utilization_percent=0.0, memory_used_bytes=0, power_w=0.0)))
    assert card["utilization"]["text"] == "0 %"
    assert card["memory"]["text"] == "0 of 80 GiB"
    assert card["facts"][1]["text"] == "0 W"


def test_history_with_a_gap_keeps_the_gap() -> None:
    whole = gpu()
    broken = whole.history[-1].model_copy(update={"utilization_percent": None})
    card = formatting.gpu_card(whole.model_copy(update={"history": [*whole.history[:-1], broken]}))
    assert card["history"][-1]["utilization"] is None
    assert card["history"][0]["age_s"] == pytest.approx(600, abs=1)


@pytest.mark.parametrize(
    ("used", "limit", "text", "tone", "fraction"),
    [
        (1, 2, "1 of 2", "ok", 0.5),
        (7.5, 8, "7.5 of 8", "near", 0.9375),
        (2, 2, "2 of 2", "full", 1.0),
        (3, 2, "3 of 2", "full", 1.0),
        (0, 0, "none allowed", "full", 1.0),
        (4, None, "4, unlimited", "ok", None),
    ],
)
def test_quota_line_by_use(
    used: float, limit: int | None, text: str, tone: str, fraction: float | None
) -> None:
    (meter,) = formatting.quota_meters(Quota(lines=[line("gpus", used, limit)]))
    assert (meter["text"], meter["tone"], meter["fraction"]) == (text, tone, fraction)


def test_limits_of_the_team_are_shown_only_where_they_bind() -> None:
    shown = [(meter["label"], meter["scope"]) for meter in formatting.quota_meters(quota())]
    assert ("GPUs", "whole team") in shown
    assert ("Environments", "whole team") not in shown


def test_storage_is_shown_as_a_size() -> None:
    (meter,) = formatting.quota_meters(Quota(lines=[line("storage_bytes", 9.5 * 2**30, 10 * 2**30)]))
    assert (meter["label"], meter["text"], meter["tone"]) == ("Storage", "9.5 of 10 GiB", "near")


def test_resource_of_a_newer_server_is_left_out() -> None:
    assert formatting.quota_meters(Quota(lines=[line("unknown", 1, 2)])) == []


def test_host_clock_behind_the_server_gives_no_negative_uptime() -> None:
    reading = Reading(usage=usage(gpu()), age_s=0.0)
    shown = formatting.view(reading, now=datetime.now(tz=UTC) - timedelta(days=1))
    assert shown["uptime_s"] == 0.0


@pytest.mark.parametrize(
    ("size_bytes", "text"), [(0, "0 GiB"), (GIB // 2, "512 MiB"), (GIB, "1 GiB"), (int(1.5 * GIB), "1.5 GiB")]
)
def test_size_reads_in_gib(size_bytes: int, text: str) -> None:
    assert formatting.size(size_bytes) == text


def test_memory_below_a_gib_keeps_its_unit() -> None:
    assert formatting.size_of(GIB // 2, 80 * GIB) == "512 MiB of 80 GiB"


@pytest.mark.parametrize(
    ("seconds", "text"), [(5, "5 s"), (725, "12 min"), (3 * 3600 + 60, "3 h 1 min"), (200_000, "2 d 7 h")]
)
def test_duration_is_coarse(seconds: float, text: str) -> None:
    assert formatting.duration(seconds) == text


def test_hostile_names_are_escaped_in_html_and_cannot_steer_a_terminal() -> None:
    hostile = gpu(model="<script>alert(1)</script>\x1b[2J")
    shown = formatting.view(Reading(usage=usage(hostile), error="<b>\x1b]0;x\x07", age_s=1.0), now=NOW)
    html, text = rendering.status_html(shown), rendering.status_text(shown)
    assert "<script" not in html
    assert "<b>]" not in html
    assert "&lt;script&gt;" in html
    assert "\x1b" not in text + html
    assert "\x07" not in text + html


def test_environment_without_gpus_says_so_in_every_form() -> None:
    shown = formatting.view(Reading(usage=usage(), quota=quota(), age_s=0.0), now=NOW)
    assert shown["empty"] == "This environment has no GPU."
    assert "no GPU" in rendering.status_text(shown)
    assert "no GPU" in rendering.status_html(shown)
    assert not shown["simulated"]


def test_simulated_gpus_are_marked_in_every_form() -> None:
    shown = formatting.view(Reading(usage=usage(gpu()), age_s=0.0), now=NOW)
    assert shown["simulated"]
    assert "simulated" in rendering.status_text(shown)
    assert "simulated" in rendering.status_html(shown)


def test_table_with_two_rows_lines_up() -> None:
    text = rendering.table_text(["Model", "Free"], [["A100-80GB", "1"], ["T4", "12"]])
    assert text.splitlines() == ["Model      Free", "A100-80GB  1", "T4         12"]
