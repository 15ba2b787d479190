"""The real NVML binding on a fake driver library, in a process of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from remotegpu_agent.gpus import GIB, short_model

HERE = Path(__file__).parent

H200 = "NVIDIA H200|GPU-h200|143771|51200|87|41|63|512000|0|4242:50000,4343:1100|0|0"
A100 = "NVIDIA A100-SXM4-80GB|GPU-a100|81920|0|0|0|30|60000|0|-|0|1"
SILENT = "NVIDIA T1000|GPU-silent|4096|10|-1|-1|-1|-1|0|-|-1|-1"

LOOK = """
import dataclasses, json, os, pathlib, sys
from remotegpu_agent.nvml import Nvml
now = 0.0
nvml = Nvml(clock=lambda: now)
inventory = nvml.inventory()
print(json.dumps({
    "gpus": [gpu.model_dump() for gpu in inventory.gpus], "reason": inventory.reason,
    "driver": inventory.driver_version, "cuda": inventory.cuda_version,
}))
for line in sys.stdin:
    change = json.loads(line)
    state = pathlib.Path(os.environ["FAKE_NVML"])
    if change["state"] is None:
        state.unlink()
    elif change["state"]:
        state.write_text(change["state"])
    now += change["later_s"]
    samples = nvml.sample(held=frozenset(), processes=True)
    print(json.dumps([dataclasses.asdict(sample) for sample in samples]))
nvml.close()
"""


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("gcc") is None:
        pytest.skip("no gcc to compile the fake driver library")
    path = tmp_path_factory.mktemp("nvml") / "libnvidia-ml.so.1"
    subprocess.run(
        ["gcc", "-O1", "-shared", "-fPIC", "-Wl,-soname,libnvidia-ml.so.1", "-o", str(path),
         str(HERE / "fake_nvml.c")],
        check=True,
    )  # fmt: skip
    return path


@pytest.fixture
def look(library: Path, tmp_path: Path) -> Any:
    """Run the provider against driver states; answers the inventory and each sample."""

    def run(*states: str | None, first: str | None, folder: Path | None = library.parent) -> list[Any]:
        state = tmp_path / "gpus"
        if first is not None:
            state.write_text(first)
        lines = "".join(json.dumps({"state": it, "later_s": 31.0}) + "\n" for it in states)
        environ = {**os.environ, "FAKE_NVML": str(state), "LD_LIBRARY_PATH": str(folder or "")}
        done = subprocess.run(
            [sys.executable, "-c", LOOK],
            input=lines,
            env=environ,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    return run


def test_gpus_are_described_as_the_driver_knows_them(look: Any) -> None:
    inventory, samples = look("", first=f"{H200}\n{A100}\n")
    assert (inventory["driver"], inventory["cuda"], inventory["reason"]) == ("580.65.06", "13.0", None)
    assert [gpu["model"] for gpu in inventory["gpus"]] == ["H200-141GB", "A100-80GB"]
    assert [gpu["mig_enabled"] for gpu in inventory["gpus"]] == [False, True]
    assert not any(gpu["simulated"] for gpu in inventory["gpus"])
    h200 = samples[0]
    assert (h200["utilization_percent"], h200["memory_utilization_percent"]) == (87, 41)
    assert (h200["memory_used_bytes"], h200["temperature_c"], h200["power_w"]) == (51200 * 2**20, 63, 512)
    assert (h200["power_limit_w"], h200["sm_clock_mhz"], h200["memory_clock_mhz"]) == (700, 1755, 2619)
    assert [(one["pid"], one["memory_bytes"]) for one in h200["processes"]] == [
        (4242, 50000 * 2**20),
        (4343, 1100 * 2**20),
    ]
    assert (h200["ecc_corrected"], h200["ecc_uncorrected"], h200["xid"]) == (0, 0, None)
    assert h200["unhealthy_reason"] is None


def test_what_is_not_supported_is_null_and_never_zero(look: Any) -> None:
    inventory, samples = look("", first=f"{SILENT}\n")
    assert inventory["gpus"][0]["mig_enabled"] is None
    silent = samples[0]
    for name in ("utilization_percent", "temperature_c", "power_w", "ecc_corrected", "ecc_uncorrected"):
        assert silent[name] is None, name
    assert silent["memory_used_bytes"] == 10 * 2**20
    assert silent["unhealthy_reason"] is None


def test_links_energy_throttling_and_load_of_processes_are_read_where_the_driver_has_them(look: Any) -> None:
    busy = H200.replace("4242:50000,", "4242:50000:73,") + "|-1|-|-1:0:0:0|-1"
    counters = ("71:1000000:2:100:200:5000:6000|36:3:4", "72:4100000:2:131:50:8100:9100|0:3:4")
    _, first, (second,) = look(f"{busy}|{counters[0]}\n", f"{busy}|{counters[1]}\n", first=f"{H200}\n")
    assert (first[0]["memory_temperature_c"], first[0]["energy_j"], first[0]["pcie_replays"]) == (71, 1000, 2)
    assert first[0]["throttle_reasons"] == ["power_cap", "sw_thermal"]
    assert (first[0]["encoder_utilization_percent"], first[0]["decoder_utilization_percent"]) == (3, 4)
    assert first[0]["nvlink_tx_bytes_per_s"] is None, "one look gives no rate"
    assert second["throttle_reasons"] == []
    assert (second["nvlink_tx_bytes_per_s"], second["pcie_tx_bytes_per_s"]) == (1024, 100)
    assert second["nvlink_rx_bytes_per_s"] is None, "its counter was set back"
    assert [one["utilization_percent"] for one in second["processes"]] == [73, None]


def test_divided_gpu_tells_memory_and_processes_of_its_instances(look: Any) -> None:
    divided = A100.replace("|0|30|", "|-1|30|").replace("|0|-1|30|", "|-1|-1|30|")
    _, samples = look("", first=f"{divided}|-1|1g.10gb:MIG-one:9728,3g.40gb:MIG-two:40192\n")
    assert [one["uuid"] for one in samples] == ["GPU-a100", "MIG-one", "MIG-two"]
    assert [one["utilization_percent"] for one in samples] == [None, None, None]
    assert samples[2]["memory_total_bytes"] == 40192 * 2**20
    lost = divided.replace("|60000|0|", "|60000|15|")
    _, sick = look(f"{lost}|-1|1g.10gb:MIG-one:9728\n", first=f"{divided}|-1|1g.10gb:MIG-one:9728\n")
    assert all("lost from the bus" in one["unhealthy_reason"] for one in sick)


def test_sixteen_gpus_are_all_measured(look: Any) -> None:
    lines = "".join(A100.replace("GPU-a100", f"GPU-{index}") + "\n" for index in range(16))
    _, samples = look("", first=lines)
    assert len({one["uuid"] for one in samples}) == 16
    assert all(one["temperature_c"] == 30 for one in samples)


def test_lost_gpu_is_unhealthy_and_the_others_go_on(look: Any) -> None:
    lost = H200.replace("|512000|0|", "|512000|15|")
    _, samples = look(f"{lost}\n{A100}\n", first=f"{H200}\n{A100}\n")
    assert "lost from the bus" in samples[0]["unhealthy_reason"]
    assert samples[0]["utilization_percent"] is None
    assert samples[1]["unhealthy_reason"] is None
    assert samples[1]["temperature_c"] == 30


def test_broken_gpu_says_so(look: Any) -> None:
    broken = H200.replace("|512000|0|", "|512000|999|")
    _, samples = look(f"{broken}\n{A100}\n", first=f"{H200}\n{A100}\n")
    assert "does not answer for this device" in samples[0]["unhealthy_reason"]
    assert samples[1]["unhealthy_reason"] is None


def test_uncorrected_ecc_errors_make_a_gpu_unhealthy(look: Any) -> None:
    _, samples = look("", first=H200.replace("|0|0", "|3|0") + "\n")
    assert "3 uncorrected ECC errors" in samples[0]["unhealthy_reason"]


@pytest.mark.parametrize(
    ("rows", "retired", "reason"),
    [
        ("2:5:0:0", -1, None),
        ("2:5:1:0", -1, "broken memory is replaced only by a reset of the device"),
        ("2:5:0:1", -1, "rows of its memory could not be replaced"),
        ("2:5:1:1", -1, "rows of its memory could not be replaced"),
        ("-1:0:0:0", 0, None),
        ("-1:0:0:0", 1, "broken memory is replaced only by a reset of the device"),
    ],
)
def test_memory_that_was_not_replaced_makes_a_gpu_unhealthy_and_replaced_rows_do_not(
    look: Any, rows: str, retired: int, reason: str | None
) -> None:
    _, (sample, other) = look("", first=f"{H200}|-1|-|{rows}|{retired}\n{A100}\n")
    assert sample["unhealthy_reason"] == reason
    assert sample["remapped_rows"] == (5 if rows.startswith("2") else None)
    assert (other["unhealthy_reason"], other["remapped_rows"]) == (None, None)


def test_driver_that_goes_away_and_comes_back_is_opened_again(look: Any) -> None:
    _, gone, back = look(None, f"{H200}\n", first=f"{H200}\n")
    assert "driver is not loaded" in gone[0]["unhealthy_reason"]
    assert back[0]["unhealthy_reason"] is None
    assert back[0]["utilization_percent"] == 87


def test_library_without_driver_means_no_gpus_and_a_reason(look: Any) -> None:
    (inventory,) = look(first=None)
    assert inventory["gpus"] == []
    assert inventory["reason"] == "the NVIDIA driver is not loaded"


def test_machine_without_library_means_no_gpus_and_a_reason(look: Any) -> None:
    if Path("/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1").exists():
        pytest.skip("this machine has a real driver library")
    (inventory,) = look(first=None, folder=None)
    assert inventory["gpus"] == []
    assert "no NVIDIA driver library" in inventory["reason"]


@pytest.mark.parametrize(
    ("product", "mib", "model"),
    [
        ("NVIDIA A100-SXM4-80GB", 81920, "A100-80GB"),
        ("NVIDIA A100 80GB PCIe", 81920, "A100-80GB"),
        ("NVIDIA H100 80GB HBM3", 81559, "H100-80GB"),
        ("NVIDIA H100 PCIe", 81559, "H100-80GB"),
        ("NVIDIA H100 NVL", 95830, "H100-94GB"),
        ("NVIDIA H200", 143771, "H200-141GB"),
        ("NVIDIA GeForce RTX 4090", 24564, "RTX4090-24GB"),
        ("NVIDIA RTX A6000", 49140, "RTXA6000-48GB"),
        ("NVIDIA L4", 23034, "L4-24GB"),
        ("NVIDIA L40S", 46068, "L40S-48GB"),
        ("Tesla V100-SXM2-16GB", 16160, "V100-16GB"),
        ("Tesla T4", 15360, "T4-16GB"),
    ],
)
def test_short_model_is_family_and_memory(product: str, mib: int, model: str) -> None:
    assert short_model(product, mib * GIB // 1024) == model


def test_divided_gpu_is_listed_with_its_instances(look: Any) -> None:
    (found,) = look(first=f"{A100}|-1|1g.10gb:MIG-one:9728,3g.40gb:MIG-two:40192\n")
    parent, one, two = found["gpus"]
    assert parent["mig_enabled"]
    assert [(it["uuid"], it["mig_profile"], it["parent_uuid"]) for it in (one, two)] == [
        ("MIG-one", "1g.10gb", "GPU-a100"),
        ("MIG-two", "3g.40gb", "GPU-a100"),
    ]
    assert two["memory_total_bytes"] == 40192 * 2**20
    assert two["model"] == parent["model"]
    assert not two["mig_enabled"]


def test_gpus_that_reach_each_other_over_nvlink_have_one_group(look: Any) -> None:
    lines = [
        f"NVIDIA A100-SXM4-80GB|GPU-{index}|81920|0|0|0|30|60000|0|-|0|0|{index // 2}|-" for index in range(4)
    ]
    (found,) = look(first="\n".join(lines) + "\n")
    groups = [gpu["nvlink_group"] for gpu in found["gpus"]]
    assert groups[0] == groups[1] != groups[2] == groups[3]
    assert None not in groups
