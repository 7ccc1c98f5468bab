"""Tables of a pair of tokenizers that the projection reads: built once, cached on disk."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from engine.distill.align.vocabulary import ByteVocabulary
from engine.workspace import write_bytes

TABLES_VERSION = 2


@dataclass(frozen=True)
class ProjectionTables:
    """Byte prefixes and suffixes of the teacher's tokens, as the student encodes them.

    Teacher tokens with bytes are sorted by their bytes, so that all tokens that begin with the same
    bytes form a range. Byte offset k of sorted token n has index `start[n] + k` in the flat arrays,
    0 <= k < its length.

    Attributes:
        phi: (V_t,) student token that a teacher token starts with; -1 maps to the residual.
            The identity where both have the same tokenizer.
        order: (V_b,) teacher ids sorted by bytes.
        rank: (V_t,) index of a teacher id in `order`; -1 where it has no bytes.
        start: (V_b + 1,) index of a sorted token's first offset.
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
    """Build the tables of a pair of tokenizers; takes seconds for a vocabulary of 150,000.

    Args:
        teacher_ends: ids of all of the teacher's end-of-turn and end-of-text tokens (rule 4).
        student_eos: the student's token that gets their mass.
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
        # The same tokenizer: every token maps to itself, special and non-canonical ones too.
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
    """The tables from the cache in `folder`; built and cached where they are not there.

    A cached file carries the digest of its arrays, since a flipped bit would load silently.
    """
    parts = (TABLES_VERSION, teacher.digest, student.digest, sorted(teacher_ends), student_eos)
    key = hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
    path = folder / f"projection-{key}.safetensors"
    try:
        with safe_open(path, framework="np") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
        # The key too: a file of other vocabularies under this name has a valid digest of its own.
        if metadata == _metadata(key, arrays):
            return ProjectionTables(**arrays, student_size=student.size)
    except (OSError, SafetensorError, ValueError, TypeError, KeyError):
        pass  # absent or cut short: built again, like one with a wrong digest
    tables = build_tables(teacher, student, teacher_ends, student_eos)
    folder.mkdir(parents=True, exist_ok=True)
    arrays = _arrays(tables)
    write_bytes(path, save(arrays, metadata=_metadata(key, arrays)))
    return tables


def _metadata(key: str, arrays: Mapping[str, np.ndarray]) -> dict[str, str]:
    # One entry: safetensors writes several in an order that changes from process to process.
    return {"key and sha256": f"{key} {arrays_digest(arrays)}"}


def tables_digest(tables: ProjectionTables) -> str:
    """SHA-256 of the tables."""
    return arrays_digest(_arrays(tables))


def _arrays(tables: ProjectionTables) -> dict[str, np.ndarray]:
    return {
        field.name: np.ascontiguousarray(getattr(tables, field.name))
        for field in fields(tables)
        if field.name != "student_size"
    }


def arrays_digest(arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256 of arrays with their names, types and shapes, in order of name."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode())
        digest.update(np.ascontiguousarray(arrays[name]).data)
    return digest.hexdigest()
