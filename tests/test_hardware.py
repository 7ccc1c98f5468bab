"""Readings of the machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from engine.hardware import (
    GpuIds,
    Sampler,
    available_ram,
    disk_free,
    has_bf16,
    physical_cores,
    total_ram,
    visible_gpus,
)


def test_a_reading_covers_this_process_and_this_disk(tmp_path):
    sampler = Sampler()
    sampler.read(None, tmp_path)
    reading = sampler.read(os.getpid(), tmp_path)
    assert 0 <= reading.cpu_percent <= 100
    assert 0 < reading.ram_used < reading.ram_total == total_ram()
    assert 1 << 20 < reading.worker_rss < reading.ram_total
    assert reading.disk_free > 0
    assert reading.disk_read_per_sec >= 0 and reading.disk_write_per_sec >= 0


def test_a_reading_never_fails_for_a_process_or_path_that_is_gone(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    reading = Sampler().read(gone.pid, tmp_path / "not" / "there")
    assert reading.worker_rss == 0
    assert reading.disk_free == disk_free(tmp_path) or reading.disk_free > 0


def test_memory_and_cores_are_plausible():
    assert 0 < available_ram() <= total_ram()
    assert 1 <= physical_cores() <= (os.cpu_count() or 1)


def test_bf16_support_follows_the_cpu_flags():
    words = Path("/proc/cpuinfo").read_text().split() if Path("/proc/cpuinfo").exists() else []
    assert has_bf16() == bool({"avx512_bf16", "amx_bf16", "bf16"} & set(words))


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        (None, [0, 1, 2]),
        ("", []),
        ("-1", []),
        ("2,0", [2, 0]),
        (" 1 ", [1]),
        ("GPU-bbb", [1]),
        ("GPU-c,0", [2, 0]),
        ("0,7,1", [0]),  # CUDA stops at the first invalid entry
        ("GPU-", []),  # the prefix of more than one GPU
        ("0,0", [0]),
    ],
)
def test_visible_gpus_are_those_of_cuda(visible, expected):
    gpus = [GpuIds("GPU-aaa1"), GpuIds("GPU-bbb2"), GpuIds("GPU-ccc3")]
    assert visible_gpus(gpus, visible) == [(n, None) for n in expected]


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        (None, [(1, 0)]),  # the GPU's first MIG device, and no other device beside it
        ("0", [(0, None)]),
        ("1", [(1, 0)]),
        ("MIG-22", [(1, 1)]),
        ("MIG-GPU-bbb2/7/0", [(1, 1)]),
        ("MIG-22,MIG-11", [(1, 1)]),
        ("MIG-", []),  # the prefix of two devices
        ("MIG-33", []),
    ],
)
def test_mig_devices_are_found_by_their_names(visible, expected):
    mig = (("MIG-11-x", "MIG-GPU-bbb2/5/0"), ("MIG-22-x", "MIG-GPU-bbb2/7/0"))
    assert visible_gpus([GpuIds("GPU-aaa1"), GpuIds("GPU-bbb2", mig)], visible) == expected


class TwoGpus:
    """pynvml on a machine with two GPUs, the second of which lacks some readings."""

    class NVMLError(Exception):
        pass

    NVML_TEMPERATURE_GPU = 0

    def nvmlInit(self) -> None: ...

    def nvmlDeviceGetCount(self) -> int:
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetUUID(self, handle: int) -> str:
        return f"GPU-{'ab'[handle]}"

    def nvmlDeviceGetName(self, handle: int) -> str:
        return f"Card {handle}"

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> SimpleNamespace:
        return SimpleNamespace(used=1 << 30, total=80 << 30)

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> SimpleNamespace:
        return SimpleNamespace(gpu=97 - handle)

    def nvmlDeviceGetTemperature(self, handle: int, sensor: int) -> int:
        return 71

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:
        if handle == 1:
            raise self.NVMLError
        return 410_000

    nvmlDeviceGetEnforcedPowerLimit = nvmlDeviceGetPowerUsage


def test_gpus_are_read_in_cuda_order_and_a_missing_figure_is_none(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", TwoGpus())
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-b,0")
    second, first = Sampler().read(None, tmp_path).gpus
    assert (second.index, second.name, second.percent, second.power) == (0, "Card 1", 96.0, None)
    assert (first.index, first.name, first.power, first.power_limit) == (1, "Card 0", 410.0, 410.0)
    assert (first.used_bytes, first.total_bytes, first.temperature) == (1 << 30, 80 << 30, 71.0)


class OneDividedGpu(TwoGpus):
    """pynvml on a machine with one GPU that is divided into two MIG devices, handles 10 and 12."""

    def nvmlDeviceGetCount(self) -> int:
        return 1

    def nvmlDeviceGetMaxMigDeviceCount(self, handle: int) -> int:
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle: int, index: int) -> int:
        if index not in (0, 2):
            raise self.NVMLError("not found")
        return 10 + index

    def nvmlDeviceGetUUID(self, handle: int) -> str:
        return "GPU-a" if handle == 0 else f"MIG-{handle}"

    def nvmlDeviceGetGpuInstanceId(self, handle: int) -> int:
        return handle

    def nvmlDeviceGetComputeInstanceId(self, handle: int) -> int:
        return 0

    def nvmlDeviceGetName(self, handle: int) -> str:
        return f"Slice {handle}"

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> SimpleNamespace:
        return SimpleNamespace(used=1 << 30, total=(80 if handle == 0 else 20) << 30)

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> SimpleNamespace:
        raise self.NVMLError("not supported")

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:
        raise self.NVMLError("not supported")


@pytest.mark.parametrize(("visible", "name"), [("MIG-12", "Slice 12"), ("0", "Slice 10")])
def test_the_memory_of_a_mig_device_is_its_own_not_the_whole_gpus(
    tmp_path, monkeypatch, visible, name
):
    monkeypatch.setitem(sys.modules, "pynvml", OneDividedGpu())
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    (gpu,) = Sampler().read(None, tmp_path).gpus
    assert (gpu.name, gpu.total_bytes, gpu.percent) == (name, 20 << 30, None)


def test_without_a_driver_there_are_no_gpus(tmp_path, monkeypatch):
    class NoDriver(TwoGpus):
        def nvmlInit(self) -> None:
            raise self.NVMLError("driver not loaded")

    monkeypatch.setitem(sys.modules, "pynvml", NoDriver())
    assert Sampler().read(None, tmp_path).gpus == ()
