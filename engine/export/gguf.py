"""Owns writing one GGUF file of a Llama model: metadata in the order of llama.cpp's converter, then
tensor by tensor. Whether what was written is right is `parity`'s.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from gguf import GGUFWriter
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.utility import size_label

from engine.export.tensors import (
    Placed,
    Weights,
    converted,
    head_dim,
    one_thread,
    permute,
    rope,
    type_of,
)
from engine.export.tokenizer import GgufTokenizer
from engine.gguf_types import gguf_type

_ALIGNMENT = 32
_QUANTIZATION_VERSION = 2

Report = Callable[[str, float, float | None], None]
"""Told what is being done, how much of it is done and of how much; may raise to end it."""


def write_gguf(
    path: Path,
    weights: Weights,
    tokenizer: GgufTokenizer,
    *,
    wanted: str,
    name: str,
    report: Report,
) -> int:
    """Write the model durably to a new file of type `wanted` (f32, f16, bf16, q8_0); its bytes.

    Memory stays near the largest tensor. Raises OSError where it can't be written, GladiusError
    for a weight that the type can't hold; the caller removes what is left.
    """
    placed = weights.placed()
    writer = GGUFWriter(path, "llama")
    _add_metadata(writer, weights, tokenizer, wanted, name)
    total = 0
    for tensor in placed:
        kind = type_of(tensor, wanted)
        size = stored_bytes(tensor, kind)
        # The shape is given in weights: the type alone says how many bytes they take.
        writer.add_tensor_info(
            tensor.name, tensor.shape, np.dtype(np.float32), size, raw_dtype=kind
        )
        total += size
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        assert writer.fout is not None
        file = writer.fout[0]
        _pad(file)
        done = 0
        with one_thread():
            for tensor in placed:
                data = permute(weights.read(tensor.source), tensor.heads)
                for piece in converted(data, type_of(tensor, wanted), tensor.source):
                    # Not numpy's tofile: it tells a full disk without its errno.
                    done += file.write(piece.numpy().reshape(-1).data)
                    report("writing", done, total)
                del data
                _pad(file)
        file.flush()
        os.fsync(file.fileno())
        return file.tell()
    finally:
        _close(writer)


def stored_bytes(tensor: Placed, kind: GGMLQuantizationType) -> int:
    """Bytes of a tensor's data in the file."""
    block, size = GGML_QUANT_SIZES[kind]
    count = 1
    for extent in tensor.shape:
        count *= extent
    return count // block * size


def file_bytes(weights: Weights, tokenizer: GgufTokenizer, wanted: str) -> int:
    """About how large the file will be."""
    tensors = sum(stored_bytes(t, type_of(t, wanted)) + _ALIGNMENT for t in weights.placed())
    texts = sum(len(t.encode()) + 16 for t in tokenizer.tokens)
    return tensors + texts + sum(len(m.encode()) + 8 for m in tokenizer.merges or ()) + 65536


def model_size_label(weights: Weights) -> str:
    """Such as `1.1B`, as the converter counts it."""
    total = 0
    for tensor in weights.placed():
        count = 1
        for extent in tensor.shape:
            count *= extent
        total += count
    return size_label(total, 0, 0, 0)


def _add_metadata(
    writer: GGUFWriter, weights: Weights, tokenizer: GgufTokenizer, wanted: str, name: str
) -> None:
    config = weights.config
    heads = config["num_attention_heads"]
    size = head_dim(config)
    writer.add_type("model")
    writer.add_name(name)
    writer.add_size_label(model_size_label(weights))
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads") or heads)
    writer.add_rope_freq_base(float(rope(config).get("rope_theta", 10000.0)))
    writer.add_layer_norm_rms_eps(float(config["rms_norm_eps"]))
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_file_type(gguf_type(wanted).file_type)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_rope_dimension_count(size)
    writer.add_quantization_version(_QUANTIZATION_VERSION)
    writer.add_tokenizer_model(tokenizer.model)
    writer.add_tokenizer_pre(tokenizer.pre)
    writer.add_token_list(tokenizer.tokens)
    if tokenizer.scores is not None:
        writer.add_token_scores(tokenizer.scores)
    writer.add_token_types(tokenizer.types)
    if tokenizer.merges is not None:
        writer.add_token_merges(tokenizer.merges)
    add = {
        "bos": writer.add_bos_token_id,
        "eos": writer.add_eos_token_id,
        "unk": writer.add_unk_token_id,
        "pad": writer.add_pad_token_id,
    }
    for role, index in tokenizer.special.items():
        add[role](index)
    writer.add_add_bos_token(tokenizer.add_bos)
    writer.add_add_eos_token(tokenizer.add_eos)
    if tokenizer.model == "llama" and not tokenizer.add_space_prefix:
        writer.add_add_space_prefix(False)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)


def _pad(file) -> None:
    """Fill up to where the next tensor may begin."""
    file.write(b"\0" * (-file.tell() % _ALIGNMENT))


def _close(writer: GGUFWriter) -> None:
    """Close what is open; what a full disk left in a buffer is lost, and nobody needs it."""
    for file in writer.fout or ():
        try:
            file.close()
        except OSError:
            pass
