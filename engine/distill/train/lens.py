"""The lens: compare the student's next-token distribution with each expert's on fixed sentences.

It changes no weights and draws no random numbers. The expert's distributions are computed once,
while the expert is loaded, and stored with its targets.

Shapes: P sentences, N positions, V student vocabulary.
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

from engine.distill.align.blocks import BlockEncoder, ChatEncoder, EncodedBlock, TextBlock
from engine.distill.align.projection import Projector
from engine.distill.align.tables import arrays_digest
from engine.distill.align.vocabulary import ByteVocabulary
from engine.distill.data.packing import make_batch
from engine.distill.teacher.scoring import projection_chunk, teacher_forward
from engine.distill.teacher.teacher import Teacher
from engine.distill.train.forward import hidden_states
from engine.events import ProbePosition, ProbeRead, ProbeToken
from engine.text.examples import Example, encode_example, read_data_file
from engine.workspace import assets_dir, write_bytes

MAX_POSITIONS = 24
"""Positions of a sentence that are shown."""
SHOWN = 4
"""Most probable tokens of the student, and of the expert, that are shown at a position."""

Rule = Literal["aligned", "inside", "crossing", "end"]
_RULES: tuple[Rule, ...] = ("aligned", "inside", "crossing", "end")


@dataclass(frozen=True)
class ExpertProbes:
    """One expert's distributions along P sentences with N positions in all.

    Attributes:
        which: (P,) number of each sentence in the probe file.
        blocks: the sentences in the student's tokens.
        rule: (N,) index into _RULES.
        q: (N, V) float32, projected at T = 1; zeros where there is no soft target.
        kept: (N,) float32, mass that the projection kept; 0 where there is no soft target.
    """

    which: np.ndarray
    blocks: tuple[EncodedBlock, ...]
    rule: np.ndarray
    q: np.ndarray
    kept: np.ndarray


def sentences() -> list[Example]:
    """The probe sentences of assets/probes."""
    return list(read_data_file(assets_dir() / "probes" / "probes.jsonl"))


def _digest() -> str:
    return hashlib.sha256(b"".join(encode_example(e) for e in sentences())).hexdigest()


def prompt_of(example: Example) -> str:
    """The last user turn before the sentence; "" for a document."""
    user_turns = [m.content for m in example.messages or () if m.role == "user"]
    return user_turns[-1] if user_turns else ""


def score_probes(
    teacher: Teacher,
    projector: Projector,
    student: ChatEncoder,
    expert: ChatEncoder,
    heartbeat: Callable[[str], None] = lambda doing: None,
) -> ExpertProbes:
    """Run the loaded expert over the sentences.

    A sentence that one of the two tokenizers cannot encode byte for byte is left out.
    """
    which: list[int] = []
    blocks: list[TextBlock] = []
    longest = min(512, teacher.context or 512)
    encoder = BlockEncoder(student, expert, 512, teacher.spec.trust_end, longest)
    for number, example in enumerate(sentences()):
        if found := encoder.encode(example).blocks:
            which.append(number)
            blocks.append(found[0])
    size = student.vocabulary.size
    q = np.zeros((sum(len(b.alignment) for b in blocks), size), dtype=np.float32)
    kept = np.zeros(len(q), dtype=np.float32)
    if blocks:
        output = teacher_forward(teacher, blocks, heartbeat)
        for part in output.project(projector, projection_chunk(teacher)):
            at = part.index.cpu().numpy()
            q[at] = part.q.t().float().cpu().numpy()
            kept[at] = part.weight.float().cpu().numpy()
    edges = np.cumsum([0, *(len(b.alignment) for b in blocks)])
    spans = [slice(a, min(b, a + MAX_POSITIONS)) for a, b in itertools.pairwise(edges)]
    take = np.concatenate([np.arange(s.start, s.stop) for s in spans] or [np.zeros(0, int)])
    rule = np.concatenate([_rules(b) for b in blocks] or [np.zeros(0, np.uint8)])
    return ExpertProbes(
        which=np.array(which, dtype=np.int64),
        blocks=tuple(
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
    """Store the expert's distributions durably."""
    blocks = probes.blocks
    empty = np.zeros(0, dtype=np.int64)
    arrays = {
        "which": probes.which,
        "ids": np.concatenate([block.ids for block in blocks] or [empty]),
        "tokens": np.array([len(block.ids) for block in blocks], dtype=np.int64),
        "scored": np.concatenate([block.scored for block in blocks] or [empty]),
        "positions": np.array([len(block.scored) for block in blocks], dtype=np.int64),
        "rule": probes.rule,
        "q": probes.q,
        "kept": probes.kept,
    }
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    metadata = {"sentences": _digest(), "sha256": arrays_digest(contiguous)}
    write_bytes(path, save(contiguous, metadata=metadata))


def probes_digest(probes: ExpertProbes) -> str:
    """SHA-256 of the expert's distributions."""
    arrays = {"which": probes.which, "rule": probes.rule, "q": probes.q, "kept": probes.kept}
    for number, block in enumerate(probes.blocks):
        arrays |= {f"ids{number}": block.ids, f"scored{number}": block.scored}
    return arrays_digest(arrays)


def load_probes(path: Path) -> ExpertProbes | None:
    """The stored distributions; None where there are none for the current sentences, and where the
    file is damaged."""
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            if metadata.get("sentences") != _digest():
                return None
            a = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        # Files of older versions have no digest of their arrays.
        if metadata.get("sha256", "") not in ("", arrays_digest(a)):
            return None
        tokens, positions = np.cumsum([0, *a["tokens"]]), np.cumsum([0, *a["positions"]])
        blocks = []
        for n in range(len(a["which"])):
            span = slice(positions[n], positions[n + 1])
            blocks.append(
                EncodedBlock(
                    a["ids"][tokens[n] : tokens[n + 1]], a["scored"][span], a["rule"][span] == 3, 0
                )
            )
        return ExpertProbes(a["which"], tuple(blocks), a["rule"], a["q"], a["kept"])
    except (OSError, SafetensorError, KeyError, IndexError, ValueError, TypeError):
        return None


class Lens:
    """Compares the student with every expert of a run.

    Attributes:
        experts: distributions by name of the expert; experts without a sentence are left out.
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
            special: returns the name of a token that has no bytes, such as the end of turn.
        """
        self.experts = {name: probes for name, probes in experts.items() if probes.blocks}
        self._vocabulary = vocabulary
        self._special = special
        self._prompts = [prompt_of(example) for example in sentences()]

    @torch.no_grad()
    def read(self, model: LlamaForCausalLM, dtype: torch.dtype) -> Iterator[ProbeRead]:
        """An event for each sentence and expert.

        dtype: of the matrix products, the output matrix excepted (float32).
        """
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
        batch = make_batch([[block] for block in probes.blocks], model.device)
        hidden = hidden_states(
            model, batch.input_ids, batch.attention(dtype), batch.position_ids, dtype
        )
        head = model.get_output_embeddings().weight  # type: ignore[union-attr]
        z = hidden.flatten(0, 1)[batch.gather].float() @ head.float().t()
        log_p = z.log_softmax(1).cpu()  # (N, V)
        q = torch.from_numpy(probes.q)
        first = 0
        for number, block in zip(probes.which.tolist(), probes.blocks, strict=True):
            at = range(first, first + len(block.scored))
            first = at.stop
            follows = block.ids[block.scored].tolist()
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
        """One position from log_p (V,) and q (V,); probabilities of a diverged student (NaN) are 0.

        follows: the token that the text has there; kept: 0 where the expert has no soft target.
        """
        has_target = kept > 0
        p = log_p.exp().nan_to_num(0.0)
        kl = float((torch.special.xlogy(q, q) - q * log_p).sum()) if has_target else math.nan
        best: list[int] = q.topk(SHOWN).indices.tolist() if has_target else []
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
        """The token's text; incomplete characters become replacement characters."""
        data = self._vocabulary.token_bytes[token] if token < self._vocabulary.size else None
        return self._special(token) if data is None else data.decode("utf-8", "replace")
