"""Owns the lens: fixed sentences along which the student's next-token distribution is laid beside
the projected expert's. It trains nothing, draws no random number and changes no state.

The expert's part is computed once, while the expert is loaded, and kept beside its targets.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from torch import Tensor
from transformers import LlamaForCausalLM

from engine.distill.align.blocks import ChatEncoder, EncodedBlock, TextBlock, make_blocks
from engine.distill.align.projection import Projector
from engine.distill.align.vocabulary import ByteVocabulary
from engine.distill.data.packing import make_batch
from engine.distill.teacher.scoring import projection_chunk, teacher_forward
from engine.distill.teacher.teacher import Teacher
from engine.distill.train.forward import hidden_states
from engine.events import ProbePosition, ProbeRead, ProbeToken
from engine.text.examples import Example, encode_example, read_data_file
from engine.workspace import assets_dir, write_bytes

MAX_POSITIONS = 24
"""Of a sentence; what comes after is left out."""
SHOWN = 4
"""Most probable tokens of the student, and of the expert, that are told."""

Rule = Literal["aligned", "inside", "crossing", "end"]
_RULES: tuple[Rule, ...] = ("aligned", "inside", "crossing", "end")


@dataclass(frozen=True)
class ExpertProbes:
    """What one expert says along the sentences: P of them, N positions in all.

    Attributes:
        which: (P,) number of each sentence among those that ship.
        rows: the student's reading of each sentence.
        rule: (N,) index into _RULES.
        q: (N, V) float32, projected at T = 1; zeros where it is not output.
        kept: (N,) float32, mass that the projection kept; 0 where it is not output.
    """

    which: np.ndarray
    rows: tuple[EncodedBlock, ...]
    rule: np.ndarray
    q: np.ndarray
    kept: np.ndarray


def sentences() -> list[Example]:
    """The probe sentences that ship."""
    return list(read_data_file(assets_dir() / "probes" / "probes.jsonl"))


def _digest() -> str:
    return hashlib.sha256(b"".join(encode_example(e) for e in sentences())).hexdigest()


def prompt_of(example: Example) -> str:
    """What the user said last before the sentence; "" for a document."""
    said = [m.content for m in example.messages or () if m.role == "user"]
    return said[-1] if said else ""


def score_probes(
    teacher: Teacher,
    projector: Projector,
    student: ChatEncoder,
    expert: ChatEncoder,
    beat: Callable[[str], None] = lambda _: None,
) -> ExpertProbes:
    """The expert's part, computed with the loaded expert; a sentence that one of the two can't
    read byte for byte is left out."""
    which: list[int] = []
    blocks: list[TextBlock] = []
    for number, example in enumerate(sentences()):
        limits = {"max_student_tokens": 512, "max_teacher_tokens": 512}
        trust = teacher.spec.trust_end
        block = next(make_blocks(example, student, expert, trust_end=trust, **limits), None)
        if block is not None and len(block.alignment):
            which.append(number)
            blocks.append(block)
    size = student.vocabulary.size
    q = np.zeros((sum(len(b.alignment) for b in blocks), size), dtype=np.float32)
    kept = np.zeros(len(q), dtype=np.float32)
    if blocks:
        output = teacher_forward(teacher, blocks, beat)
        for part in output.project(projector, projection_chunk(teacher.device)):
            at = part.index.cpu().numpy()
            q[at] = part.q.t().float().cpu().numpy()
            kept[at] = part.weight.float().cpu().numpy()
    edges = np.cumsum([0, *(len(b.alignment) for b in blocks)])
    spans = [slice(a, min(b, a + MAX_POSITIONS)) for a, b in itertools.pairwise(edges)]
    take = np.concatenate([np.arange(s.start, s.stop) for s in spans] or [np.zeros(0, int)])
    rule = np.concatenate([_rules(b) for b in blocks] or [np.zeros(0, np.uint8)])
    return ExpertProbes(
        which=np.array(which, dtype=np.int64),
        rows=tuple(
            EncodedBlock(
                b.student_ids,
                b.student_scored[: s.stop - s.start],
                b.is_end[: s.stop - s.start],
                b.text_bytes,
            )
            for b, s in zip(blocks, spans, strict=True)
        ),
        rule=rule[take],
        q=q[take],
        kept=kept[take],
    )


def _rules(block: TextBlock) -> np.ndarray:
    alignment = block.alignment
    rule = np.where(alignment.offset > 0, 1, np.where(alignment.inside_stop >= 0, 2, 0))
    return np.where(block.is_end, 3, rule).astype(np.uint8)


def save_probes(path: Path, probes: ExpertProbes) -> None:
    """Keeps the expert's part durably."""
    rows = probes.rows
    empty = np.zeros(0, dtype=np.int64)
    arrays = {
        "which": probes.which,
        "ids": np.concatenate([row.ids for row in rows] or [empty]),
        "tokens": np.array([len(row.ids) for row in rows], dtype=np.int64),
        "scored": np.concatenate([row.scored for row in rows] or [empty]),
        "positions": np.array([len(row.scored) for row in rows], dtype=np.int64),
        "rule": probes.rule,
        "q": probes.q,
        "kept": probes.kept,
    }
    whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    write_bytes(path, save(whole, metadata={"sentences": _digest()}))


def load_probes(path: Path) -> ExpertProbes | None:
    """The expert's part as it was kept; None where there is none for today's sentences."""
    try:
        with safe_open(path, framework="np") as file:
            if (file.metadata() or {}).get("sentences") != _digest():
                return None
            a = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        tokens, positions = np.cumsum([0, *a["tokens"]]), np.cumsum([0, *a["positions"]])
        rows = []
        for n in range(len(a["which"])):
            span = slice(positions[n], positions[n + 1])
            rows.append(
                EncodedBlock(
                    a["ids"][tokens[n] : tokens[n + 1]], a["scored"][span], a["rule"][span] == 3, 0
                )
            )
        return ExpertProbes(a["which"], tuple(rows), a["rule"], a["q"], a["kept"])
    except (OSError, SafetensorError, KeyError, IndexError):
        return None


class Lens:
    """The student beside every expert of a run.

    Attributes:
        experts: what each one says, by name; those that were not output are not in it.
    """

    def __init__(
        self,
        experts: Mapping[str, ExpertProbes],
        vocabulary: ByteVocabulary,
        special: Callable[[int], str],
    ) -> None:
        """
        Args:
            vocabulary: the student's.
            special: name of a token that has no bytes, such as the end of turn.
        """
        self.experts = {name: probes for name, probes in experts.items() if probes.rows}
        self._vocabulary = vocabulary
        self._special = special
        self._prompts = [prompt_of(example) for example in sentences()]

    @torch.no_grad()
    def read(self, model: LlamaForCausalLM, dtype: torch.dtype) -> Iterator[ProbeRead]:
        """An event for each sentence and expert; matrix products of the trunk in `dtype`."""
        was_training = model.training
        model.eval()
        try:
            for name, probes in self.experts.items():
                yield from self._expert(name, probes, model, dtype)
        finally:
            model.train(was_training)

    def _expert(
        self, name: str, probes: ExpertProbes, model: LlamaForCausalLM, dtype: torch.dtype
    ) -> Iterator[ProbeRead]:
        batch = make_batch([[row] for row in probes.rows], model.device)
        hidden = hidden_states(model, batch.input_ids, batch.mask, batch.position_ids, dtype)
        head = model.get_output_embeddings().weight  # type: ignore[union-attr]
        z = hidden.flatten(0, 1)[batch.gather].float() @ head.float().t()
        log_p = z.log_softmax(1).cpu()  # (N, V)
        q = torch.from_numpy(probes.q)
        first = 0
        for number, row in zip(probes.which.tolist(), probes.rows, strict=True):
            at = range(first, first + len(row.scored))
            first = at.stop
            follows = row.ids[row.scored].tolist()
            yield ProbeRead(
                expert=name,
                probe=number,
                probes=len(self._prompts),
                prompt=self._prompts[number],
                positions=tuple(
                    self._position(log_p[n], q[n], token, probes.rule[n], float(probes.kept[n]))
                    for n, token in zip(at, follows, strict=True)
                ),
            )

    def _position(
        self, log_p: Tensor, q: Tensor, follows: int, rule: int, kept: float
    ) -> ProbePosition:
        """One position, (V,) and (V,); a student that has gone astray (NaN) has probability 0."""
        output = kept > 0
        p = log_p.exp().nan_to_num(0.0)
        kl = float((torch.special.xlogy(q, q) - q * log_p).sum()) if output else math.nan
        best: list[int] = q.topk(SHOWN).indices.tolist() if output else []
        best += p.topk(SHOWN).indices.tolist()
        ids = sorted({*best, follows}, key=lambda t: (-float(q[t]), -float(p[t]), t))
        return ProbePosition(
            text=self._piece(follows),
            rule=_RULES[rule],
            kept=round(kept, 4),
            kl=round(max(kl, 0.0), 4) if math.isfinite(kl) else None,
            tokens=tuple(
                ProbeToken(self._piece(t), round(float(p[t]), 4), round(float(q[t]), 4))
                for t in ids
            ),
            follows=ids.index(follows),
        )

    def _piece(self, token: int) -> str:
        """The token's text; bytes that are no whole character stand as replacement characters."""
        bytes_ = self._vocabulary.token_bytes[token] if token < self._vocabulary.size else None
        return self._special(token) if bytes_ is None else bytes_.decode("utf-8", "replace")
