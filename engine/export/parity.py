"""Owns whether a GGUF file says what its model says: structure and tensors, token ids, logits.

Each comparison is a CheckDone event, so that the exporter and the validator tell the same rows.
"""

from __future__ import annotations

import math
import os
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFReader, ReaderTensor, TokenType, dequantize
from msgspec.structs import replace
from tokenizers import Tokenizer

from engine.errors import GladiusError
from engine.events import CheckDone
from engine.export import llama_runtime
from engine.export.gguf_logits import open_reading
from engine.export.llama_runtime import LlamaCppFailed
from engine.export.logits import compare_logits, judge_logits, logit_bound, probe_sequences
from engine.export.parity_texts import nasty_texts
from engine.export.reference import reference_logits
from engine.export.tensors import (
    PIECE,
    Placed,
    Weights,
    head_dim,
    largest,
    one_thread,
    restore,
    rope,
)
from engine.export.tokenizer import GgufTokenizer, read_gguf_tokenizer
from engine.gguf_types import GGUF_TYPES, GgufType

NASTY_STRINGS = 600
"""How many strings are compared, each with and without the marks of beginning and end."""

_EXACT = {
    GGMLQuantizationType.F32: torch.float32,
    GGMLQuantizationType.F16: torch.float16,
    GGMLQuantizationType.BF16: torch.bfloat16,
}
"""Types that must hold the weights exactly, after rounding."""

# llama.cpp takes tokens of these texts for ends of a text, whatever the file says of them.
_CONTROL_LOOKING = frozenset(
    (
        *("</s>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|eot_id|>", "<|eom_id|>", "<|im_end|>"),
        *("<|end|>", "<|return|>", "<|call|>", "<|endoftext|>", "<|end_of_text|>"),
        *("<end_of_turn>", "<end_of_utterance>"),
    )
)

Report = Callable[[str, float, float | None], None]
"""Told what is being done, how much of it is done and of how much (None: unknown); may raise to
end the comparison."""


def _nothing(doing: str, done: float, total: float | None) -> None:
    """The report of a caller that has none."""


def parity_checks(
    gguf: Path, folder: Path, report: Report = _nothing, wanted: GgufType | None = None
) -> Iterator[CheckDone]:
    """Compare a GGUF file with the model in `folder`, a row at a time.

    wanted: the type that it should be of; None where any will do.

    Rows, in this order: `gguf_structure` (metadata against config.json and tokenizer.json),
    `gguf_tensors` (every tensor against the safetensors), `gguf_tokens` (token ids on nasty
    strings), `gguf_logits` (against transformers: largest and mean difference, top-1, KL; a skip
    that says how to get llama-cpp-python where it is not installed). All are structural; after a
    structure that fails the others are not compared.

    Raises GladiusError when either side can't be read at all.
    """
    comparison = Comparison(gguf, folder, report)
    structure = comparison.structure(wanted)
    yield structure
    if structure.verdict == "fail":
        return
    yield comparison.tensors()
    yield comparison.tokens()
    yield comparison.logits()


class Comparison:
    """One file and one model, opened."""

    def __init__(self, gguf: Path, folder: Path, report: Report = _nothing) -> None:
        self.path = gguf
        self.folder = folder
        self.report = report
        self.weights = Weights(folder)
        self.tokenizer = read_gguf_tokenizer(folder, self.weights.config["vocab_size"])
        try:
            self.reader = GGUFReader(gguf)
        except Exception as error:  # it indexes, unpacks and maps: any of theirs says the same
            raise GladiusError(
                f"{gguf} is no readable GGUF file ({' '.join(str(error).split())}); export again"
            ) from error
        self.there = {tensor.name: tensor for tensor in self.reader.tensors}
        number = self._field("general.file_type")
        self.type: GgufType | None = next(
            (entry for entry in GGUF_TYPES.values() if entry.file_type == number), None
        )

    def structure(self, kind: GgufType | None = None) -> CheckDone:
        """Metadata, names and shapes against what the model asks for."""
        self.report("comparing structure", 0, None)
        expected = expected_metadata(self.weights.config, self.tokenizer)
        if kind is not None:
            expected["general.file_type"] = kind.file_type
        wrong = [
            f"{key} is {_short(found)}, should be {_short(wanted)}"
            for key, wanted in expected.items()
            if not _same(found := self._field(key), wanted)
        ]
        placed = {tensor.name: tensor for tensor in self.weights.placed()}
        wrong += [f"tensor {name} is missing" for name in placed if name not in self.there]
        wrong += [f"tensor {name} is too much" for name in self.there if name not in placed]
        for name in placed.keys() & self.there.keys():
            shape = tuple(int(extent) for extent in reversed(self.there[name].shape))
            if shape != placed[name].shape:
                wrong.append(f"tensor {name} is {shape}, should be {placed[name].shape}")
            elif self._end(self.there[name]) > self.path.stat().st_size:
                wrong.append(f"tensor {name} ends after the file does")
        told = self.type.name if self.type else "unknown type"
        value = f"{told}, {len(self.there)} tensors, {len(self.reader.fields)} keys"
        return CheckDone(
            group="structural",
            name="gguf_structure",
            title="GGUF structure",
            value=value if not wrong else f"{len(wrong)} wrong: {wrong[0]}",
            bound="as the model's config and tokenizer",
            verdict="fail" if wrong else "pass",
            meaning="The file describes the model that it was made from.",
            detail="\n".join(wrong[:20]),
            number=float(len(wrong)),
        )

    def tensors(self) -> CheckDone:
        """Every tensor against the safetensors: exact after rounding, or within its bound."""
        placed = self.weights.placed()
        total = float(sum(int(tensor.n_bytes) for tensor in self.there.values()))
        done = 0.0
        wrong: list[str] = []
        worst = 0.0
        with open(self.path, "rb") as file, one_thread():
            if hasattr(os, "posix_fadvise"):  # from the disk, not from what was just written
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            for tensor in placed:
                error, complaint = self._compare(file, tensor)
                worst = max(worst, error)
                if complaint:
                    wrong.append(complaint)
                done += int(self.there[tensor.name].n_bytes)
                self.report("comparing tensors", done, total)
        exact = self.type is not None and not self.type.tensor_error
        value = f"all {len(placed)} exact" if exact else f"error {worst:.2%} at most"
        bound = "exact after rounding" if exact else f"at most {_tensor_bound(self.type):.0%}"
        return CheckDone(
            group="structural",
            name="gguf_tensors",
            title="GGUF tensors",
            value=value if not wrong else f"{len(wrong)} differ: {wrong[0]}",
            bound=bound,
            verdict="fail" if wrong else "pass",
            meaning="Every weight, read back from the disk, is the model's.",
            detail="\n".join(wrong[:20]),
            number=worst,
        )

    def tokens(self) -> CheckDone:
        """Token ids on nasty strings, by llama.cpp or by our own reading of the file."""
        backend = Tokenizer.from_file(str(self.folder / "tokenizer.json"))
        # A tokenizer may have been saved in the middle of a batch.
        backend.no_truncation()
        backend.no_padding()
        special = [
            token
            for token, kind in zip(self.tokenizer.tokens, self.tokenizer.types, strict=True)
            if kind in (TokenType.CONTROL, TokenType.USER_DEFINED)
        ]
        texts = nasty_texts(NASTY_STRINGS, special)
        odd = [
            token
            for token, kind in zip(self.tokenizer.tokens, self.tokenizer.types, strict=True)
            if kind == TokenType.NORMAL and token in _CONTROL_LOOKING
        ]
        texts = [text for text in texts if not any(token in text for token in odd)]
        if self.tokenizer.needs_nfc:
            texts = [unicodedata.normalize("NFC", text) for text in texts]
        row = CheckDone(
            group="structural",
            name="gguf_tokens",
            title="GGUF token ids",
            value="",
            bound="the same ids on every string",
            verdict="skip",
            meaning="Text is cut into the tokens that the model was trained on.",
        )
        try:
            by, found = self._read_texts(texts)
        except LlamaCppFailed as error:
            return _changed(row, verdict="skip" if error.crashed else "fail", told=str(error))
        except GladiusError as error:
            return _changed(row, verdict="skip", told=str(error))
        self.report("comparing token ids", 0, None)
        differing = [
            f"{text!r}: {_short(ids)} instead of {_short(wanted)}"
            for special_marks, lists in found.items()
            for text, ids in zip(texts, lists, strict=True)
            if ids != (wanted := backend.encode(text, add_special_tokens=special_marks).ids)
        ]
        count = len(found) * len(texts)
        return _changed(
            row,
            verdict="fail" if differing else "pass",
            told=f"{len(differing)} of {count:,} differ, read by {by}",
            detail="\n".join(
                [*differing[:20], *(f"not compared: {t!r}, always an end there" for t in odd)]
            ),
            number=float(len(differing)),
        )

    def logits(self) -> CheckDone:
        """llama.cpp's logits of the file against transformers' of the model."""
        kind = self.type
        row = CheckDone(
            group="structural",
            name="gguf_logits",
            title="GGUF logits",
            value="",
            bound=logit_bound(kind) if kind else "told only",
            verdict="skip",
            meaning="llama.cpp, with this file, predicts what transformers predicts.",
        )
        python = llama_runtime.find_python()
        if python is None:
            how = llama_runtime.HOW_TO_GET
            return _changed(row, verdict="skip", told=f"not compared: {how}")
        sequences = probe_sequences(self.folder, self.weights.config)
        threads = torch.get_num_threads()

        def tick(doing: str) -> Callable[[], None]:
            return lambda: self.report(doing, 0, None)

        try:
            theirs = llama_runtime.logits(
                python,
                self.path,
                sequences,
                threads=threads,
                tick=tick("llama.cpp's logits"),
            )
        except LlamaCppFailed as error:
            return _changed(row, verdict="skip" if error.crashed else "fail", told=str(error))
        ours = reference_logits(self.folder, sequences, tick("transformers' logits"))
        measured = compare_logits(ours, theirs, sequences)
        return judge_logits(row, measured, kind)

    def _field(self, key: str) -> Any:
        field = self.reader.fields.get(key)
        return None if field is None else field.contents()

    def _end(self, tensor: ReaderTensor) -> int:
        return int(tensor.data_offset) + int(tensor.n_bytes)

    def _compare(self, file: Any, tensor: Placed) -> tuple[float, str]:
        """Relative error of one tensor, and what is wrong with it (nothing: an empty text)."""
        there = self.there[tensor.name]
        kind = there.tensor_type
        source = self.weights.read(tensor.source)
        columns = tensor.shape[-1]
        rows = source.reshape(-1, columns)
        row_bytes = int(there.n_bytes) // len(rows)
        # Permuted rows go through a whole tensor; those are the small ones.
        step = len(rows) if tensor.heads else max(1, PIECE // columns)
        off = size = 0.0
        for start in range(0, len(rows), step):
            wanted = rows[start : start + step]
            file.seek(int(there.data_offset) + start * row_bytes)
            data = file.read(len(wanted) * row_bytes)
            if len(data) != len(wanted) * row_bytes:
                return math.inf, f"{tensor.name} ends early"
            found = restore(_values(data, kind, columns), tensor.heads)
            if not math.isfinite(largest(found)):
                return math.inf, f"{tensor.name} holds numbers that are not finite"
            if kind in _EXACT:
                exact = wanted.float().to(_EXACT[kind])
                if not torch.equal(found, exact):
                    most = (found.float() - exact.float()).abs().max().item()
                    return math.inf, f"{tensor.name} differs by up to {most:.3g}"
                continue
            wanted = wanted.float()
            off += (found - wanted).square().sum(dtype=torch.float64).item()
            size += wanted.square().sum(dtype=torch.float64).item()
        error = math.sqrt(off / size) if size else math.sqrt(off)
        if error > _tensor_bound(self.type):
            return error, f"{tensor.name} ({kind.name}) is off by {error:.1%}"
        return error, ""

    def _read_texts(self, texts: list[str]) -> tuple[str, dict[bool, list[list[int]]]]:
        """Who read the texts, and the ids with and without the marks of beginning and end."""
        python = llama_runtime.find_python()
        self.report("comparing token ids", 0, None)
        found: dict[bool, list[list[int]]] = {}
        if python is None:
            read = open_reading(self.path, self.reader)
            for special in (True, False):
                found[special] = [read(text, special) for text in texts]
            return "our own reading of the file (llama.cpp is not here)", found
        for special in (True, False):
            found[special] = llama_runtime.token_ids(
                python,
                self.path,
                texts,
                special=special,
                tick=lambda: self.report("llama.cpp's token ids", 0, None),
            )
        return "llama.cpp", found


def expected_metadata(config: dict[str, Any], tokenizer: GgufTokenizer) -> dict[str, Any]:
    """What a file of this model must say, by key."""
    heads = config["num_attention_heads"]
    size = head_dim(config)
    names = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    special = {f"{names[role]}_token_id": index for role, index in tokenizer.special.items()}
    words = {
        "model": tokenizer.model,
        "pre": tokenizer.pre,
        "tokens": tokenizer.tokens,
        "token_type": tokenizer.types,
        "scores": tokenizer.scores,
        "merges": tokenizer.merges,
        **special,
        "add_bos_token": tokenizer.add_bos,
        "add_eos_token": tokenizer.add_eos,
    }
    return {
        "general.architecture": "llama",
        "llama.block_count": config["num_hidden_layers"],
        "llama.context_length": config["max_position_embeddings"],
        "llama.embedding_length": config["hidden_size"],
        "llama.feed_forward_length": config["intermediate_size"],
        "llama.attention.head_count": heads,
        "llama.attention.head_count_kv": config.get("num_key_value_heads") or heads,
        "llama.attention.key_length": size,
        "llama.attention.value_length": size,
        "llama.rope.freq_base": float(np.float32(rope(config).get("rope_theta", 10000.0))),
        "llama.rope.dimension_count": size,
        "llama.attention.layer_norm_rms_epsilon": float(np.float32(config["rms_norm_eps"])),
        "llama.vocab_size": config["vocab_size"],
        **{f"tokenizer.ggml.{key}": value for key, value in words.items()},
        "tokenizer.chat_template": tokenizer.chat_template,
    }


def _tensor_bound(kind: GgufType | None) -> float:
    return kind.tensor_error if kind and kind.tensor_error else 0.5


def _values(data: bytes, kind: GGMLQuantizationType, columns: int) -> torch.Tensor:
    """A tensor's bytes as rows: of an exact type as they are, of others as float32."""
    flat = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    if kind in _EXACT:
        return flat.view(_EXACT[kind]).reshape(-1, columns)
    return torch.from_numpy(dequantize(flat.numpy(), kind).reshape(-1, columns).copy())


def _same(found: Any, wanted: Any) -> bool:
    if isinstance(wanted, list):
        return isinstance(found, list) and found == wanted
    return found == wanted and isinstance(found, bool) == isinstance(wanted, bool)


def _short(value: Any) -> str:
    text = f"{len(value)} entries" if isinstance(value, list) and len(value) > 40 else repr(value)
    return text if len(text) <= 80 else text[:79] + "…"


def _changed(
    row: CheckDone, *, verdict: Any, told: str, detail: str = "", number: float | None = None
) -> CheckDone:
    if verdict == "skip":
        return replace(row, verdict=verdict, meaning=told)
    return replace(row, verdict=verdict, value=told, detail=detail, number=number)
