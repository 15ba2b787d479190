"""The only importer of pynvml. Every optional call is guarded: what a driver does not say is ``None``."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pynvml

from remotegpu.types.agent import InventoryGpu
from remotegpu_agent.gpus import GpuInventory, GpuSample, short_model

log = logging.getLogger(__name__)

REOPEN_EVERY_S = 30.0
"""After the driver went away, NVML is opened again at this pace."""

FATAL_XIDS = frozenset({46, 48, 62, 63, 64, 74, 79, 92, 94, 95, 119, 120})
"""The device needs a reset or a person: no new work. All other XIDs (13, 31, 43, 45, 68, 109, ...) are the
application's fault and are only reported."""

_DRIVER_GONE = (pynvml.NVML_ERROR_UNINITIALIZED, pynvml.NVML_ERROR_DRIVER_NOT_LOADED)
_LOST = pynvml.NVML_ERROR_GPU_IS_LOST


class Nvml:
    """GPUs as the NVIDIA driver describes them."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._devices: dict[str, Any] = {}
        """UUID -> handle, in index order. A device that is lost stays, so that it is reported."""
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
        return [self._sample(uuid, handle, processes=processes) for uuid, handle in self._devices.items()]

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
            memory_used = int(pynvml.nvmlDeviceGetMemoryInfo(handle).used)
        except pynvml.NVMLError as error:
            if error.value in _DRIVER_GONE:
                self.close()
                self.reason = _no_gpus_because(error)
                return GpuSample(uuid=uuid, unhealthy_reason=self.reason)
            if error.value != pynvml.NVML_ERROR_NOT_SUPPORTED:
                return GpuSample(uuid=uuid, xid=self._xids.get(uuid), unhealthy_reason=_broken_because(error))
            memory_used = None
        rates = _ask(pynvml.nvmlDeviceGetUtilizationRates, handle)
        ecc_uncorrected = _ecc(handle, pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED)
        remapped = _ask(pynvml.nvmlDeviceGetRemappedRows, handle)
        return GpuSample(
            uuid=uuid,
            utilization_percent=float(rates.gpu) if rates is not None else None,
            memory_utilization_percent=float(rates.memory) if rates is not None else None,
            memory_used_bytes=memory_used,
            temperature_c=_number(pynvml.nvmlDeviceGetTemperature, handle, pynvml.NVML_TEMPERATURE_GPU),
            power_w=_number(pynvml.nvmlDeviceGetPowerUsage, handle, scale=1e-3),
            power_limit_w=_number(pynvml.nvmlDeviceGetEnforcedPowerLimit, handle, scale=1e-3),
            sm_clock_mhz=_number(pynvml.nvmlDeviceGetClockInfo, handle, pynvml.NVML_CLOCK_SM),
            memory_clock_mhz=_number(pynvml.nvmlDeviceGetClockInfo, handle, pynvml.NVML_CLOCK_MEM),
            ecc_corrected=_ecc(handle, pynvml.NVML_MEMORY_ERROR_TYPE_CORRECTED),
            ecc_uncorrected=ecc_uncorrected,
            remapped_rows=remapped[1] if remapped else None,
            xid=self._xids.get(uuid),
            unhealthy_reason=self._unhealthy(uuid, handle, ecc_uncorrected, remapped),
            processes=_processes(handle) if processes else (),
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


def _processes(handle: Any) -> tuple[tuple[int, int | None], ...]:
    running = _ask(pynvml.nvmlDeviceGetComputeRunningProcesses, handle) or []
    graphics = _ask(pynvml.nvmlDeviceGetGraphicsRunningProcesses, handle) or []
    memory: dict[int, int | None] = {}
    for process in [*graphics, *running]:
        memory[int(process.pid)] = None if process.usedGpuMemory is None else int(process.usedGpuMemory)
    return tuple(memory.items())


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
    for index in range(_ask(pynvml.nvmlDeviceGetMaxMigDeviceCount, handle) or 0):
        instance = _ask(pynvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, index)
        uuid = instance and _ask(pynvml.nvmlDeviceGetUUID, instance)
        memory = instance and _ask(pynvml.nvmlDeviceGetMemoryInfo, instance)
        product = instance and _ask(pynvml.nvmlDeviceGetName, instance)
        if not uuid or "/" in uuid or not memory or not product or " MIG " not in product:
            continue  # drivers before R470 name instances by a path, which is no UUID
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
