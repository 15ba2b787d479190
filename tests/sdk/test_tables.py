"""What a person sees of answers: reprs, tables in a notebook, DataFrames."""

from __future__ import annotations

import builtins
import inspect
import typing
from datetime import datetime

import pandas
import pytest

import remotegpu
from remotegpu import _frames, _tables
from remotegpu._sync.pages import Page
from remotegpu.types.environments import Environment, EnvironmentUsage
from remotegpu.types.hosts import Capacity, Gpu
from remotegpu.types.identity import TokenCreated
from remotegpu.types.quotas import Quota
from remotegpu.types.wire import Wire

from .samples import AT, TOKEN, USER, environment, page
from .scripted_server import ScriptedServer, answers
from .test_surface import resources


def listed_types() -> dict[str, type[Wire]]:
    """The wire types of all lists, by name."""
    found = {}
    for resource in resources(remotegpu.Client).values():
        for _, method in inspect.getmembers(resource, inspect.isfunction):
            answer = typing.get_type_hints(method).get("return")
            if typing.get_origin(answer) is Page:
                (kind,) = typing.get_args(answer)
                found[kind.__name__] = kind
    return found


def test_every_listed_type_has_columns_and_these_are_its_fields() -> None:
    listed = listed_types()
    assert {"Environment", "Host", "Event"} <= listed.keys()
    for name, kind in listed.items():
        assert set(_tables.columns(name)) <= kind.model_fields.keys(), name


def test_repr_is_one_short_line_of_what_matters() -> None:
    made = Environment.model_validate(environment(message="long\n" * 100, gpu_models=[]))
    assert repr(made).startswith("Environment(name='work', status='running', image='base', gpus=0,")
    assert "\n" not in repr(made)
    assert len(repr(made)) < 300
    assert str(made) == repr(made)


def test_secret_stands_in_no_repr_and_no_notebook() -> None:
    token = TokenCreated.model_validate({"token": TOKEN, "secret": "rgu_s3cret", "user": USER})
    for shown in (repr(token), str(token), f"{token}", token._repr_html_()):
        assert "rgu_s3cret" not in shown
    assert ".secret" in token._repr_html_()
    assert token.secret == "rgu_s3cret"


def test_one_item_in_a_notebook_is_an_escaped_table_without_empty_rows() -> None:
    evil = "<script>alert(1)</script>"
    shown = Environment.model_validate(environment(message=evil, log_tail=f"{evil}\nmore"))._repr_html_()
    assert evil not in shown
    assert "<pre>&lt;script&gt;" in shown
    assert "exit code" not in shown


def test_answer_that_is_a_table_is_shown_as_one() -> None:
    line = {
        "subject": "user", "subject_id": "u1", "subject_name": "ada",
        "resource": "gpus", "limit": None, "used": 1,
        "available": None,
        "window_s": None,
        "policy": None,
        "raised_until": None,
    }  # fmt: skip
    quota = Quota.model_validate({"lines": [line]})
    assert repr(quota) == "Quota(lines=<1 x QuotaLine>)"
    assert "<td>unlimited</td>" in quota._repr_html_()
    assert list(quota.to_pandas()["resource"]) == ["gpus"]
    assert pandas.isna(quota.to_pandas()["limit"][0])


GPU = {
    "id": "g1", "host_id": "h1", "host_name": "one", "uuid": "GPU-1", "index": 0, "model": "A100-80GB",
    "product": "NVIDIA A100", "memory_total_bytes": 80 * 2**30, "memory_free_bytes": 80 * 2**30, "shares": 0,
    "mig_profile": None, "parent_uuid": None, "mig_enabled": False, "numa_node": 0, "nvlink_group": None,
    "simulated": False, "health": "healthy", "health_since": AT,
    "health_reason": None, "free": True, "allocation_id": None, "environment_id": None, "task_id": None,
    "holder": None,
    "metrics": {"utilization_percent": 50.0}, "sampled_at": AT,
}  # fmt: skip


def test_frame_has_flat_columns_with_units_typed_by_the_field() -> None:
    frame = _frames.frame(Gpu, [Gpu.model_validate(GPU), Gpu.model_validate({**GPU, "metrics": None})])
    assert frame["metrics_utilization_percent"].isna().tolist() == [False, True]
    assert frame["metrics_power_w"].isna().all(), "absent is never 0"
    assert str(frame["memory_total_bytes"].dtype) == "Int64"
    assert str(frame["free"].dtype) == "boolean"
    assert frame["health"].tolist() == ["healthy"] * 2
    assert frame["sampled_at"].dtype == "datetime64[us, UTC]"
    assert frame["sampled_at"][0] == datetime.fromisoformat(AT)


def test_frame_of_nothing_has_the_same_columns() -> None:
    full = _frames.frame(Environment, [Environment.model_validate(environment())])
    empty = _frames.frame(Environment, [])
    assert empty.dtypes.equals(full.dtypes)
    assert len(empty) == 0


@pytest.mark.parametrize("name", sorted(listed_types()))
def test_every_list_becomes_a_frame(name: str) -> None:
    frame = _frames.frame(listed_types()[name], [])
    assert len(frame.columns)
    times = {column for column in frame.columns if column == "at" or column.endswith("_at")}
    assert {str(frame[column].dtype) for column in times} <= {"datetime64[us, UTC]"}


def test_list_becomes_a_frame_with_all_pages(client: remotegpu.Client, server: ScriptedServer) -> None:
    server.play(answers(page(environment(id="a"), next_cursor="2")), answers(page(environment(id="b"))))
    assert list(client.environments.list().to_pandas()["id"]) == ["a", "b"]


async def test_async_list_becomes_a_frame(server: ScriptedServer) -> None:
    server.play(answers(page(environment(id="a"), next_cursor="2")), answers(page(environment(id="b"))))
    async with remotegpu.AsyncClient(server.url, "") as client:
        frame = await (await client.environments.list()).to_pandas()
    assert list(frame["id"]) == ["a", "b"]


def test_usage_becomes_a_time_series() -> None:
    sample = {"at": AT, "utilization_percent": 40.0, "memory_used_bytes": None}
    gpu = {
        "uuid": "GPU-1", "model": "A100-80GB", "simulated": True, "memory_total_bytes": 2**36, "now": None,
        "workload_memory_bytes": None, "history": [sample, sample],
    }  # fmt: skip
    usage = EnvironmentUsage.model_validate(
        {
            "environment_id": "env1", "sampled_at": AT,
            "gpus": [gpu, {**gpu, "uuid": "GPU-2", "history": []}],
            "cpu_percent": None, "memory_used_bytes": None, "memory_limit_bytes": 2**31, "started_at": None,
        }
    )  # fmt: skip
    frame = usage.to_pandas()
    assert list(frame["gpu_uuid"]) == ["GPU-1", "GPU-1"]
    assert frame["at"].dtype == "datetime64[us, UTC]"
    assert usage.model_copy(update={"gpus": []}).to_pandas().empty


def test_capacity_becomes_a_frame_of_models() -> None:
    model = {
        "model": "A100-80GB", "memory_total_bytes": 2**36, "simulated": False, "total": 8, "free": 3,
        "largest_free_on_one_host": 2, "largest_free_share_bytes": 2**36,
    }  # fmt: skip
    capacity = Capacity.model_construct(gpu_models=[dict_to(Capacity, model)])
    assert list(capacity.to_pandas()["free"]) == [3]


def dict_to(table: type[Capacity], fields: dict[str, object]) -> Wire:
    return _frames.row_type(table, table.ROWS).model_validate(fields)


def test_without_pandas_the_error_says_how_to_get_it(
    client: remotegpu.Client, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without(name: str, *rest: object) -> object:
        if name == "pandas":
            raise ModuleNotFoundError("No module named 'pandas'", name="pandas")
        return real(name, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", without)
    server.play(answers(page(environment(), next_cursor="2")))
    found = client.environments.list()
    with pytest.raises(remotegpu.MissingExtra, match=r"pip install 'remotegpu\[pandas\]'"):
        found.to_pandas()
    assert len(server.seen) == 1, "nothing is fetched in vain"
