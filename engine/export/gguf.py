"""Write a Llama model as one GGUF file: metadata in the order of llama.cpp's converter, then the
tensors one by one.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

import numpy as np
from gguf import GGUFWriter
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.utility import size_label

from engine.export.progress import ReportProgress
from engine.export.tensors import (
    TensorMapping,
    count_parameters,
    encode_tensor,
    map_tensors,
    permute,
    single_threaded,
    tensor_type,
)
from engine.export.tokenizer import GgufTokenizer
from engine.export.weights import Weights, head_dim, num_kv_heads, rope_parameters
from engine.gguf_types import gguf_type

_ALIGNMENT = 32
_QUANTIZATION_VERSION = 2


def write_gguf(
    path: Path,
    weights: Weights,
    tokenizer: GgufTokenizer,
    *,
    type_name: str,
    model_name: str,
    report: ReportProgress,
) -> int:
    """Write the model to a new file of type `type_name` (f32, f16, bf16 or q8_0) and fsync it.

    Returns the file's size in bytes. Memory use stays near the largest tensor. On an error the
    caller removes the incomplete file.

    Raises OSError when the file cannot be written, GladiusError when a weight overflows the type.
    """
    mappings = map_tensors(weights)
    writer = GGUFWriter(path, "llama")
    _add_metadata(writer, weights, tokenizer, type_name=type_name, model_name=model_name)
    total = 0
    for mapping in mappings:
        ggml_type = tensor_type(mapping, type_name)
        size = stored_bytes(mapping, ggml_type)
        # The shape counts weights; raw_dtype makes gguf ignore the dtype passed here.
        writer.add_tensor_info(
            mapping.gguf_name, mapping.shape, np.dtype(np.float32), size, raw_dtype=ggml_type
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
        with single_threaded():
            for mapping in mappings:
                data = permute(weights.read(mapping.hf_name), mapping.permuted_heads)
                ggml_type = tensor_type(mapping, type_name)
                for chunk in encode_tensor(data, ggml_type, mapping.hf_name):
                    # Not numpy's tofile: it reports a full disk without the errno.
                    done += file.write(chunk.numpy().reshape(-1).data)
                    report("writing", done, total)
                del data
                _pad(file)
        file.flush()
        os.fsync(file.fileno())
        return file.tell()
    finally:
        _close(writer)


def stored_bytes(mapping: TensorMapping, ggml_type: GGMLQuantizationType) -> int:
    """Bytes of a tensor's data in the file."""
    block_weights, block_bytes = GGML_QUANT_SIZES[ggml_type]
    return mapping.numel // block_weights * block_bytes


def estimated_file_bytes(weights: Weights, tokenizer: GgufTokenizer, type_name: str) -> int:
    """An upper estimate of the file's size."""
    tensors = sum(
        stored_bytes(mapping, tensor_type(mapping, type_name)) + _ALIGNMENT
        for mapping in map_tensors(weights)
    )
    tokens = sum(len(token.encode()) + 16 for token in tokenizer.tokens)
    merges = sum(len(merge.encode()) + 8 for merge in tokenizer.merges or ())
    return tensors + tokens + merges + 65536


def _add_metadata(
    writer: GGUFWriter,
    weights: Weights,
    tokenizer: GgufTokenizer,
    *,
    type_name: str,
    model_name: str,
) -> None:
    config = weights.config
    size = head_dim(config)
    writer.add_type("model")
    writer.add_name(model_name)
    writer.add_size_label(size_label(count_parameters(weights), 0, 0, 0))
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(num_kv_heads(config))
    writer.add_rope_freq_base(float(rope_parameters(config).get("rope_theta", 10000.0)))
    writer.add_layer_norm_rms_eps(float(config["rms_norm_eps"]))
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_file_type(gguf_type(type_name).file_type)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_rope_dimension_count(size)
    writer.add_quantization_version(_QUANTIZATION_VERSION)
    _add_tokenizer(writer, tokenizer)


def _add_tokenizer(writer: GGUFWriter, tokenizer: GgufTokenizer) -> None:
    writer.add_tokenizer_model(tokenizer.model)
    writer.add_tokenizer_pre(tokenizer.pre)
    writer.add_token_list(tokenizer.tokens)
    if tokenizer.scores is not None:
        writer.add_token_scores(tokenizer.scores)
    writer.add_token_types(tokenizer.types)
    if tokenizer.merges is not None:
        writer.add_token_merges(tokenizer.merges)
    add_token_id = {
        "bos": writer.add_bos_token_id,
        "eos": writer.add_eos_token_id,
        "unk": writer.add_unk_token_id,
        "pad": writer.add_pad_token_id,
    }
    for role, token_id in tokenizer.special.items():
        add_token_id[role](token_id)
    writer.add_add_bos_token(tokenizer.add_bos)
    writer.add_add_eos_token(tokenizer.add_eos)
    if tokenizer.model == "llama" and not tokenizer.add_space_prefix:
        writer.add_add_space_prefix(False)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)


def _pad(file: BinaryIO) -> None:
    """Fill with zeros up to the next aligned offset."""
    file.write(b"\0" * (-file.tell() % _ALIGNMENT))


def _close(writer: GGUFWriter) -> None:
    """Close the file; an error while flushing is ignored, because the file is then incomplete and
    is removed."""
    for file in writer.fout or ():
        try:
            file.close()
        except OSError:
            pass
