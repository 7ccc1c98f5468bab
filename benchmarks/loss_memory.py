"""Measure `loss_memory_ratio`: memory of the loss, forward and backward, at 8,192 positions x
32,000 tokens, relative to the dense formula.

Each formula runs in its own processes, alternately. Measured is the peak of resident memory (VmHWM,
reset just before) minus the resident memory before: it includes what kernels allocate and the
gradients of both inputs. The dense formula has the same inputs and sparse targets, which it
makes dense for the KL term. Linux only.
"""

from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.timing import Figure, narrate, ratio
from engine import hardware
from engine.distill.teacher.soft_targets import SoftTargets
from engine.distill.train.losses import distillation_loss

BOUND = 0.125
POSITIONS, VOCABULARY = 8192, 32_000
# of the presets 1b and nano
HIDDEN_SIZES = {2048: "loss_memory_ratio", 256: "loss_memory_ratio_nano"}
REPETITIONS = 2
DENSE_BYTES = 8 << 30
ENTRIES = 64 + 32  # top entries and draws of a cached target
ALPHA, TEMPERATURE = 0.5, 2.0


def measure() -> dict[str, Figure]:
    """The wider student is the benchmark: most of its memory is the output matrix' gradient."""
    if not Path("/proc/self/clear_refs").exists():
        narrate("loss_memory_ratio: skipped, this system does not report peak memory")
        return {}
    if hardware.available_ram() < DENSE_BYTES:
        narrate("loss_memory_ratio: skipped, the dense formula needs 8 GiB of free memory")
        return {}
    figures = {}
    for hidden_size, name in HIDDEN_SIZES.items():
        peaks: dict[str, list[float]] = {"chunked": [], "dense": []}
        for _ in range(REPETITIONS):
            for which, values in peaks.items():
                values.append(_in_own_process(which, hidden_size))
        figures[name] = ratio(peaks["chunked"], peaks["dense"], BOUND, hidden_size=hidden_size)
    return figures


def _in_own_process(which: str, hidden_size: int) -> float:
    command = [sys.executable, "-m", __name__, which, str(hidden_size)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout)


def _inputs(positions: int, hidden_size: int) -> tuple[Tensor, Tensor, Tensor, SoftTargets]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(positions, hidden_size, generator=generator).requires_grad_()
    weight = torch.randn(VOCABULARY, hidden_size, generator=generator).mul_(0.02).requires_grad_()
    labels = torch.randint(VOCABULARY, (positions,), generator=generator)
    ids = torch.randint(VOCABULARY, (positions, ENTRIES), generator=generator)
    mass = torch.rand(positions, ENTRIES, generator=generator)
    mass /= mass.sum(1, keepdim=True)
    soft = SoftTargets(
        weight=torch.ones(positions),
        entropy=-torch.special.xlogy(mass, mass).sum(1),
        ids=ids,
        mass=mass,
    )
    return hidden, weight, labels, soft


def chunked(hidden: Tensor, weight: Tensor, labels: Tensor, soft: SoftTargets) -> None:
    """The engine's loss."""
    distillation_loss(
        hidden,
        weight,
        labels,
        soft,
        alpha=ALPHA,
        temperature=TEMPERATURE,
        denominator=float(len(labels)),
        compute_dtype=_dtype(),
    ).loss.backward()


def dense(hidden: Tensor, weight: Tensor, labels: Tensor, soft: SoftTargets) -> None:
    """The same formula over all logits at once."""
    assert soft.ids is not None and soft.mass is not None
    with torch.autocast("cpu", dtype=_dtype(), enabled=_dtype() != torch.float32):
        logits = F.linear(hidden, weight)
    z = logits.float()
    q = torch.zeros_like(z).scatter_add_(1, soft.ids, soft.mass)
    kl = F.kl_div((z / TEMPERATURE).log_softmax(1), q, reduction="none").sum(1)
    ce = F.cross_entropy(z, labels, reduction="none")
    share = ALPHA * soft.weight
    (share * TEMPERATURE**2 * kl + (1.0 - share) * ce).mean().backward()


def _dtype() -> torch.dtype:
    return torch.bfloat16 if hardware.has_bf16() else torch.float32


def _status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def main(which: str, hidden_size: int) -> None:
    """Prints the extra bytes of one formula."""
    torch.set_num_threads(hardware.physical_cores())
    formula = {"chunked": chunked, "dense": dense}[which]
    formula(*_inputs(64, hidden_size))  # loads the kernels
    inputs = _inputs(POSITIONS, hidden_size)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = _status_bytes("VmRSS")
    formula(*inputs)
    print(_status_bytes("VmHWM") - before)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
