"""Read CPU, memory, disk and GPU figures of this machine, without torch.

Inside a container the limits are those of its control group, not the host's. A reading never
raises: a figure that can't be read is 0 or absent.
"""

from __future__ import annotations

import math
import os
import shutil
import time
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
            handles = _handles(self._nvml)
            uuids = [str(self._nvml.nvmlDeviceGetUUID(handle)) for handle in handles]
        except self._nvml.NVMLError:
            return ()
        visible = visible_gpus(uuids, os.environ.get("CUDA_VISIBLE_DEVICES"))
        readings = (_read_gpu(self._nvml, n, handles[i]) for n, i in enumerate(visible))
        return tuple(reading for reading in readings if reading is not None)


def visible_gpus(uuids: list[str], visible: str | None) -> list[int]:
    """Indices into `uuids` (the driver's order) of the GPUs that CUDA_VISIBLE_DEVICES selects.

    `visible` is the variable's value. Its entries are indices or UUID prefixes; as in CUDA, the
    list ends at the first invalid entry.
    """
    if visible is None:
        return list(range(len(uuids)))
    chosen: list[int] = []
    for entry in (part.strip() for part in visible.split(",")):
        if entry.isdigit():
            matches = [int(entry)] if int(entry) < len(uuids) else []
        else:
            matches = [i for i, uuid in enumerate(uuids) if entry and uuid.startswith(entry)]
        if len(matches) != 1 or matches[0] in chosen:
            break
        chosen.append(matches[0])
    return chosen


def _handles(nvml: Any) -> list[Any]:
    return [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]


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
