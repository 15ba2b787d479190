"""Placement is pure: inventories in, choices or refusals with numbers out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remotegpu.types.environments import Reason
from remotegpu_server import placement
from remotegpu_server.placement import Choice, Fleet, GpuInventory, Home, HostInventory, Refusal, Request

GIB = 2**30


def choose(
    request: Request, hosts: Sequence[HostInventory], *, ahead: Sequence[Request] = ()
) -> Choice | Refusal:
    return placement.choose(request, Fleet(hosts), ahead=ahead)


def gpu(
    name: str, index: int = 0, *, model: str = "A100", free: bool = True, **changes: object
) -> GpuInventory:
    made = GpuInventory(name, model, index, 80 * GIB, 80 * GIB if free else 0)
    return replace(made, **changes)  # type: ignore[arg-type]


def host(
    name: str, *, free: int = 0, total: int | None = None, model: str = "A100", **changes: object
) -> HostInventory:
    made = HostInventory(
        id=name,
        name=name,
        ready=True,
        not_ready_reason=None,
        runtime="docker",
        cpus=16,
        memory_bytes=64 * GIB,
        cpus_free=16,
        memory_free_bytes=64 * GIB,
        gpus=tuple(
            gpu(f"{name}-{index}", index, model=model, free=index < free)
            for index in range(free if total is None else total)
        ),
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def want(gpus: int = 1, **changes: object) -> Request:
    made = Request(gpus=gpus, cpus=1, memory_bytes=GIB, runtime="docker")
    return replace(made, **changes)  # type: ignore[arg-type]


def chosen(found: Choice | Refusal) -> str:
    assert isinstance(found, Choice), found
    return found.host.id


def refused(found: Choice | Refusal) -> Refusal:
    assert isinstance(found, Refusal), found
    return found


def test_choice_leaves_the_fewest_gpus_over() -> None:
    assert chosen(choose(want(1), [host("a", free=8), host("b", free=1), host("c", free=2)])) == "b"


def test_choice_without_gpus_stays_off_gpu_hosts() -> None:
    assert chosen(choose(want(0), [host("a", free=8), host("b")])) == "b"


def test_choice_prefers_the_home_over_fragmentation_and_says_when_it_cannot() -> None:
    home = (Home("a", None),)
    assert chosen(choose(want(1, homes=home), [host("a", free=8), host("b", free=1)])) == "a"
    elsewhere = choose(want(1, homes=home), [host("a", total=8), host("b", free=1)])
    assert chosen(elsewhere) == "b"
    assert isinstance(elsewhere, Choice)
    assert elsewhere.home_note is not None
    assert "a" in elsewhere.home_note


def test_choice_reaches_a_shared_home_from_every_host_that_mounts_it() -> None:
    found = choose(
        want(1, homes=(Home(None, "nfs"),)), [host("a", free=1), host("b", free=8, shared_home="nfs")]
    )
    assert chosen(found) == "b"
    assert isinstance(found, Choice)
    assert found.home_note is None


def test_choice_prefers_the_image_then_spreads() -> None:
    there = host("b", free=2, images=frozenset({"x"}))
    assert chosen(choose(want(1, image_reference="x"), [host("a", free=2), there])) == "b"
    assert chosen(choose(want(1), [host("a", free=2, live_placements=3), host("b", free=2)])) == "b"


def test_choice_takes_gpus_of_one_model_only() -> None:
    mixed = replace(
        host("a"),
        gpus=(gpu("1"), gpu("2", 1, model="H100")),
    )
    refusal = refused(choose(want(2), [mixed]))
    assert not refusal.satisfiable
    assert "the largest host has 1" in refusal.detail


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        (want(1, gpu_models=("H900",)), "Models here: A100"),
        (want(3), "3 GPUs on one host wanted; the largest host has 2"),
        (want(1, cpus=99), "at most 16 CPUs"),
        (want(1, memory_bytes=999 * GIB), "at most 16 CPUs and 64 GiB"),
        (want(1, runtime="process"), "No host runs process images"),
    ],
)
def test_refusal_of_what_never_fits_names_the_largest(request_: Request, says: str) -> None:
    refusal = refused(choose(request_, [host("a", free=2), host("b", free=1)]))
    assert not refusal.satisfiable
    assert says in refusal.detail


@pytest.mark.parametrize(
    ("hosts", "reason", "says"),
    [
        ([], Reason.NO_READY_HOST, "No host has joined"),
        ([host("a", free=2, ready=False, not_ready_reason="cordoned")], Reason.NO_READY_HOST, "a: cordoned"),
        ([host("a", free=1, total=2)], Reason.NO_FREE_GPU, "1 free in all, at most 1 on one host"),
        ([host("a", free=2, cpus_free=0.5)], Reason.NO_FREE_CPU, "at most 0.5 are free"),
        ([host("a", free=2, memory_free_bytes=GIB // 2)], Reason.NO_FREE_MEMORY, "0.5 GiB"),
    ],
)
def test_refusal_of_what_waits_names_the_binding_rule(
    hosts: list[HostInventory], reason: Reason, says: str
) -> None:
    refusal = refused(choose(want(2), hosts))
    assert refusal.satisfiable
    assert refusal.reason is reason
    assert says in refusal.detail


def test_request_ahead_is_not_overtaken_on_what_it_could_use() -> None:
    hosts = [host("a", free=1, total=2), host("b", free=1, model="T4")]
    ahead = [want(2, gpu_models=("A100",))]
    assert chosen(choose(want(1), hosts, ahead=ahead)) == "b", "another model is free for all"
    assert chosen(choose(want(0), hosts, ahead=ahead)) in ("a", "b")
    refusal = refused(choose(want(1, gpu_models=("A100",)), hosts, ahead=ahead))
    assert refusal.satisfiable
    assert "1 request ahead waits" in refusal.detail
    assert chosen(choose(want(1), hosts, ahead=[want(1, runtime="process")])) in ("a", "b")


@given(
    free=st.lists(st.integers(0, 8), min_size=1, max_size=6),
    gpus=st.integers(0, 8),
    cpus=st.floats(0.1, 32),
    ready=st.lists(st.booleans(), min_size=6, max_size=6),
)
def test_choice_always_satisfies_the_request_and_a_fit_is_always_found(
    free: list[int], gpus: int, cpus: float, ready: list[bool]
) -> None:
    hosts = [host(f"h{index}", free=count, total=8, ready=ready[index]) for index, count in enumerate(free)]
    fits = any(
        one.ready and sum(gpu.free for gpu in one.gpus) >= gpus and one.cpus_free >= cpus for one in hosts
    )
    found = choose(want(gpus, cpus=cpus), hosts)
    assert isinstance(found, Choice) == fits
    if isinstance(found, Choice):
        assert found.host.ready
        assert len({gpu.id for gpu in found.gpus}) == gpus
        assert {gpu.id for gpu in found.gpus} <= {gpu.id for gpu in found.host.gpus if gpu.free}


def changes(request: Request, hosts: Sequence[HostInventory]) -> list[dict[str, object]]:
    return [one.fields for one in placement.smallest_changes(request, Fleet(hosts))]


def test_smallest_changes_are_none_where_the_request_starts() -> None:
    assert changes(want(1), [host("a", free=1)]) == []


@pytest.mark.parametrize(
    ("request_", "hosts", "fields"),
    [
        (want(4), [host("a", free=3, total=4), host("b", free=1, total=4)], {"gpus": 3}),
        (want(1, gpu_models=("H100",)), [host("a", free=1)], {"gpu_models": ["A100"]}),
        (want(1, min_gpu_memory_bytes=90 * GIB), [host("a", free=1)], {"min_gpu_memory_bytes": 80 * GIB}),
        (want(1, max_gpu_memory_bytes=40 * GIB), [host("a", free=1)], {"max_gpu_memory_bytes": 80 * GIB}),
        (want(1, cpus=16), [host("a", free=1, cpus_free=7.9)], {"cpus": 7.5}),
        (want(1, memory_bytes=64 * GIB), [host("a", free=1, memory_free_bytes=9 * GIB)],
         {"memory_bytes": 9 * GIB}),
        (want(1, host_labels=(("zone", "a"),)), [host("a", free=1)], {"host_labels": {}}),
        (want(1), [host("a", gpus=(gpu("x", memory_free_bytes=20 * GIB),))], {"gpu_memory_bytes": 20 * GIB}),
        (want(1, gpu_memory_bytes=40 * GIB), [host("a", gpus=(gpu("x", memory_free_bytes=20 * GIB),))],
         {"gpu_memory_bytes": 20 * GIB}),
        (want(1), [host("a", gpus=(gpu("x", mig_profile="1g.10gb"),))], {"mig_profile": "1g.10gb"}),
        (want(4, cpus=12), [host("a", free=2, total=4, cpus_free=8)], {"gpus": 2, "cpus": 8.0}),
    ],
)  # fmt: skip
def test_smallest_change_names_the_largest_amount_that_starts_now(
    request_: Request, hosts: list[HostInventory], fields: dict[str, object]
) -> None:
    (found, *_) = placement.smallest_changes(request_, Fleet(hosts))
    assert found.fields == fields
    assert "starts now on a" in found.message
    assert isinstance(choose(found.request, hosts), Choice)


def test_smallest_changes_come_smallest_first_and_at_most_three() -> None:
    hosts = [
        host("a", free=3, total=4, labels={"zone": "b"}),
        host("b", free=4, model="H100", labels={"zone": "a"}),
        host("c", free=4, total=4, cpus_free=1, labels={"zone": "a"}),
        host("d", free=4, total=4),
    ]
    request = want(4, cpus=8, gpu_models=("A100",), host_labels=(("zone", "a"),))
    found = placement.smallest_changes(request, Fleet(hosts))
    assert [list(one.fields) for one in found] == [["gpu_models"], ["host_labels"], ["cpus"]]
    assert found == sorted(found, key=lambda one: one.size)


def test_share_goes_where_the_parts_left_are_of_use() -> None:
    half = gpu("half", memory_free_bytes=40 * GIB)
    hosts = [host("a", gpus=(half,)), host("b", free=1)]
    found = choose(want(1, gpu_memory_bytes=40 * GIB), hosts)
    assert isinstance(found, Choice)
    assert [one.id for one in found.gpus] == ["half"]
    assert found.hold.gpus == {"half": 40 * GIB}
    assert chosen(choose(want(1), hosts)) == "b", "a GPU of which a part is held is not free"


def test_gpus_of_one_nvlink_group_are_preferred_and_a_single_one_breaks_the_smallest() -> None:
    linked = tuple(gpu(f"g{index}", index, nvlink_group=0 if index in (1, 3) else None) for index in range(4))
    pair = choose(want(2), [host("a", gpus=linked)])
    assert isinstance(pair, Choice)
    assert {one.id for one in pair.gpus} == {"g1", "g3"}
    single = choose(want(1), [host("a", gpus=linked)])
    assert isinstance(single, Choice)
    assert single.gpus[0].id in ("g0", "g2")


def test_host_whose_gpus_are_near_each_other_is_preferred() -> None:
    far = tuple(gpu(f"a{index}", index, numa_node=index % 2) for index in range(2))
    near = tuple(gpu(f"b{index}", index, numa_node=0) for index in range(2))
    assert chosen(choose(want(2), [host("a", gpus=far), host("b", gpus=near)])) == "b"


def test_dedicated_host_serves_those_it_is_lent_to() -> None:
    lent = host("a", free=1, dedicated_customer_id="cus-1")
    assert chosen(choose(want(1, customer_id="cus-1"), [lent])) == "a"
    refusal = refused(choose(want(1, customer_id="cus-2"), [lent]))
    assert refusal.satisfiable
    assert "lent to others" in refusal.detail
    team = host("b", free=1, dedicated_workspace_id="wsp-1")
    assert chosen(choose(want(1, workspace_id="wsp-1"), [lent, team])) == "b"


def test_labels_and_datasets_that_no_host_has_are_refused_with_what_there_is() -> None:
    hosts = [host("a", free=1, labels={"zone": "x"}, datasets=frozenset({"imagenet"}))]
    assert chosen(choose(want(1, host_labels=(("zone", "x"),)), hosts)) == "a"
    refusal = refused(choose(want(1, host_labels=(("zone", "y"),)), hosts))
    assert "Labels here: zone=x" in refusal.detail
    assert not refusal.satisfiable
    assert chosen(choose(want(1, datasets=frozenset({"imagenet"})), hosts)) == "a"
    assert "datasets" in refused(choose(want(1, datasets=frozenset({"coco"})), hosts)).detail


def test_those_with_a_choice_leave_the_kind_that_others_are_bound_to() -> None:
    hosts = [host("a", free=4, model="A100"), host("b", free=4, model="H100")]
    fleet = Fleet(hosts)
    for _ in range(40):
        fleet.saw(want(1, gpu_models=("A100",)))
    assert chosen(placement.choose(want(1), fleet)) == "b"


def test_parts_are_placed_all_or_none() -> None:
    hosts = [host("a", free=2), host("b", free=2), host("c", free=1, total=2)]
    fleet = Fleet(hosts)
    placed = placement.choose_all(want(2, nodes=2), fleet)
    assert isinstance(placed, tuple)
    assert {one.host.id for one in placed} == {"a", "b"}
    refusal = placement.choose_all(want(2, nodes=3), fleet)
    assert isinstance(refusal, Refusal)
    assert "3 hosts at once wanted; 2 have room now" in refusal.detail
    assert refusal.satisfiable
    offers = placement.smallest_changes(want(2, nodes=3), fleet)
    assert [one.fields for one in offers] == [{"nodes": 2}, {"gpus": 1}]
    assert offers[0].message == "With 2 nodes instead of 3 it starts now on a and b."
    never = placement.choose_all(want(2, nodes=4), fleet)
    assert isinstance(never, Refusal)
    assert not never.satisfiable
    assert "4 hosts at once wanted" in never.detail
    assert isinstance(placement.choose(want(2), fleet), Choice), "trying takes nothing"


@given(
    steps=st.lists(
        st.tuples(st.integers(0, 3), st.sampled_from([None, 10, 30, 47]), st.sampled_from([1, 2, 5])),
        max_size=40,
    )
)
def test_scores_kept_from_before_are_those_of_a_fleet_made_anew(
    steps: list[tuple[int, int | None, float]],
) -> None:
    hosts = [host(f"h{number}", free=number) for number in range(5)]
    fleet, held = Fleet(hosts), []
    for gpus, share, cpus in steps:
        request = want(1 if share else gpus, cpus=cpus, gpu_memory_bytes=share and share * GIB)
        kept = placement.choose(request, fleet)
        anew = placement.choose(request, Fleet([fleet.with_free(one.id) for one in hosts], mix=fleet.mix))
        assert type(kept) is type(anew)
        if isinstance(kept, Choice) and isinstance(anew, Choice):
            assert (kept.host.id, kept.hold) == (anew.host.id, anew.hold)
            fleet.take(kept.hold)
            held.append(kept.hold)
        elif held:
            fleet.give(held.pop(0))
        fleet.saw(request)
