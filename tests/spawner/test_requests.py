"""Names, options, words: what goes in and out of a spawn, without a hub."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from spawner.conftest import environment

from remotegpu import errors
from remotegpu.types.queue import CounterOffer, Wait
from remotegpu.types.wire import NAME_PATTERN
from remotegpu_spawner import naming, options
from remotegpu_spawner.errors import failed, refusal
from remotegpu_spawner.form import _templates, quota_bars
from remotegpu_spawner.offers import offers_of
from remotegpu_spawner.options import InvalidOption, Options
from remotegpu_spawner.progress import progress_event

DEFAULTS = Options(image="base", gpus=1, cpus=2.0, memory_gib=4.0)


@given(st.text(max_size=80))
def test_environment_name_is_always_a_dns_label(server_name: str) -> None:
    name = naming.environment_name(server_name)
    assert len(name) <= 63
    assert re.fullmatch(NAME_PATTERN, name)


@given(st.lists(st.text(min_size=1, max_size=70), unique=True, min_size=2, max_size=6))
def test_different_servers_have_different_environments(names: list[str]) -> None:
    assert len({naming.environment_name(name) for name in [*names, ""]}) == len(names) + 1


def test_hub_server_names_of_today_stay_as_they_are() -> None:
    assert naming.environment_name("") == "default"
    assert naming.environment_name("second-one") == "second-one"
    assert naming.environment_name("default") != "default"


def test_template_without_the_servers_name_still_tells_servers_apart() -> None:
    fields = {"username": "ada", "prefix": "jupyter", "servername": "b"}
    assert naming.from_template("{prefix}-{username}", fields=fields, server_name="") == "jupyter-ada"
    other = naming.from_template("{prefix}-{username}", fields=fields, server_name="b")
    assert other.startswith("jupyter-ada-")
    with pytest.raises(KeyError):
        naming.from_template("{hub_name}-{username}", fields=fields, server_name="")


def test_options_left_out_get_the_sites_defaults() -> None:
    assert options.parse(None, DEFAULTS) == DEFAULTS
    assert options.parse({}, DEFAULTS) == DEFAULTS
    assert options.parse({"profile": "1x GPU / old", "gpus": "2"}, DEFAULTS).gpus == 2


@pytest.mark.parametrize(
    "sent",
    [
        {"gpus": 1.5}, {"gpus": True}, {"gpus": "one"}, {"gpus": -1}, {"gpus": None}, {"cpus": "nan"},
        {"cpus": float("inf")}, {"memory_gib": []}, {"image": 7}, {"image": "x" * 300},
        {"gpu_models": {"a": 1}}, {"gpu_models": [1]}, {"command": "sh"}, {"env": {}}, [1], "gpus",
    ],
)  # fmt: skip
def test_options_that_cannot_be_understood_are_refused(sent: Any) -> None:
    with pytest.raises(InvalidOption):
        options.parse(sent, DEFAULTS)


@pytest.mark.parametrize(
    ("part", "asked"),
    [
        ("whole", {"gpus": 2, "gpu_memory_bytes": None, "mig_profile": None}),
        ("share", {"gpus": 1, "gpu_memory_bytes": 20 * options.GIB, "mig_profile": None}),
        ("mig", {"gpus": 2, "gpu_memory_bytes": None, "mig_profile": "1g.10gb"}),
    ],
)
def test_form_asks_for_the_chosen_part_and_leaves_the_fields_of_the_others_out(
    part: str, asked: dict[str, Any]
) -> None:
    sent = {"gpu_part": [part], "gpus": ["2"], "gpu_memory_gib": ["20"], "mig_profile": ["1g.10gb"]}
    spec = options.parse(options.from_form(sent), DEFAULTS).spec()
    assert {name: spec[name] for name in asked} == asked


def test_form_with_no_model_ticked_means_any_and_with_several_any_of_these() -> None:
    fixed = replace(DEFAULTS, gpu_models=("A100-80GB",))
    assert options.parse(options.from_form({"gpu_models": [""]}), fixed).gpu_models == ()
    sent = {"gpu_models": ["", "A100-80GB", "H100-80GB"]}
    assert options.parse(options.from_form(sent), DEFAULTS).gpu_models == ("A100-80GB", "H100-80GB")


def test_start_takes_back_what_the_last_one_asked_for_and_this_one_does_not() -> None:
    start = DEFAULTS.start()
    assert (start["gpu_memory_bytes"], start["mig_profile"], start["gpu_models"]) == (0, "", ())
    assert "workspace" not in start


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "gpus": st.integers(1, 64),
            "gpu_models": st.just(["A100-80GB"]),
            "gpu_memory_bytes": st.integers(1, 80).map(lambda gib: gib * options.GIB),
            "cpus": st.floats(0.5, 64).map(lambda cpus: round(cpus * 2) / 2),
            "memory_bytes": st.integers(1, 512).map(lambda gib: gib * options.GIB),
        },
    )
)
def test_offer_taken_through_the_form_asks_for_exactly_its_fields(fields: dict[str, Any]) -> None:
    wait = Wait(
        rule="", position=1, ahead=[], estimate=None, estimate_note=None, place_kept=False,
        counter_offers=[CounterOffer(fields=fields, message="With less it starts now.")],
    )  # fmt: skip
    (offer,) = offers_of(wait)
    spec = options.parse(options.from_form(offer["fields"]), DEFAULTS).spec()
    expected = fields | ({"gpus": 1} if "gpu_memory_bytes" in fields else {})
    spec["gpu_models"] = list(spec["gpu_models"])
    assert spec | expected == spec


def test_offer_of_what_the_form_does_not_ask_for_is_left_out() -> None:
    wait = Wait(
        rule="", position=1, ahead=[], estimate=None, estimate_note=None, place_kept=False,
        counter_offers=[CounterOffer(fields={"host_labels": {}}, message="Without the label.")],
    )  # fmt: skip
    assert offers_of(wait) == []


def test_form_keeps_only_what_was_sent_and_drops_foreign_fields() -> None:
    sent = {"image": ["base"], "gpus": ["2"], "_xsrf": ["x"], "memory_gib": ["1.5"]}
    assert options.from_form(sent) == {"image": "base", "gpus": 2, "memory_gib": 1.5}


@pytest.mark.parametrize(
    ("error", "reason", "status"),
    [
        (errors.QuotaExceeded("You may hold 1 GPU."), "quota", 403),
        (errors.NoCapacity("Nothing is free."), "capacity", 503),
        (errors.ImageNotAllowed("Image x."), "image", 400),
        (errors.NameTaken("Taken."), "conflict", 409),
        (errors.ConnectionFailed("no route"), "unavailable", 503),
        (errors.TokenInvalid("bad"), "setup", 500),
        (errors.AccountSuspended("Suspended."), "suspended", 403),
    ],
)
def test_refusal_says_the_servers_words_with_a_reason_that_the_hub_does_not_swap(
    error: errors.RemoteGPUError, reason: str, status: int
) -> None:
    refused = refusal(error)
    assert (refused.reason, refused.status_code) == (reason, status)
    assert refused.reason not in ("error", "timeout")
    assert refused.jupyterhub_message
    assert refused.log_message == refused.jupyterhub_message


def test_refusal_names_the_wrong_fields() -> None:
    error = errors.Invalid("Wrong.", data={"errors": [{"field": "cpus", "message": "too many"}]})
    assert "cpus: too many" in refusal(error).jupyterhub_message


def test_failure_of_a_container_is_escaped_where_it_is_html() -> None:
    refused = failed(environment(status="failed", message="Exit 1.", log_tail="a\n<script>x</script>"))
    assert "<script>x</script>" in refused.jupyterhub_message
    assert "&lt;script&gt;" in refused.jupyterhub_html_message
    assert "<script>" not in refused.jupyterhub_html_message


def test_progress_never_goes_back_on_the_usual_way() -> None:
    steps = [
        {
            "status": "pending",
            "reason": "no_free_gpu",
            "queue_position": 2,
            "message": "All GPUs are in use.",
        },
        {"status": "starting", "reason": "placed"},
        {"status": "starting", "reason": "pulling", "progress_percent": 0, "message": "Pulling base."},
        {"status": "starting", "reason": "pulling", "progress_percent": 43, "message": "Pulling base."},
        {"status": "starting", "reason": "pulling", "progress_percent": 100, "message": "Pulling base."},
        {"status": "starting", "reason": "creating"},
        {"status": "starting", "reason": "waiting_for_server"},
        {"status": "running", "reason": "ready"},
    ]
    events = [progress_event(environment(**step)) for step in steps]
    percents = [event["progress"] for event in events]
    assert percents == sorted(percents)
    assert percents[-1] < 100
    assert events[0]["message"] == "Waiting at position 2: All GPUs are in use."
    assert events[3]["message"] == "Pulling base. 43 %"
    assert not any("html_message" in event for event in events)


def test_form_escapes_what_came_from_elsewhere() -> None:
    hostile = "<img src=x onerror=alert(1)>"
    rendered = _templates.get_template("options_form.html").render(
        images=[(type("Image", (), {"name": hostile, "reference": hostile, "id": hostile}), hostile)],
        models={f'"{hostile}': hostile},
        profiles={f'"{hostile}': hostile},
        share={"largest_gib": 40, "text": hostile},
        workspaces=[type("Workspace", (), {"id": hostile, "name": hostile, "kind": "team"})] * 2,
        lives_in=None,
        standing=hostile,
        capacity=type("Capacity", (), {"hosts_ready": 1, "hosts_total": 1, "pending_environments": 0}),
        chosen=Options(image=hostile, gpu_models=(hostile,), mig_profile=hostile, workspace=hostile),
        quota=quota_bars([]),
        base_url="/hub/remotegpu/",
        for_user=hostile,
        for_server=hostile,
    )
    assert "<img" not in rendered
