"""Project a teacher's next-token distribution into the student's vocabulary.

Byte-prefix marginalisation (arXiv 2607.22334) in five rules: token boundaries agree (1), the
student is inside a teacher token (2), its token runs past the teacher's (3), ends of turn map by
role (4), and what cannot be mapped is the residual R (5).

Shapes: M teacher positions, n student positions of a chunk, V_t and V_s vocabularies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from engine.determinism import cumsum
from engine.distill.align.alignment import Alignment
from engine.distill.align.tables import ProjectionTables
from engine.distill.device import to_device


@dataclass(frozen=True)
class Projected:
    """The projection of a chunk of positions.

    Attributes:
        index: (n,) student positions, consecutive indices into the alignment.
        q: (V_s, n) float32, renormalised without the residual; columns without a soft target are 0.
        residual: (n,) R before renormalising.
        mass: (n,) m under rule 2, else 1.
        weight: (n,) w = (1 - R) m; 0 without a soft target.
        span: the same positions as `index`, on the host.
    """

    index: Tensor
    q: Tensor
    residual: Tensor
    mass: Tensor
    weight: Tensor
    span: slice


@dataclass(frozen=True)
class _Ranges:
    """Ranges of the teacher's sorted tokens.

    Attributes:
        lo, sizes: (n,) int64, first token and number of tokens.
        total: sum of the sizes.
    """

    lo: Tensor
    sizes: Tensor
    total: int


class Projector:
    """Projects a teacher's logits for one pair of tokenizers, on one device.

    Vectorised over positions and tokens: rule 1 sums teacher rows per student token, rule 2 is a
    ragged gather and scatter over ranges of the sorted vocabulary, rule 3 moves one number per
    crossing position.
    """

    def __init__(
        self, tables: ProjectionTables, device: torch.device | str = "cpu", min_mass: float = 0.05
    ) -> None:
        self.device = torch.device(device)
        self.min_mass = min_mass
        self.student_size = tables.student_size
        self.residual_row = tables.student_size

        def put(array: np.ndarray) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)

        to_row = lambda ids: np.where(ids < 0, self.residual_row, ids)  # noqa: E731
        self.phi = put(to_row(tables.phi))
        self.suffix_phi = put(to_row(tables.suffix_phi))
        self.order = put(tables.order)
        self.rank = put(tables.rank)
        self.start = put(tables.start)
        self._tables = tables
        identity = np.arange(len(tables.phi))
        self.same_vocabulary = bool(
            tables.student_size == len(tables.phi) and np.array_equal(tables.phi, identity)
        )
        self._gather = self._bags(tables) if self.device.type == "cpu" else None

    def _bags(self, tables: ProjectionTables) -> tuple[Tensor, Tensor]:
        """Teacher tokens grouped by student token and residual, (V_t,), and where groups begin,
        (V_s + 2,). On a CPU `embedding_bag` sums them several times as fast as index_add."""
        rows = self.phi.cpu()
        counts = torch.bincount(rows, minlength=tables.student_size + 1)
        bounds = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        return torch.argsort(rows, stable=True), bounds

    def project(
        self,
        logits: Callable[[int, int], Tensor],
        alignment: Alignment,
        chunk: int = 128,
    ) -> Iterator[Projected]:
        """Project all positions of `alignment`, chunk by chunk.

        Args:
            logits: called as logits(first, stop) for teacher positions; returns float32 logits in
                columns, (V_t, stop - first), which may be overwritten.
            chunk: teacher positions whose logits are in memory at a time.

        Chunks are made from the end of the text to its start: rule 3 needs the probabilities of
        later teacher positions.
        """
        count = len(alignment.teacher_ids)
        at, offset = self._put(alignment.at), self._put(alignment.offset)
        token, soft = self._put(alignment.token), self._put(alignment.soft)
        inside_stop, realised = self._put(alignment.inside_stop), self._put(alignment.teacher_ids)
        # Metal has no float64.
        exact = torch.float32 if self.device.type == "mps" else torch.float64
        log_real = torch.zeros(count, device=self.device, dtype=exact)
        rest_mass = torch.ones(len(alignment), device=self.device)
        # Student positions sorted by the teacher position that has the rest of their token, and by
        # the one that they start in: a chunk of teacher positions is then a slice of both. Indices
        # and sizes are computed on the host: the device would have to be waited for.
        by_rest = np.flatnonzero(alignment.rest_at >= 0)
        by_rest = by_rest[np.argsort(alignment.rest_at[by_rest], kind="stable")]
        rest_sorted = alignment.rest_at[by_rest]

        for first in reversed(range(0, count, chunk)):
            stop = min(first + chunk, count)
            p, total = _softmax_columns(logits(first, stop))
            log_real[first:stop] = self._log_realised(p, total, realised[first:stop], exact)
            lo, hi = np.searchsorted(rest_sorted, [first, stop])
            if hi > lo:
                positions, at_rest = by_rest[lo:hi], rest_sorted[lo:hi]
                column = self._put(at_rest - first)
                realised_rest = alignment.teacher_ids[at_rest]
                ranges = self._ranges(realised_rest, alignment.rest_length[positions])
                sums = self._range_sums(p, column, ranges)
                rest_mass[self._put(positions)] = sums / total[column]
            lo, hi = (int(n) for n in np.searchsorted(alignment.at, [first, stop]))
            if hi > lo:
                yield self._assemble(
                    p,
                    total,
                    span=slice(lo, hi),
                    column=at[lo:hi] - first,
                    offset=offset[lo:hi],
                    token=token[lo:hi],
                    soft=soft[lo:hi],
                    teacher_token=realised[at[lo:hi]],
                    moved=self._moved(at[lo:hi], inside_stop[lo:hi], rest_mass[lo:hi], log_real),
                    inside=self._inside(alignment, lo, hi),
                )

    def _put(self, array: np.ndarray) -> Tensor:
        return to_device(torch.from_numpy(array), self.device)

    def _inside(self, alignment: Alignment, lo: int, hi: int) -> tuple[Tensor, _Ranges]:
        """The positions of rule 2 among [lo, hi), as indices from lo, and their sorted tokens."""
        at, offset = alignment.at[lo:hi], alignment.offset[lo:hi]
        inside = np.flatnonzero(offset)
        ranges = self._ranges(alignment.teacher_ids[at[inside]], offset[inside])
        return self._put(inside), ranges

    def _log_realised(
        self, p: Tensor, total: Tensor, realised: Tensor, dtype: torch.dtype
    ) -> Tensor:
        """(c,) log p of the realised teacher token of each column; 0 at ends of turn (-1)."""
        columns = torch.arange(len(realised), device=self.device)
        # A column that is not finite must not spoil the sums of the others.
        p_real = (p[realised.clamp_min(0), columns] / total).nan_to_num(0.0)
        return torch.where(realised >= 0, p_real.clamp_min(1e-38).to(dtype).log(), 0.0)

    def _moved(self, at: Tensor, inside_stop: Tensor, rest: Tensor, log_real: Tensor) -> Tensor:
        """Rule 3: pi, (n,), of each crossing position; 0 where the token does not cross."""
        sums = torch.cat([log_real.new_zeros(1), cumsum(log_real, 0)])
        stop = inside_stop.clamp_min(0)
        product = (sums[torch.maximum(stop, at)] - sums[at]).exp().float()
        return torch.where(inside_stop >= 0, product * rest, 0.0)

    def _assemble(
        self,
        p: Tensor,
        total: Tensor,
        *,
        span: slice,
        column: Tensor,
        offset: Tensor,
        token: Tensor,
        soft: Tensor,
        teacher_token: Tensor,
        moved: Tensor,
        inside: tuple[Tensor, _Ranges],
    ) -> Projected:
        """The projection of the student positions `span`.

        Args:
            p, total: (V_t, c) unnormalised probabilities of the chunk, and their sums (c,).
            column: (n,) column of p that covers the first byte of each student token.
            offset: (n,) bytes of the teacher's token before it.
            token, teacher_token: (n,) realised tokens.
            soft: (n,) whether there may be a soft target.
            moved: (n,) pi of rule 3.
            inside: positions of rule 2, indices into the n, and their sorted tokens.
        """
        index = torch.arange(span.start, span.stop, device=self.device)
        n = len(index)
        each = torch.arange(n, device=self.device)
        aligned = offset == 0
        q = self._rule_1(p).index_select(1, column)  # (V_s + 1, n)
        q /= total[column]
        mass = torch.ones(n, device=self.device)
        which, ranges = inside
        if len(which):
            mass[which] = self._rule_2(q, p, total, which, column, offset, ranges)
        source = torch.where(
            aligned,
            self.phi[teacher_token.clamp_min(0)],
            self.suffix_phi[
                torch.where(aligned, 0, self.start[self.rank[teacher_token.clamp_min(0)]] + offset)
            ],
        )
        pi = torch.minimum(moved / mass.clamp_min(1e-30), q[source, each])
        q[source, each] -= pi
        q[token, each] += pi

        # Where the expert's logits are not finite, nothing can be mapped.
        residual = q[self.residual_row].nan_to_num(1.0).clamp(0.0, 1.0)
        q = q[: self.student_size]
        kept = q.sum(0)
        has_target = soft & (mass >= self.min_mass) & (kept > 1e-6)
        q *= torch.where(has_target, 1.0 / kept.clamp_min(1e-30), 0.0)
        if q.is_cuda:
            q.masked_fill_(~has_target, 0.0)
        else:  # fewer numbers are written
            q.index_fill_(1, torch.nonzero(~has_target).flatten(), 0.0)
        weight = torch.where(has_target, (1.0 - residual) * mass, 0.0)
        return Projected(index=index, q=q, residual=residual, mass=mass, weight=weight, span=span)

    def _rule_2(
        self,
        q: Tensor,
        p: Tensor,
        total: Tensor,
        inside: Tensor,
        column: Tensor,
        offset: Tensor,
        ranges: _Ranges,
    ) -> Tensor:
        """Overwrite the columns `inside` of q, (V_s + 1, n), by rule 2; returns their mass m."""
        q[:, inside] = 0.0
        # p of every token in range that has bytes beyond the prefix
        (which, rank), values = self._ragged(p, column[inside], ranges)
        begin = self.start[rank] + offset[inside][which]
        longer = begin < self.start[rank + 1]
        values = torch.where(longer, values, 0.0) / total[column[inside]][which]
        rows = self.suffix_phi[torch.where(longer, begin, 0)]
        q.view(-1).index_add_(0, rows * q.shape[1] + inside[which], values)
        mass = torch.zeros(len(inside), device=self.device).index_add_(0, which, values)
        q[:, inside] /= mass.clamp_min(1e-30)
        return mass

    def _rule_1(self, p: Tensor) -> Tensor:
        """Rule 1 for every column: (V_t, n) to (V_s + 1, n), not normalised."""
        if self.same_vocabulary:
            return torch.cat([p, p.new_zeros(1, p.shape[1])])
        if self._gather is not None:
            tokens, bounds = self._gather
            return F.embedding_bag(tokens, p, bounds, mode="sum", include_last_offset=True)
        q = p.new_zeros(self.student_size + 1, p.shape[1])
        return q.index_add_(0, self.phi, p)

    def _ranges(self, token: np.ndarray, length: np.ndarray) -> _Ranges:
        """Sorted tokens that begin with the first `length` bytes of `token`, for (n,) of both."""
        tables = self._tables
        slot = tables.start[tables.rank[token]] + length
        lo = tables.prefix_lo[slot].astype(np.int64)
        sizes = tables.prefix_hi[slot].astype(np.int64) - lo
        return _Ranges(lo=self._put(lo), sizes=self._put(sizes), total=int(sizes.sum()))

    def _ragged(
        self, p: Tensor, column: Tensor, ranges: _Ranges
    ) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """All entries of the ranges, flat: ((number of the range, sorted token), p)."""
        lo, sizes = ranges.lo, ranges.sizes
        each = torch.arange(len(lo), device=self.device)
        which = torch.repeat_interleave(each, sizes, output_size=ranges.total)
        begins = sizes.cumsum(0) - sizes
        rank = torch.arange(ranges.total, device=self.device) - begins[which] + lo[which]
        return (which, rank), p[self.order[rank], column[which]]

    def _range_sums(self, p: Tensor, column: Tensor, ranges: _Ranges) -> Tensor:
        (which, _), values = self._ragged(p, column, ranges)
        return torch.zeros(len(column), device=self.device).index_add_(0, which, values)


def _softmax_columns(logits: Tensor) -> tuple[Tensor, Tensor]:
    """exp(logits - max) in place, (V_t, n), and its sums, (n,)."""
    logits -= logits.amax(0, keepdim=True)
    logits.exp_()
    return logits, logits.sum(0)
