"""The pretended GPU behaves as CUDA does where the other tests depend on it."""

from __future__ import annotations

import pytest
import torch

from tests.gpu.rig import GPU, GpuTensor, values


def test_tensors_report_the_gpu_and_compute_the_numbers_of_the_cpu(gpu):
    host = torch.randn(4, 3)
    x = host.to("cuda")
    assert isinstance(x, GpuTensor) and x.device == GPU and x.is_cuda
    assert torch.equal(values(x @ x.t()), host @ host.t())
    assert torch.zeros(2, device="cuda").device == GPU
    assert x.new_ones(2).device == GPU and torch.ones_like(x).device == GPU


def test_autograd_and_autocast_are_alive(gpu):
    layer = torch.nn.Linear(3, 2).to("cuda")
    with torch.autocast("cuda", dtype=torch.bfloat16):
        y = layer(torch.randn(4, 3, device="cuda"))
    assert y.dtype == torch.bfloat16
    y.float().square().sum().backward()
    assert layer.weight.grad is not None and layer.weight.grad.device == GPU
    assert isinstance(layer.weight, torch.nn.Parameter)


def test_a_module_moves_there_and_back_with_its_tied_weights(gpu):
    model = torch.nn.ModuleDict({"a": torch.nn.Linear(3, 3), "b": torch.nn.Linear(3, 3)})
    model["b"].weight = model["a"].weight
    before = model["a"].weight.detach().clone()
    model.to("cuda")
    assert model["a"].weight is model["b"].weight and model["a"].weight.device == GPU
    model.to("cpu")
    assert torch.equal(model["b"].weight, before)


def test_mixed_devices_are_an_error_except_numbers(gpu):
    x = torch.randn(3, device="cuda")
    with pytest.raises(RuntimeError, match="same device"):
        x + torch.randn(3)
    assert (x * torch.tensor(2.0)).device == GPU
    with pytest.raises(TypeError, match="numpy"):
        x.numpy()


def test_what_waits_for_the_device_is_counted(gpu):
    x = torch.randn(5, device="cuda")
    gpu.counts.clear()
    x.sum().item()
    x.tolist()
    x.cpu()
    x[x > 0]
    torch.nonzero(x)
    if x.sum() > 1e9:
        pass
    float(x[0])
    names = sorted(name for (_, name), n in gpu.counts.synchronisations.items() for _ in range(n))
    assert names == [
        "boolean index",
        "copy to the host",
        "item",
        "item",
        "item",
        "nonzero",
        "tolist",
    ]


def test_copies_out_of_pinned_memory_do_not_wait(gpu):
    gpu.counts.clear()
    torch.ones(3).to("cuda")
    torch.ones(3).pin_memory().to("cuda", non_blocking=True)
    torch.tensor([1, 2], device="cuda")
    assert gpu.counts.pageable.total() == 2


def test_memory_is_counted_and_limited(gpu):
    x = torch.zeros(1000, device="cuda")
    view = x[:10]
    assert gpu.memory.allocated == 4000
    gpu.limit_memory(6000)
    with pytest.raises(torch.OutOfMemoryError):
        torch.zeros(1000, device="cuda")
    del x
    assert gpu.memory.allocated == 4000, "the view holds the storage"
    del view
    assert gpu.memory.allocated == 0
