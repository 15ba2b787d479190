"""Simulated GPUs, aggregation between heartbeats, subnets and back-off: the small pure parts."""

from __future__ import annotations

import ipaddress
import random
from pathlib import Path

import pytest

from remotegpu import errors
from remotegpu_agent import readiness
from remotegpu_agent.docker_networks import free_subnets, used_subnets
from remotegpu_agent.firewall import endpoints
from remotegpu_agent.gpus import GIB, GpuInventory, GpuProcess, GpuSample
from remotegpu_agent.journal import Entry, Journal
from remotegpu_agent.sampling import HostMeter, Sampler
from remotegpu_agent.settings import SettingsError
from remotegpu_agent.simulated_gpus import SimulatedGpus, parse_spec
from remotegpu_agent.sync import Backoff


def test_simulated_gpus_are_the_same_on_every_start_and_differ_between_hosts() -> None:
    first = SimulatedGpus("2xA100-80GB,1xH100-80GB", host_id="one").inventory().gpus
    again = SimulatedGpus("2xA100-80GB,1xH100-80GB", host_id="one").inventory().gpus
    other = SimulatedGpus("2xA100-80GB,1xH100-80GB", host_id="two").inventory().gpus
    assert first == again
    assert not {gpu.uuid for gpu in first} & {gpu.uuid for gpu in other}
    assert [(gpu.model, gpu.memory_total_bytes, gpu.simulated) for gpu in first] == [
        ("A100-80GB", 80 * GIB, True),
        ("A100-80GB", 80 * GIB, True),
        ("H100-80GB", 80 * GIB, True),
    ]
    assert all(gpu.uuid.startswith("GPU-SIM-") for gpu in first)


def test_simulated_gpus_declare_nvlink_and_mig_instances() -> None:
    gpus = SimulatedGpus("2xA100-80GB+nvlink,1xA100-80GB/2x1g.10gb", host_id="one").inventory().gpus
    assert [gpu.nvlink_group for gpu in gpus] == [0, 0, None, None, None]
    assert [gpu.mig_profile for gpu in gpus] == [None, None, None, "1g.10gb", "1g.10gb"]
    assert gpus[2].mig_enabled
    assert {gpu.parent_uuid for gpu in gpus[3:]} == {gpus[2].uuid}
    assert len({gpu.uuid for gpu in gpus}) == 5


def test_simulated_load_follows_who_holds_the_gpu() -> None:
    gpus = SimulatedGpus("2xA100-80GB", host_id="one", wall=lambda: 1000.0)
    busy, idle = (gpu.uuid for gpu in gpus.inventory().gpus)
    samples = {it.uuid: it for it in gpus.sample(held=frozenset({busy}), processes=False)}
    assert (samples[busy].utilization_percent or 0) >= 35
    assert samples[idle].utilization_percent == 0
    assert samples[idle].memory_used_bytes == 0


@pytest.mark.parametrize("spec", ["", "A100", "2x", "0xA100-80GB", "99xA100-80GB", "2xA100-80GB,", "a;b-1GB"])
def test_simulation_that_cannot_be_read_says_what_to_write(spec: str) -> None:
    with pytest.raises(SettingsError, match="simulate-gpus"):
        parse_spec(spec)


class ScriptedGpus:
    """Gives one list of samples after the other."""

    def __init__(self, *rounds: list[GpuSample]) -> None:
        self._rounds = list(rounds)

    def inventory(self) -> GpuInventory:
        return GpuInventory()

    def sample(self, *, held: frozenset[str], processes: bool) -> list[GpuSample]:
        return self._rounds.pop(0)

    def close(self) -> None:
        """Nothing is open."""


async def test_heartbeat_carries_mean_highest_and_last_and_starts_anew() -> None:
    gpus = ScriptedGpus(
        [GpuSample(uuid="GPU-1", utilization_percent=10, temperature_c=40)],
        [
            GpuSample(
                uuid="GPU-1",
                utilization_percent=70,
                temperature_c=60,
                processes=(GpuProcess(7, 1000, 30), GpuProcess(8, None)),
            )
        ],
        [GpuSample(uuid="GPU-1")],
    )
    sampler = Sampler(gpus, every_s=1, held=frozenset)
    await sampler.sample(processes=False)
    await sampler.sample(processes=True)
    (first,) = sampler.take()
    assert (first.metrics.utilization_percent, first.metrics.utilization_max_percent) == (40, 70)
    assert first.metrics.temperature_c == 60
    assert first.mean == {"temperature_c": 50}, "the mean of the load is its value"
    assert first.highest == {"utilization_percent": 70}, "the highest temperature is the last one"
    assert sampler.gpu_memory_of({7: "env-1", 8: "env-1"}.get) == {"env-1": {"GPU-1": 1000}}
    assert sampler.workloads({7: "env-1", 8: "env-1"}.get)["env-1"].utilization_percent == {"GPU-1": 30}
    await sampler.sample(processes=False)
    (second,) = sampler.take()
    assert second.metrics.utilization_percent is None
    assert sampler.take() == []
    sampler.close()


def test_host_is_looked_at_every_second_and_tells_mean_and_highest(tmp_path: Path) -> None:
    now = [0.0]
    meter = HostMeter(tmp_path, clock=lambda: now[0])
    first = meter.read()
    assert first.metrics.cpu_percent is None, "nothing was looked at yet"
    assert first.metrics.network_rx_bytes_per_s is None
    assert (first.mean, first.highest) == ({}, {})
    for _ in range(3):
        meter.sample()
        now[0] += 1.0
    told = meter.read()
    assert told.metrics.cpu_percent is not None
    assert told.metrics.memory_used_bytes
    assert (told.metrics.memory_total_bytes or 0) > told.metrics.memory_used_bytes
    assert told.highest.get("memory_used_bytes", told.metrics.memory_used_bytes) > 0
    assert meter.read().metrics.cpu_percent is None, "what was told is not told again"


def test_subnets_overlap_with_nothing_in_use() -> None:
    pool = ipaddress.IPv4Network("10.213.0.0/24")
    used = used_subnets(
        [
            {"IPAM": {"Config": [{"Subnet": "10.213.0.0/26"}, {"Subnet": "fd00::/64"}]}},
            {"IPAM": {"Config": None}},
            {"IPAM": {"Config": [{"Subnet": "10.213.0.128/25"}]}},
        ]
    )
    found = list(free_subnets(pool, used, start="env-1"))
    assert sorted(map(str, found)) == [f"10.213.0.{n}/28" for n in (112, 64, 80, 96)]


async def test_only_endpoints_on_an_address_are_opened_in_the_firewall() -> None:
    told = {"REMOTEGPU_URL": "http://172.17.0.1:8003/", "JUPYTERHUB_API_URL": "http://127.0.0.1:8081/hub/api"}
    assert await endpoints(told) == {("172.17.0.1", 8003)}
    assert await endpoints({"REMOTEGPU_URL": "https://172.17.0.1", "OTHER": "http://172.17.0.1:5432"}) == {
        ("172.17.0.1", 443)
    }


def test_backoff_is_full_jitter_between_one_second_and_a_minute() -> None:
    random.seed(1)
    trouble = errors.ConnectionFailed("no")
    bounds = [1, 2, 4, 8, 16, 32, 60, 60]
    backoffs = [Backoff() for _ in range(200)]
    for bound in bounds:
        pauses = [backoff.next_s(trouble) for backoff in backoffs]
        assert max(pauses) <= bound
        assert max(pauses) > bound * 0.9
        assert min(pauses) < bound * 0.1


def test_retry_after_wins() -> None:
    assert Backoff().next_s(errors.RateLimited("slow", retry_after_s=17)) == 17


def test_journal_survives_and_a_damaged_one_starts_empty(tmp_path: Path) -> None:
    path = tmp_path / "journal.json"
    entry = Entry(generation=2, gpu_uuids=("GPU-1",), ready=True)
    Journal(path).put("env-1", entry)
    assert Journal(path).get("env-1", 2) == entry
    assert Journal(path).get("env-1", 3) is None
    path.write_text("{half")
    assert Journal(path).entries() == {}


async def test_port_that_nobody_listens_on_does_not_answer() -> None:
    assert await readiness.answers("http://127.0.0.1:9", "/") is False
