"""The only importer of pynvml. Every optional call is guarded: what a driver does not say is ``None``."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pynvml

from remotegpu.types.agent import InventoryGpu
from remotegpu.types.hosts import ThrottleReason
from remotegpu_agent.gpus import GpuInventory, GpuProcess, GpuSample, short_model

log = logging.getLogger(__name__)

REOPEN_EVERY_S = 30.0
"""After the driver went away, NVML is opened again at this pace."""

FATAL_XIDS = frozenset({46, 48, 62, 63, 64, 74, 79, 92, 94, 95, 119, 120})
"""The device needs a reset or a person: no new work. All other XIDs (13, 31, 43, 45, 68, 109, ...) are the
application's fault and are only reported."""

_THROTTLE = {
    1: ThrottleReason.IDLE,
    2: ThrottleReason.APPLICATIONS_CLOCKS,
    4: ThrottleReason.POWER_CAP,
    8: ThrottleReason.HW_SLOWDOWN,
    16: ThrottleReason.SYNC_BOOST,
    32: ThrottleReason.SW_THERMAL,
    64: ThrottleReason.HW_THERMAL,
    128: ThrottleReason.HW_POWER_BRAKE,
    256: ThrottleReason.DISPLAY_CLOCKS,
}
"""By the bit that NVML sets."""

_ALL_LINKS = 0xFFFFFFFF
_MEMORY_TEMP, _ENERGY_MJ, _REPLAYS = 82, 83, 94
_NVLINK_TX_KIB, _NVLINK_RX_KIB, _PCIE_TX_BYTES, _PCIE_RX_BYTES = 138, 139, 197, 198
_FIELDS = (
    _MEMORY_TEMP,
    _ENERGY_MJ,
    _REPLAYS,
    (_NVLINK_TX_KIB, _ALL_LINKS),
    (_NVLINK_RX_KIB, _ALL_LINKS),
    _PCIE_TX_BYTES,
    _PCIE_RX_BYTES,
)
"""Asked for in one call. Not ``nvmlDeviceGetPcieThroughput``: that one sleeps for 20 ms."""
_RATES = {
    _NVLINK_TX_KIB: ("nvlink_tx_bytes_per_s", 1024),
    _NVLINK_RX_KIB: ("nvlink_rx_bytes_per_s", 1024),
    _PCIE_TX_BYTES: ("pcie_tx_bytes_per_s", 1),
    _PCIE_RX_BYTES: ("pcie_rx_bytes_per_s", 1),
}
"""Counters whose growth is a rate."""

_DRIVER_GONE = (pynvml.NVML_ERROR_UNINITIALIZED, pynvml.NVML_ERROR_DRIVER_NOT_LOADED)
_LOST = pynvml.NVML_ERROR_GPU_IS_LOST


class Nvml:
    """GPUs as the NVIDIA driver describes them."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._devices: dict[str, Any] = {}
        """UUID -> handle, in index order. A device that is lost stays, so that it is reported."""
        self._instances: dict[str, list[tuple[str, Any]]] = {}
        """UUID of a divided GPU -> UUID and handle of each of its MIG instances."""
        self._counters: dict[str, tuple[float, dict[int, float]]] = {}
        self._processes_seen: dict[str, int] = {}
        """UUID -> the driver's time of the newest process sample."""
        self._xids: dict[str, int] = {}
        self._fatal: dict[str, int] = {}
        self._events: Any = None
        self._opened = False
        self._next_open = 0.0
        self.reason: str | None = None
        """Why there are no GPUs."""

    def inventory(self) -> GpuInventory:
        self._open()
        if not self._opened:
            return GpuInventory(reason=self.reason)
        links = _nvlink_groups(self._devices)
        gpus = [
            gpu
            for uuid, handle in self._devices.items()
            for gpu in _with_instances(_describe(uuid, handle, nvlink_group=links.get(uuid)), handle)
        ]
        cuda = _ask(pynvml.nvmlSystemGetCudaDriverVersion_v2)
        return GpuInventory(
            gpus=gpus,
            driver_version=_ask(pynvml.nvmlSystemGetDriverVersion),
            cuda_version=f"{cuda // 1000}.{cuda % 1000 // 10}" if cuda else None,
            reason=None if self._devices else "the driver knows no GPU",
        )

    def sample(self, *, held: frozenset[str], processes: bool) -> list[GpuSample]:
        self._open()
        if not self._opened:
            return [GpuSample(uuid=uuid, unhealthy_reason=self.reason) for uuid in self._devices]
        self._collect_xids()
        found = []
        for uuid, handle in list(self._devices.items()):
            whole = self._sample(uuid, handle, processes=processes)
            found.append(whole)
            found += [
                _of_instance(name, part, whole=whole, processes=processes)
                for name, part in self._instances.get(uuid, ())
            ]
        return found

    def check(self, uuid: str) -> str | None:
        self._open()
        if not self._opened:
            return self.reason
        self._collect_xids()
        handle = self._devices.get(uuid)
        if handle is None:
            return "the driver does not know this GPU"
        remembered = self._fatal.pop(uuid, None)
        found = self._sample(uuid, handle, processes=False).unhealthy_reason
        if found is not None and remembered is not None:
            self._fatal[uuid] = remembered
        return found

    def close(self) -> None:
        if self._opened:
            _ask(pynvml.nvmlShutdown)
            self._opened = False
            self._events = None

    def _open(self) -> None:
        """Open NVML if it is closed, at a bounded pace."""
        if self._opened or self._clock() < self._next_open:
            return
        self._next_open = self._clock() + REOPEN_EVERY_S
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            self.reason = _no_gpus_because(error)
            return
        self._opened, self.reason = True, None
        self._find_devices()
        self._watch_events()

    def _find_devices(self) -> None:
        found: dict[str, Any] = {}
        for index in range(_ask(pynvml.nvmlDeviceGetCount) or 0):
            try:
                handle = pynvml.nvmlDeviceGetHandleByIndex(index)
                found[pynvml.nvmlDeviceGetUUID(handle)] = handle
            except pynvml.NVMLError as error:
                # Its UUID is unknown: if it was known before, the server marks it missing.
                log.warning("GPU %s does not answer: %s", index, error)
        gone = {uuid: handle for uuid, handle in self._devices.items() if uuid not in found}
        self._devices = found | gone
        self._instances = {uuid: _instances(handle) for uuid, handle in found.items()}
        self._counters.clear()

    def _watch_events(self) -> None:
        """XIDs, where this driver and device have them."""
        events = _ask(pynvml.nvmlEventSetCreate)
        if events is None:
            return
        kinds = pynvml.nvmlEventTypeXidCriticalError
        for handle in self._devices.values():
            _ask(pynvml.nvmlDeviceRegisterEvents, handle, kinds, events)
        self._events = events

    def _collect_xids(self) -> None:
        while self._events is not None:
            try:
                event = pynvml.nvmlEventSetWait_v2(self._events, 0)
            except pynvml.NVMLError_Timeout:
                return
            except pynvml.NVMLError as error:
                log.warning("XID events are not available any more: %s", error)
                self._events = None
                return
            uuid = _ask(pynvml.nvmlDeviceGetUUID, event.device)
            if uuid is not None:
                self._note_xid(uuid, int(event.eventData))

    def _note_xid(self, uuid: str, xid: int) -> None:
        self._xids[uuid] = xid
        if xid in FATAL_XIDS:
            self._fatal[uuid] = xid
        log.warning("XID %s on %s%s", xid, uuid, " (fatal)" if xid in FATAL_XIDS else "")

    def _sample(self, uuid: str, handle: Any, *, processes: bool) -> GpuSample:
        try:
            memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
        except pynvml.NVMLError as error:
            if error.value in _DRIVER_GONE:
                self.close()
                self.reason = _no_gpus_because(error)
                return GpuSample(uuid=uuid, unhealthy_reason=self.reason)
            if error.value != pynvml.NVML_ERROR_NOT_SUPPORTED:
                return GpuSample(uuid=uuid, xid=self._xids.get(uuid), unhealthy_reason=_broken_because(error))
            memory = None
        rates = _ask(pynvml.nvmlDeviceGetUtilizationRates, handle)
        encoder = _ask(pynvml.nvmlDeviceGetEncoderUtilization, handle)
        decoder = _ask(pynvml.nvmlDeviceGetDecoderUtilization, handle)
        ecc_uncorrected = _ecc(handle, pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED)
        remapped = _ask(pynvml.nvmlDeviceGetRemappedRows, handle)
        fields = _fields(handle)
        energy_mj = fields.get(_ENERGY_MJ)
        return GpuSample(
            uuid=uuid,
            utilization_percent=float(rates.gpu) if rates is not None else None,
            memory_utilization_percent=float(rates.memory) if rates is not None else None,
            encoder_utilization_percent=float(encoder[0]) if encoder is not None else None,
            decoder_utilization_percent=float(decoder[0]) if decoder is not None else None,
            memory_used_bytes=None if memory is None else int(memory.used),
            memory_total_bytes=None if memory is None else int(memory.total),
            temperature_c=_number(pynvml.nvmlDeviceGetTemperature, handle, pynvml.NVML_TEMPERATURE_GPU),
            memory_temperature_c=fields.get(_MEMORY_TEMP),
            power_w=_number(pynvml.nvmlDeviceGetPowerUsage, handle, scale=1e-3),
            power_limit_w=_number(pynvml.nvmlDeviceGetEnforcedPowerLimit, handle, scale=1e-3),
            energy_j=None if energy_mj is None else energy_mj / 1e3,
            sm_clock_mhz=_number(pynvml.nvmlDeviceGetClockInfo, handle, pynvml.NVML_CLOCK_SM),
            memory_clock_mhz=_number(pynvml.nvmlDeviceGetClockInfo, handle, pynvml.NVML_CLOCK_MEM),
            throttle_reasons=_throttle_reasons(handle),
            pcie_replays=fields.get(_REPLAYS),
            **self._rates(uuid, fields),
            ecc_corrected=_ecc(handle, pynvml.NVML_MEMORY_ERROR_TYPE_CORRECTED),
            ecc_uncorrected=ecc_uncorrected,
            remapped_rows=remapped[1] if remapped else None,
            xid=self._xids.get(uuid),
            unhealthy_reason=self._unhealthy(uuid, handle, ecc_uncorrected, remapped),
            processes=self._processes(uuid, handle) if processes else (),
        )

    def _rates(self, uuid: str, fields: dict[int, float]) -> dict[str, float]:
        """Bytes per second since the last look; none where a counter was set back."""
        now = self._clock()
        then, before = self._counters.get(uuid, (now, {}))
        self._counters[uuid] = (now, fields)
        if now <= then:
            return {}
        return {
            name: round((fields[counter] - before[counter]) * scale / (now - then), 1)
            for counter, (name, scale) in _RATES.items()
            if counter in fields and counter in before and fields[counter] >= before[counter]
        }

    def _processes(self, uuid: str, handle: Any) -> tuple[GpuProcess, ...]:
        memory = _memory_by_process(handle)
        if not memory:
            return ()
        seen = self._processes_seen.get(uuid, 0)
        samples = _ask(pynvml.nvmlDeviceGetProcessUtilization, handle, seen) or []
        busy: dict[int, list[float]] = {}
        for sample in samples:
            # The driver fills what it has no sample for with a process id of 0.
            if sample.pid and sample.timeStamp > seen:
                busy.setdefault(int(sample.pid), []).append(float(sample.smUtil))
        self._processes_seen[uuid] = max((int(sample.timeStamp) for sample in samples), default=seen)
        return tuple(
            GpuProcess(pid, used, round(sum(busy[pid]) / len(busy[pid]), 1) if busy.get(pid) else None)
            for pid, used in memory.items()
        )

    def _unhealthy(
        self, uuid: str, handle: Any, ecc_uncorrected: int | None, remapped: Sequence[int] | None
    ) -> str | None:
        if uuid in self._fatal:
            return f"fatal XID {self._fatal[uuid]}: the device needs a reset"
        if ecc_uncorrected:
            return f"{ecc_uncorrected} uncorrected ECC errors since the driver was loaded"
        if remapped and remapped[3]:
            return "rows of its memory could not be replaced"
        if (remapped and remapped[2]) or _ask(pynvml.nvmlDeviceGetRetiredPagesPendingStatus, handle):
            return "broken memory is replaced only by a reset of the device"
        return None


def _ask(call: Callable[..., Any], *args: Any) -> Any:
    """The answer, or ``None`` where this driver or device does not give one."""
    try:
        answer = call(*args)
    except pynvml.NVMLError:
        return None
    return answer.decode(errors="replace") if isinstance(answer, bytes) else answer


def _number(call: Callable[..., Any], *args: Any, scale: float = 1.0) -> float | None:
    answer = _ask(call, *args)
    return None if answer is None else round(float(answer) * scale, 3)


def _ecc(handle: Any, kind: int) -> int | None:
    count = _ask(pynvml.nvmlDeviceGetTotalEccErrors, handle, kind, pynvml.NVML_VOLATILE_ECC)
    return None if count is None else int(count)


def _memory_by_process(handle: Any) -> dict[int, int | None]:
    running = _ask(pynvml.nvmlDeviceGetComputeRunningProcesses, handle) or []
    graphics = _ask(pynvml.nvmlDeviceGetGraphicsRunningProcesses, handle) or []
    return {
        int(process.pid): None if process.usedGpuMemory is None else int(process.usedGpuMemory)
        for process in [*graphics, *running]
    }


def _fields(handle: Any) -> dict[int, float]:
    """Each field that this driver and device have."""
    kinds = ("dVal", "uiVal", "ulVal", "ullVal", "sllVal", "siVal", "usVal")
    answers = _ask(pynvml.nvmlDeviceGetFieldValues, handle, _FIELDS) or ()
    return {
        int(one.fieldId): float(getattr(one.value, kinds[one.valueType]))
        for one in answers
        if one.nvmlReturn == pynvml.NVML_SUCCESS and 0 <= one.valueType < len(kinds)
    }


def _throttle_reasons(handle: Any) -> tuple[ThrottleReason, ...] | None:
    bits = _ask(pynvml.nvmlDeviceGetCurrentClocksThrottleReasons, handle)
    return None if bits is None else tuple(reason for bit, reason in _THROTTLE.items() if bits & bit)


def _instances(handle: Any) -> list[tuple[str, Any]]:
    """UUID and handle of each MIG instance."""
    found = []
    mode = _ask(pynvml.nvmlDeviceGetMigMode, handle)
    for index in range(_ask(pynvml.nvmlDeviceGetMaxMigDeviceCount, handle) or 0 if mode and mode[0] else 0):
        instance = _ask(pynvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, index)
        uuid = instance and _ask(pynvml.nvmlDeviceGetUUID, instance)
        if uuid and "/" not in uuid:  # drivers before R470 name instances by a path, which is no UUID
            found.append((uuid, instance))
    return found


def _of_instance(uuid: str, handle: Any, *, whole: GpuSample, processes: bool) -> GpuSample:
    """Memory and processes of a MIG instance: the driver tells no load of one. It is as sick as its GPU."""
    if whole.unhealthy_reason is not None:
        return GpuSample(uuid=uuid, unhealthy_reason=whole.unhealthy_reason)
    memory = _ask(pynvml.nvmlDeviceGetMemoryInfo, handle)
    held = _memory_by_process(handle) if processes else {}
    return GpuSample(
        uuid=uuid,
        memory_used_bytes=None if memory is None else int(memory.used),
        memory_total_bytes=None if memory is None else int(memory.total),
        processes=tuple(GpuProcess(pid, used) for pid, used in held.items()),
    )


def _nvlink_groups(devices: dict[str, Any]) -> dict[str, int]:
    """GPUs that reach each other over NVLink, directly or through others, have one number."""
    groups: dict[str, int] = {}
    for number, (uuid, handle) in enumerate(devices.items()):
        linked = {groups[other] for other in groups if _linked(handle, devices[other])}
        groups = {other: number if group in linked else group for other, group in groups.items()}
        groups[uuid] = number
    counts = Counter(groups.values())
    return {uuid: group for uuid, group in groups.items() if counts[group] > 1}


def _linked(one: Any, other: Any) -> bool:
    status = _ask(pynvml.nvmlDeviceGetP2PStatus, one, other, pynvml.NVML_P2P_CAPS_INDEX_NVLINK)
    return status is not None and status == pynvml.NVML_P2P_STATUS_OK


def _with_instances(gpu: InventoryGpu | None, handle: Any) -> list[InventoryGpu]:
    """A GPU and, where it is divided, its MIG instances as GPUs of their own."""
    if gpu is None or not gpu.mig_enabled:
        return [gpu] if gpu else []
    found = [gpu]
    for uuid, instance in _instances(handle):
        memory = _ask(pynvml.nvmlDeviceGetMemoryInfo, instance)
        product = _ask(pynvml.nvmlDeviceGetName, instance)
        if not memory or not product or " MIG " not in product:
            continue
        changes = {
            "uuid": uuid,
            "product": product,
            "memory_total_bytes": int(memory.total),
            "mig_enabled": None,
            "mig_profile": product.rsplit(" MIG ", 1)[1],
            "parent_uuid": gpu.uuid,
            "nvlink_group": None,
        }
        found.append(gpu.model_copy(update=changes))
    return found


def _describe(uuid: str, handle: Any, *, nvlink_group: int | None) -> InventoryGpu | None:
    memory = _ask(pynvml.nvmlDeviceGetMemoryInfo, handle)
    index = _ask(pynvml.nvmlDeviceGetIndex, handle)
    if memory is None or index is None:
        return None
    product = _ask(pynvml.nvmlDeviceGetName, handle) or "unknown GPU"
    pci = _ask(pynvml.nvmlDeviceGetPciInfo, handle)
    bus_id = getattr(pci, "busId", None)
    mig = _ask(pynvml.nvmlDeviceGetMigMode, handle)
    node = _ask(pynvml.nvmlDeviceGetNumaNodeId, handle)
    return InventoryGpu(
        uuid=uuid,
        index=index,
        model=short_model(product, memory.total),
        product=product,
        memory_total_bytes=memory.total,
        pci_bus_id=bus_id.decode() if isinstance(bus_id, bytes) else bus_id,
        mig_enabled=bool(mig[0]) if mig is not None else None,
        numa_node=None if node is None or node < 0 else int(node),
        nvlink_group=nvlink_group,
        simulated=False,
    )


def _no_gpus_because(error: pynvml.NVMLError) -> str:
    if error.value == pynvml.NVML_ERROR_LIBRARY_NOT_FOUND:
        return "no NVIDIA driver library (libnvidia-ml.so.1) on this host"
    if error.value == pynvml.NVML_ERROR_DRIVER_NOT_LOADED:
        return "the NVIDIA driver is not loaded"
    return f"NVML does not answer: {error}"


def _broken_because(error: pynvml.NVMLError) -> str:
    if error.value == _LOST:
        return "lost from the bus (NVML: GPU is lost); the host needs a reboot"
    return f"NVML does not answer for this device: {error}"
