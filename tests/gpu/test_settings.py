"""Settings of a GPU: attention kernels, lengths, allocator, order of GPUs, determinism."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from engine.config import load_config
from engine.determinism import cumsum, refuse_nondeterminism, set_deterministic
from engine.distill.align.blocks import EncodedBlock
from engine.distill.data.packing import make_batch
from engine.distill.device import device_and_dtype
from engine.errors import UsageError
from engine.run.worker import set_environment
from engine.workspace import Workspace
from tests.gpu.rig import GPU, GpuTensor, values

VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "CUDA_DEVICE_ORDER")


def test_choosing_the_device_turns_cudnn_attention_off(gpu, tmp_path):
    torch.backends.cuda.enable_cudnn_sdp(True)
    config = load_config(Workspace.find(tmp_path), preset="nano")
    device, dtype = device_and_dtype(config, lambda: False)
    assert (device.type, dtype) == ("cuda", torch.bfloat16)
    assert not torch.backends.cuda.cudnn_sdp_enabled()
    assert torch.backends.cuda.flash_sdp_enabled()


@pytest.mark.parametrize(("tokens", "on_gpu", "on_cpu"), [(5, 128, 64), (129, 256, 192)])
def test_lengths_are_multiples_of_128_on_a_gpu(gpu, tokens, on_gpu, on_cpu):
    scored = np.arange(1, tokens)
    block = EncodedBlock(np.arange(tokens), scored, np.zeros(tokens - 1, dtype=bool), tokens)
    batch = make_batch([[block]], GPU)
    assert isinstance(batch.input_ids, GpuTensor) and batch.input_ids.shape == (1, on_gpu)
    assert batch.mask.shape == (1, 1, on_gpu, on_gpu)
    assert make_batch([[block]], torch.device("cpu")).input_ids.shape == (1, on_cpu)


def test_a_worker_sets_the_allocator_and_the_order_of_gpus_before_torch_is_imported():
    code = (
        "import os, sys; from engine.run.worker import set_environment; set_environment(); "
        f"print(*(os.environ.get(n, '-') for n in {VARIABLES}), 'torch' in sys.modules)"
    )
    clean = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    result = subprocess.run(
        [sys.executable, "-c", code], env=clean, capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == ["-", "expandable_segments:True", "PCI_BUS_ID", "False"]


@pytest.mark.parametrize("name", VARIABLES[:2])
def test_the_users_allocator_settings_stay(monkeypatch, name):
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv(name, "max_split_size_mb:64")
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "FASTEST_FIRST")
    set_environment()
    assert [n for n in VARIABLES[:2] if n in os.environ] == [name]
    assert os.environ["CUDA_DEVICE_ORDER"] == "FASTEST_FIRST"


# Determinism


@pytest.fixture
def deterministic(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    set_deterministic(True, GPU)
    yield
    set_deterministic(False, GPU)


def test_a_workspace_that_is_not_deterministic_is_refused(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":0:0")
    with pytest.raises(UsageError, match="unset it"):
        set_deterministic(True, GPU)
    assert not torch.are_deterministic_algorithms_enabled()


def test_an_operation_without_a_deterministic_form_is_refused_with_its_name(gpu, deterministic):
    x = torch.rand(5, device="cuda")
    with (
        pytest.raises(UsageError, match=r"cumsum.*--set device.deterministic=false"),
        refuse_nondeterminism(),
    ):
        x.cumsum(0)
    with pytest.raises(RuntimeError, match="something else"), refuse_nondeterminism():
        raise RuntimeError("something else")


def test_sums_of_probabilities_are_deterministic_on_a_gpu(gpu, deterministic):
    host = torch.rand(3, 5)
    x = host.to("cuda")
    found = cumsum(x, 1)
    assert isinstance(found, GpuTensor) and torch.equal(values(found), host.cumsum(1))
