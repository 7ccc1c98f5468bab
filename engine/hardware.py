"""Read CPU, memory, disk and GPU figures of this machine, without torch.

Inside a container the limits are those of its control group, not the host's. A reading never
raises: a figure that can't be read is 0 or absent.
"""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from engine.events import GpuReading, HardwareRead

_CGROUP = Path("/sys/fs/cgroup")


class Sampler:
    """Repeated readings; rates (CPU, disk) are means since the previous reading."""

    def __init__(self) -> None:
        self._cpu_seen = False
        self._disk: tuple[float, int, int] | None = None
        self._nvml: Any = None
        self._nvml_tried = False

    def read(self, pid: int | None, disk: Path) -> HardwareRead:
        """One reading, with the resident bytes of process `pid` and the free bytes of the file
        system of `disk`."""
        read_rate, write_rate = self._disk_rates()
        total = total_ram()
        return HardwareRead(
            time=time.time(),
            cpu_percent=self._cpu_percent(),
            ram_used=max(0, total - available_ram()),
            ram_total=total,
            worker_rss=_rss(pid),
            disk_free=disk_free(disk),
            disk_read_per_sec=read_rate,
            disk_write_per_sec=write_rate,
            gpus=self._gpus(),
        )

    def _cpu_percent(self) -> float:
        # psutil's first value needs an interval; later ones cover the time since the last call.
        interval = None if self._cpu_seen else 0.1
        self._cpu_seen = True
        try:
            return psutil.cpu_percent(interval=interval)
        except (OSError, psutil.Error):
            return 0.0

    def _disk_rates(self) -> tuple[float, float]:
        """Bytes read and written per second on all disks."""
        try:
            counters = psutil.disk_io_counters()
        except (OSError, RuntimeError, psutil.Error):
            counters = None
        if counters is None:
            return 0.0, 0.0
        now = (time.monotonic(), counters.read_bytes, counters.write_bytes)
        before, self._disk = self._disk, now
        if before is None or now[0] <= before[0]:
            return 0.0, 0.0
        seconds = now[0] - before[0]
        return max(0, now[1] - before[1]) / seconds, max(0, now[2] - before[2]) / seconds

    def _gpus(self) -> tuple[GpuReading, ...]:
        if not self._nvml_tried:
            self._nvml_tried = True
            try:
                import pynvml

                pynvml.nvmlInit()
                self._nvml = pynvml
            except Exception:  # no driver, library or permission: no GPU to read
                self._nvml = None
        if self._nvml is None:
            return ()
        try:
            gpus = _all_gpus(self._nvml)
        except self._nvml.NVMLError:
            return ()
        visible = visible_gpus([gpu.ids for gpu in gpus], os.environ.get("CUDA_VISIBLE_DEVICES"))
        handles = (gpus[gpu].handle if mig is None else gpus[gpu].mig[mig] for gpu, mig in visible)
        readings = (_read_gpu(self._nvml, n, handle) for n, handle in enumerate(handles))
        return tuple(reading for reading in readings if reading is not None)


@dataclass(frozen=True)
class GpuIds:
    """The names that CUDA_VISIBLE_DEVICES may use for a GPU.

    Attributes:
        uuid: `GPU-...`
        mig: of each of its MIG devices, `MIG-...`: the name, and the name of older drivers.
    """

    uuid: str
    mig: tuple[tuple[str, ...], ...] = ()


def visible_gpus(gpus: Sequence[GpuIds], visible: str | None) -> list[tuple[int, int | None]]:
    """The devices that CUDA sees, in its order: (index into `gpus`, number of its MIG device).

    `gpus` are in the order of the PCI bus, in which the worker lets CUDA number them too
    (`run.worker.set_environment`). `visible` is the value of CUDA_VISIBLE_DEVICES: indices, or
    prefixes of names; as in CUDA, the list ends at the first invalid entry. A GPU that is divided
    by MIG stands for its first MIG device, and CUDA uses one MIG device at most.
    """
    if visible is None:
        entries = [str(n) for n in range(len(gpus))]
    else:
        entries = [part.strip() for part in visible.split(",")]
    chosen: list[tuple[int, int | None]] = []
    for entry in entries:
        matches = _matches(gpus, entry)
        if len(matches) != 1 or matches[0] in chosen:
            break
        chosen.append(matches[0])
    mig = [device for device in chosen if device[1] is not None]
    return mig[:1] if mig else chosen


def _matches(gpus: Sequence[GpuIds], entry: str) -> list[tuple[int, int | None]]:
    if entry.startswith("MIG-"):
        return [
            (n, m)
            for n, gpu in enumerate(gpus)
            for m, names in enumerate(gpu.mig)
            if any(name.startswith(entry) for name in names)
        ]
    if entry.isdigit():
        found = [int(entry)] if int(entry) < len(gpus) else []
    else:
        found = [n for n, gpu in enumerate(gpus) if entry and gpu.uuid.startswith(entry)]
    return [(n, 0 if gpus[n].mig else None) for n in found]


@dataclass(frozen=True)
class _Gpu:
    """A GPU of the driver, with its MIG devices."""

    ids: GpuIds
    handle: Any
    mig: tuple[Any, ...]


def _all_gpus(nvml: Any) -> list[_Gpu]:
    """The driver's GPUs, in the order of the PCI bus."""
    gpus = []
    for index in range(nvml.nvmlDeviceGetCount()):
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        uuid = _text(nvml.nvmlDeviceGetUUID(handle))
        handles = _mig_handles(nvml, handle)
        names = tuple(_mig_names(nvml, uuid, mig) for mig in handles)
        gpus.append(_Gpu(GpuIds(uuid, names), handle, tuple(handles)))
    return gpus


def _mig_handles(nvml: Any, handle: Any) -> list[Any]:
    try:
        count = nvml.nvmlDeviceGetMaxMigDeviceCount(handle)
    except (nvml.NVMLError, AttributeError):  # a GPU, driver or library without MIG
        return []
    found = []
    for index in range(count):
        try:
            found.append(nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, index))
        except nvml.NVMLError:  # not every place has a device
            continue
    return found


def _mig_names(nvml: Any, gpu: str, handle: Any) -> tuple[str, ...]:
    names = [_text(nvml.nvmlDeviceGetUUID(handle))]
    try:
        instance = nvml.nvmlDeviceGetGpuInstanceId(handle)
        compute = nvml.nvmlDeviceGetComputeInstanceId(handle)
        names.append(f"MIG-{gpu}/{instance}/{compute}")
    except nvml.NVMLError:
        pass  # the name of older drivers is not needed
    return tuple(names)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _read_gpu(nvml: Any, index: int, handle: Any) -> GpuReading | None:
    def query(function: str, *arguments: Any) -> Any:
        try:
            return getattr(nvml, function)(handle, *arguments)
        except nvml.NVMLError:  # not every GPU (or MIG slice) has every reading
            return None

    memory = query("nvmlDeviceGetMemoryInfo")
    if memory is None:
        return None
    name = query("nvmlDeviceGetName") or "GPU"
    rates = query("nvmlDeviceGetUtilizationRates")
    temperature = query("nvmlDeviceGetTemperature", nvml.NVML_TEMPERATURE_GPU)
    power = query("nvmlDeviceGetPowerUsage")
    limit = query("nvmlDeviceGetEnforcedPowerLimit")
    return GpuReading(
        index=index,
        name=name.decode() if isinstance(name, bytes) else name,
        used_bytes=memory.used,
        total_bytes=memory.total,
        percent=None if rates is None else float(rates.gpu),
        temperature=None if temperature is None else float(temperature),
        power=None if power is None else power / 1000,
        power_limit=None if limit is None else limit / 1000,
    )


_sampler = Sampler()


def read(pid: int | None, disk: Path) -> HardwareRead:
    """One reading by this process's sampler (see `Sampler.read`)."""
    return _sampler.read(pid, disk)


def total_ram() -> int:
    """Bytes of RAM that this process may use: the machine's, or its control group's limit."""
    limit = _cgroup_number("memory.max")
    total = psutil.virtual_memory().total
    return total if limit is None else min(total, limit)


def available_ram() -> int:
    """Bytes of RAM that can be allocated now without swapping."""
    available = psutil.virtual_memory().available
    limit, used = _cgroup_number("memory.max"), _cgroup_number("memory.current")
    if limit is None or used is None:
        return available
    # The control group counts the file cache as used, but the kernel frees it on demand.
    return max(0, min(available, limit - used + _reclaimable()))


def physical_cores() -> int:
    """Physical cores that this process may use; at least 1."""
    cores = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        cores = min(cores, len(os.sched_getaffinity(0)))
    try:
        quota, period = (_CGROUP / "cpu.max").read_text().split()
        if quota != "max":
            cores = min(cores, math.ceil(int(quota) / int(period)))
    except (OSError, ValueError):
        pass
    return max(1, cores)


def has_bf16() -> bool:
    """Whether the CPU has bfloat16 instructions (AVX512-BF16, AMX, Arm BF16); Linux only."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    for line in text.splitlines():
        if line.startswith(("flags", "Features")):
            return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(line.split())
    return False


def disk_free(path: Path) -> int:
    """Free bytes for this user on the file system of `path` (or its nearest parent that exists);
    0 if unknown."""
    for folder in (path, *path.parents):
        try:
            return shutil.disk_usage(folder).free
        except FileNotFoundError:
            continue
        except OSError:
            break
    return 0


def _cgroup_number(name: str) -> int | None:
    try:
        return int((_CGROUP / name).read_text())
    except (OSError, ValueError):  # no such limit ("max"), no cgroup v2
        return None


def _reclaimable() -> int:
    try:
        lines = (_CGROUP / "memory.stat").read_text().splitlines()
        return int(dict(line.split() for line in lines).get("inactive_file", 0))
    except (OSError, ValueError):
        return 0


def _rss(pid: int | None) -> int:
    if pid is None:
        return 0
    try:
        return psutil.Process(pid).memory_info().rss
    except (OSError, psutil.Error):
        return 0


def driver_version() -> str:
    """The NVIDIA driver's version; "" without a driver."""
    try:
        import pynvml

        pynvml.nvmlInit()
        version = pynvml.nvmlSystemGetDriverVersion()
    except Exception:  # no driver, library or permission
        return ""
    return version.decode() if isinstance(version, bytes) else str(version)
