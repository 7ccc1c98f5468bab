"""How much each layer of the student changes: relative update, distance from the initial weights.

Norms are estimated from a fixed sample of each matrix, of which two copies are kept: at most
`SAMPLE` weights a matrix, 2 x 4 bytes x 8,192 = 64 KiB each (11 MB for the preset 1b). Matrices
that are not larger are measured exactly; the standard error of the others is about 1%.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from engine.events import LayerGroup, LayerStats
from engine.run.job import JobContext

SAMPLE = 8192
"""Most weights of a matrix that are sampled."""

Kind = Literal["attention", "mlp", "embeddings", "head"]


@dataclass(frozen=True)
class _Matrix:
    """One weight matrix: where it belongs, and the positions that are sampled.

    Attributes:
        block: of attention and mlp; else 0.
        stride: every so many weights, counted along the flattened matrix.
    """

    kind: Kind
    block: int
    weight: Tensor
    stride: int

    def sample(self) -> Tensor:
        """(n,) the sampled weights; a view, except on a matrix that is not contiguous."""
        return self.weight.detach().flatten()[:: self.stride]


class LayerMonitor:
    """Emits LayerStats at each log interval.

    Create it while the model has its initial weights. They are made from the seed at every start,
    before a checkpoint is loaded, so a resumed run measures its distance from the same ones.
    """

    def __init__(self, model: LlamaForCausalLM, interval: int, ctx: JobContext) -> None:
        """`interval`: steps between two reports."""
        self._matrices = _matrices(model)
        self._interval = interval
        self._ctx = ctx
        self._initial = self._samples()
        self._former: list[Tensor] | None = self._initial
        """The samples at the former report; None until the next one."""

    def restored(self) -> None:
        """The weights were loaded from a checkpoint: the interval in progress is not reported."""
        self._former = None

    def step_done(self, step: int) -> None:
        """Report, if a log interval ends with this step."""
        if step % self._interval:
            return
        samples = self._samples()
        if self._former is not None:
            weights = _squares(samples)
            update = _squares(_differences(samples, self._on_device(self._former)))
            moved = _squares(_differences(samples, self._on_device(self._initial)))
            squares = torch.stack([weights, update, moved]).tolist()  # one wait for the device
            self._ctx.emit(
                LayerStats(step=step, interval=self._interval, groups=self._groups(*squares))
            )
        self._former = samples

    def _samples(self) -> list[Tensor]:
        return [matrix.sample().float().clone() for matrix in self._matrices]

    def _on_device(self, samples: list[Tensor]) -> list[Tensor]:
        """The samples on the device of the weights, which may have moved."""
        device = self._matrices[0].weight.device
        return [sample.to(device) for sample in samples]

    def _groups(
        self, weights: list[float], update: list[float], moved: list[float]
    ) -> tuple[LayerGroup, ...]:
        """The groups, from sums of squares by matrix."""
        sums: dict[Kind, dict[int, list[float]]] = {}
        for matrix, *squares in zip(self._matrices, weights, update, moved, strict=True):
            scale = matrix.weight.numel() / len(range(0, matrix.weight.numel(), matrix.stride))
            total = sums.setdefault(matrix.kind, {}).setdefault(matrix.block, [0.0, 0.0, 0.0])
            for n, value in enumerate(squares):
                total[n] += scale * value
        return tuple(
            LayerGroup(
                kind=kind,
                update=tuple(
                    _ratio(blocks[block][1], blocks[block][0]) for block in sorted(blocks)
                ),
                moved=tuple(_ratio(blocks[block][2], blocks[block][0]) for block in sorted(blocks)),
            )
            for kind, blocks in sums.items()
        )


def _matrices(model: LlamaForCausalLM) -> list[_Matrix]:
    """The weight matrices; a tied output matrix counts as embeddings. The vectors of the norms are
    left out: they are few, and their norm would hide what the matrices do."""
    found = []
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2:
            continue
        kind: Kind = "head"
        block = 0
        if ".layers." in name:
            block = int(name.split(".layers.")[1].split(".")[0])
            kind = "attention" if ".self_attn." in name else "mlp"
        elif "embed_tokens" in name:
            kind = "embeddings"
        found.append(_Matrix(kind, block, parameter, _stride(parameter)))
    return found


def _stride(matrix: Tensor) -> int:
    """Distance of the sampled weights. It has no factor in common with the length of the rows, so
    that all rows and columns are sampled."""
    stride = -(-matrix.numel() // SAMPLE)
    while math.gcd(stride, matrix.shape[-1]) > 1:
        stride += 1
    return stride


def _differences(after: list[Tensor], before: list[Tensor]) -> list[Tensor]:
    return list(torch._foreach_sub(after, before))  # type: ignore[attr-defined]


def _squares(tensors: list[Tensor]) -> Tensor:
    """(n,) the squared norm of each tensor."""
    return torch.stack(list(torch._foreach_norm(tensors))).square()  # type: ignore[attr-defined]


def _ratio(change: float, weight: float) -> float | None:
    """The norm of the change over that of the weights, from their squares."""
    if not (math.isfinite(change) and math.isfinite(weight)) or weight <= 0:
        return None
    return math.sqrt(change / weight)
