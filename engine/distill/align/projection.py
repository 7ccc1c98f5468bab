"""Owns the projection of a teacher's next-token distribution into the student's vocabulary.

Byte-prefix marginalisation (arXiv 2607.22334), in the five rules of this project's design:
boundaries agree (1), the student stands inside a teacher token (2), its token runs past the
teacher's (3), ends of turn map by role (4), and what cannot be mapped is the residual R (5).
It does not own temperatures, sparse targets or the loss.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor

from engine.distill.align.vocabulary import ByteVocabulary

TABLES_VERSION = 2
RULE_ALIGNED, RULE_INSIDE = 1, 2


@dataclass(frozen=True)
class ProjectionTables:
    """What the projection needs to know of a pair of tokenizers.

    Tokens with bytes are held in the order of their bytes, so that "all tokens that begin with
    these bytes" is a range. An *offset* k of sorted token n stands at `start[n] + k` in the flat
    arrays, 0 <= k < its length.

    Attributes:
        phi: (V_t,) student token that a teacher token starts with; -1 maps to the residual.
            The identity where both have the same tokenizer.
        order: (V_b,) teacher ids sorted by bytes.
        rank: (V_t,) where a teacher id stands in `order`; -1 where it has no bytes.
        start: (V_b + 1,) where a sorted token's offsets begin.
        suffix_phi: (S,) student token that the token's bytes from offset k on start with.
        prefix_lo, prefix_hi: (S,) range of sorted tokens that begin with the token's first k bytes.
        student_size: V_s, rows of the student's embedding matrix.
    """

    phi: np.ndarray
    order: np.ndarray
    rank: np.ndarray
    start: np.ndarray
    suffix_phi: np.ndarray
    prefix_lo: np.ndarray
    prefix_hi: np.ndarray
    student_size: int


def build_tables(
    teacher: ByteVocabulary,
    student: ByteVocabulary,
    teacher_ends: Sequence[int],
    student_eos: int,
) -> ProjectionTables:
    """The tables of a pair of tokenizers; seconds for a vocabulary of 150,000.

    Args:
        teacher_ends: ids of all of the teacher's end-of-turn and end-of-text tokens (rule 4).
        student_eos: id that their mass goes to.
    """
    spelled = [(b, t) for t, b in enumerate(teacher.token_bytes) if b is not None]
    spelled.sort()
    tokens = [b for b, _ in spelled]
    order = np.array([t for _, t in spelled], dtype=np.int64)
    rank = np.full(teacher.size, -1, dtype=np.int64)
    rank[order] = np.arange(len(order))
    lengths = np.array([len(b) for b in tokens], dtype=np.int64)
    start = np.concatenate([[0], np.cumsum(lengths)])

    suffixes: dict[bytes, int] = {}
    where = np.empty(start[-1], dtype=np.int64)
    slot = 0
    for token in tokens:
        for k in range(len(token)):
            where[slot] = suffixes.setdefault(token[k:], len(suffixes))
            slot += 1
    suffix_phi = student.first_tokens(list(suffixes))[where]

    phi = np.full(teacher.size, -1, dtype=np.int64)
    phi[order] = suffix_phi[start[:-1]]
    if teacher.digest == student.digest:
        # The identity path: no token is inside another, and every token, special or not canonical,
        # is its own image.
        phi = np.arange(teacher.size, dtype=np.int64)
    phi[np.asarray(teacher_ends, dtype=np.int64)] = student_eos
    lo, hi = _prefix_ranges(tokens, lengths, start)
    return ProjectionTables(
        phi=phi,
        order=order,
        rank=rank,
        start=start,
        suffix_phi=suffix_phi.astype(np.int64),
        prefix_lo=lo,
        prefix_hi=hi,
        student_size=student.size,
    )


def _prefix_ranges(
    tokens: list[bytes], lengths: np.ndarray, start: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """For each sorted token and offset k: the range of tokens that share its first k bytes."""
    count = len(tokens)
    shared = np.zeros(count + 1, dtype=np.int64)  # with the token before; 0 at both ends
    for n in range(1, count):
        shared[n] = len(os.path.commonprefix((tokens[n - 1], tokens[n])))  # noqa: RUF071 (bytes)
    lo = np.empty(start[-1], dtype=np.int64)
    hi = np.empty(start[-1], dtype=np.int64)
    index = np.arange(count)
    for k in range(int(lengths.max(initial=0))):
        opens = shared[:-1] < k if k else index == 0
        closes = shared[1:] < k if k else index == count - 1
        first = np.maximum.accumulate(np.where(opens, index, 0))
        last = np.minimum.accumulate(np.where(closes, index, count)[::-1])[::-1]
        has = lengths > k
        lo[start[:-1][has] + k] = first[has]
        hi[start[:-1][has] + k] = last[has] + 1
    return lo, hi


def load_tables(
    folder: Path,
    teacher: ByteVocabulary,
    student: ByteVocabulary,
    teacher_ends: Sequence[int],
    student_eos: int,
) -> ProjectionTables:
    """The tables from the cache in `folder`, built and kept there when they are not.

    A kept file carries the digest of its arrays: one flipped bit would load silently.
    """
    parts = (TABLES_VERSION, teacher.digest, student.digest, sorted(teacher_ends), student_eos)
    key = hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
    path = folder / f"projection-{key}.safetensors"
    try:
        with safe_open(path, framework="np") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            known = (file.metadata() or {}).get("sha256")
        if known == _arrays_digest(arrays):
            return ProjectionTables(**arrays, student_size=student.size)
    except (OSError, SafetensorError):
        pass  # absent or cut short: made anew, as one with a wrong digest is
    tables = build_tables(teacher, student, teacher_ends, student_eos)
    folder.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".tmp{os.getpid()}")
    arrays = {
        field.name: np.ascontiguousarray(getattr(tables, field.name))
        for field in fields(tables)
        if field.name != "student_size"
    }
    save_file(arrays, temporary, metadata={"sha256": _arrays_digest(arrays)})
    temporary.rename(path)
    return tables


def _arrays_digest(arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode())
        digest.update(np.ascontiguousarray(arrays[name]).data)
    return digest.hexdigest()


@dataclass(frozen=True)
class Alignment:
    """How the scored positions of a student and a teacher lie over the same bytes.

    N student positions and M teacher positions, in the order of the text. All arrays but
    `teacher_ids` are (N,) int64.

    Attributes:
        teacher_ids: (M,) realised teacher token at each position; -1 at an end of turn.
        at: teacher position whose token covers the student token's first byte.
        offset: bytes of that token before it (0 under rule 1).
        token: realised student token.
        inside_stop: teacher tokens at+1 .. inside_stop-1 lie wholly inside a crossing token;
            -1 where the student's token does not cross (rule 3 does not apply).
        rest_at: teacher position that begins with what remains of a crossing token; -1 if nothing.
        rest_length: bytes that remain.
        soft: bool; False where the expert must not be heard (cross-entropy only).
    """

    teacher_ids: np.ndarray
    at: np.ndarray
    offset: np.ndarray
    token: np.ndarray
    inside_stop: np.ndarray
    rest_at: np.ndarray
    rest_length: np.ndarray
    soft: np.ndarray

    def __len__(self) -> int:
        return len(self.at)


def align(
    teacher_ids: np.ndarray,
    teacher_lengths: np.ndarray,
    student_ids: np.ndarray,
    student_lengths: np.ndarray,
) -> Alignment:
    """The alignment of two encodings, (M,) and (N,), of the same bytes.

    Lengths are the bytes that each token covers; both must sum to the same number.
    """
    teacher_end = np.cumsum(teacher_lengths)
    teacher_start = teacher_end - teacher_lengths
    student_end = np.cumsum(student_lengths)
    student_start = student_end - student_lengths
    count = len(student_ids)
    at = np.searchsorted(teacher_end, student_start, side="right")
    offset = student_start - teacher_start[at] if count else np.zeros(0, dtype=np.int64)
    last = np.searchsorted(teacher_end, student_end, side="left")
    ends_with = teacher_end[last] == student_end if count else np.zeros(0, dtype=bool)
    crosses = last > at
    return Alignment(
        teacher_ids=teacher_ids.astype(np.int64),
        at=at.astype(np.int64),
        offset=offset.astype(np.int64),
        token=student_ids.astype(np.int64),
        inside_stop=np.where(crosses, last + ends_with, -1),
        rest_at=np.where(crosses & ~ends_with, last, -1),
        rest_length=np.where(crosses & ~ends_with, student_end - teacher_start[last], 0)
        if count
        else np.zeros(0, dtype=np.int64),
        soft=np.ones(count, dtype=bool),
    )


def concatenate(parts: Sequence[Alignment]) -> Alignment:
    """One alignment of several texts, one after the other."""
    shifts = np.cumsum([0, *(len(part.teacher_ids) for part in parts)])[:-1]

    def joined(name: str, shifted: bool = False) -> np.ndarray:
        arrays = [getattr(part, name) for part in parts]
        if shifted:
            arrays = [
                np.where(array >= 0, array + shift, -1)
                for array, shift in zip(arrays, shifts, strict=True)
            ]
        return np.concatenate(arrays)

    return Alignment(
        teacher_ids=joined("teacher_ids"),
        at=joined("at", shifted=True),
        offset=joined("offset"),
        token=joined("token"),
        inside_stop=joined("inside_stop", shifted=True),
        rest_at=joined("rest_at", shifted=True),
        rest_length=joined("rest_length"),
        soft=joined("soft"),
    )


@dataclass(frozen=True)
class Projected:
    """The projection of a chunk of positions.

    Attributes:
        index: (n,) student positions, as indices into the alignment.
        q: (V_s, n) float32, renormalised without the residual; columns without a soft target are 0.
        residual: (n,) R before renormalising.
        mass: (n,) m under rule 2, else 1.
        weight: (n,) w = (1 - R) m; 0 without a soft target.
    """

    index: Tensor
    q: Tensor
    residual: Tensor
    mass: Tensor
    weight: Tensor


class Projector:
    """Projects a teacher's logits for one pair of tokenizers, on one device.

    Vectorised over positions and tokens: rule 1 sums rows in bags, rule 2 is a ragged
    gather and scatter over ranges of the sorted vocabulary, rule 3 moves one number per crossing.
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
        self.prefix_lo = put(tables.prefix_lo)
        self.prefix_hi = put(tables.prefix_hi)
        identity = np.arange(len(tables.phi))
        self.same_vocabulary = bool(
            tables.student_size == len(tables.phi) and np.array_equal(tables.phi, identity)
        )
        self._gather = self._bags(tables) if self.device.type == "cpu" else None

    def _bags(self, tables: ProjectionTables) -> tuple[Tensor, Tensor]:
        """Rule 1 as ragged rows: the teacher tokens of each student token and the residual, one
        after the other, (V_t,), and where each begins, (V_s + 2,). Summed by `embedding_bag`, on a
        CPU several times as fast as index_add or a sparse product."""
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
        """Projects all positions of `alignment`, chunk by chunk.

        Args:
            logits: called as logits(first, stop) for teacher positions; gives (V_t, stop - first)
                float32, columns before softmax; it may be written to.
            chunk: teacher positions whose logits exist at a time.

        The chunks come from the end of the text to its start: rule 3 wants probabilities of later
        teacher positions, which are known then.
        """
        count = len(alignment.teacher_ids)
        put = lambda array: torch.from_numpy(array).to(self.device)  # noqa: E731
        at, offset = put(alignment.at), put(alignment.offset)
        token, soft = put(alignment.token), put(alignment.soft)
        inside_stop, rest_at = put(alignment.inside_stop), put(alignment.rest_at)
        rest_length = put(alignment.rest_length)
        realised = put(alignment.teacher_ids)
        # Metal has no float64
        exact = torch.float32 if self.device.type == "mps" else torch.float64
        log_real = torch.zeros(count, device=self.device, dtype=exact)
        rest_mass = torch.ones(len(alignment), device=self.device)
        # Positions of the students' tokens, grouped by the teacher position they start in and the
        # one that holds what remains of them: both are cut by chunks of teacher positions.
        by_rest = torch.nonzero(rest_at >= 0).flatten()
        by_rest = by_rest[torch.argsort(rest_at[by_rest], stable=True)]
        rest_sorted = rest_at[by_rest].contiguous()
        at_sorted = at.contiguous()

        for first in reversed(range(0, count, chunk)):
            stop = min(first + chunk, count)
            p, total = _softmax_columns(logits(first, stop))
            known = realised[first:stop]
            columns = torch.arange(stop - first, device=self.device)
            # a column that is not finite must not spoil the sums of the others
            p_real = (p[known.clamp_min(0), columns] / total).nan_to_num(0.0)
            log_real[first:stop] = torch.where(
                known >= 0, p_real.clamp_min(1e-38).to(exact).log(), 0.0
            )
            lo, hi = _bounds(rest_sorted, first, stop)
            if hi > lo:
                positions = by_rest[lo:hi]
                where = rest_at[positions]
                ranges = self._range(realised[where], rest_length[positions])
                rest_mass[positions] = (
                    self._range_sums(p, where - first, *ranges) / total[where - first]
                )
            lo, hi = _bounds(at_sorted, first, stop)
            if hi > lo:
                index = torch.arange(lo, hi, device=self.device)
                yield self._assemble(
                    p,
                    total,
                    index,
                    at[lo:hi] - first,
                    offset[lo:hi],
                    token[lo:hi],
                    soft[lo:hi],
                    realised[at[lo:hi]],
                    self._moved(at[lo:hi], inside_stop[lo:hi], rest_mass[lo:hi], log_real),
                )

    def _moved(self, at: Tensor, inside_stop: Tensor, rest: Tensor, log_real: Tensor) -> Tensor:
        """Rule 3: pi, (n,), of each crossing position; 0 where nothing crosses."""
        sums = torch.cat([log_real.new_zeros(1), log_real.cumsum(0)])
        stop = inside_stop.clamp_min(0)
        product = (sums[torch.maximum(stop, at)] - sums[at]).exp().float()
        return torch.where(inside_stop >= 0, product * rest, 0.0)

    def _assemble(
        self,
        p: Tensor,
        total: Tensor,
        index: Tensor,
        column: Tensor,
        offset: Tensor,
        token: Tensor,
        soft: Tensor,
        teacher_token: Tensor,
        moved: Tensor,
    ) -> Projected:
        """q of the student positions `index`, whose teacher columns are `column` of p."""
        n = len(index)
        each = torch.arange(n, device=self.device)
        aligned = offset == 0
        used = self._whole(p)
        q = used.index_select(1, column)
        q /= total[column]
        mass = torch.ones(n, device=self.device)
        inside = torch.nonzero(~aligned).flatten()
        if len(inside):
            q[:, inside] = 0.0
            lo, hi = self._range(teacher_token[inside], offset[inside])
            # p of every token in range whose bytes go on beyond the prefix
            entries, values = self._ragged(p, column[inside], lo, hi)
            rank = entries[1]
            begin = self.start[rank] + offset[inside][entries[0]]
            longer = begin < self.start[rank + 1]
            values = torch.where(longer, values, 0.0) / total[column[inside]][entries[0]]
            rows = self.suffix_phi[torch.where(longer, begin, 0)]
            flat = rows * n + inside[entries[0]]
            q.view(-1).index_add_(0, flat, values)
            mass[inside] = torch.zeros(len(inside), device=self.device).index_add_(
                0, entries[0], values
            )
            q[:, inside] /= mass[inside].clamp_min(1e-30)
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

        # where the expert's logits are not finite, nothing can be mapped
        residual = q[self.residual_row].nan_to_num(1.0).clamp(0.0, 1.0)
        q = q[: self.student_size]
        kept = q.sum(0)
        heard = soft & (mass >= self.min_mass) & (kept > 1e-6)
        q *= torch.where(heard, 1.0 / kept.clamp_min(1e-30), 0.0)
        q.index_fill_(1, torch.nonzero(~heard).flatten(), 0.0)
        weight = torch.where(heard, (1.0 - residual) * mass, 0.0)
        return Projected(index=index, q=q, residual=residual, mass=mass, weight=weight)

    def _whole(self, p: Tensor) -> Tensor:
        """Rule 1 for every column: (V_t, n) to (V_s + 1, n), not normalised."""
        if self.same_vocabulary:
            return torch.cat([p, p.new_zeros(1, p.shape[1])])
        if self._gather is not None:
            tokens, bounds = self._gather
            return F.embedding_bag(tokens, p, bounds, mode="sum", include_last_offset=True)
        q = p.new_zeros(self.student_size + 1, p.shape[1])
        return q.index_add_(0, self.phi, p)

    def _range(self, token: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
        """Sorted tokens [lo, hi) that begin with the first `length` bytes of `token`."""
        slot = self.start[self.rank[token]] + length
        return self.prefix_lo[slot], self.prefix_hi[slot]

    def _ragged(
        self, p: Tensor, column: Tensor, lo: Tensor, hi: Tensor
    ) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """All entries of the ranges, flat: ((which range, sorted token), p of it)."""
        sizes = hi - lo
        which = torch.repeat_interleave(torch.arange(len(lo), device=self.device), sizes)
        begins = sizes.cumsum(0) - sizes
        rank = torch.arange(len(which), device=self.device) - begins[which] + lo[which]
        return (which, rank), p[self.order[rank], column[which]]

    def _range_sums(self, p: Tensor, column: Tensor, lo: Tensor, hi: Tensor) -> Tensor:
        (which, _), values = self._ragged(p, column, lo, hi)
        return torch.zeros(len(lo), device=self.device).index_add_(0, which, values)


def _softmax_columns(logits: Tensor) -> tuple[Tensor, Tensor]:
    """exp(logits - max) in place, (V_t, n), and its sums, (n,)."""
    logits -= logits.amax(0, keepdim=True)
    logits.exp_()
    return logits, logits.sum(0)


def _bounds(values: Tensor, first: int, stop: int) -> tuple[int, int]:
    """The slice of ascending `values` that lies in [first, stop)."""
    edges = torch.tensor([first, stop], device=values.device)
    lo, hi = torch.searchsorted(values, edges).tolist()
    return lo, hi
