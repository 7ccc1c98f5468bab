"""Reading safetensors, and encoding tensors as a GGUF file's bytes."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import pytest
import torch
from gguf import GGMLQuantizationType
from safetensors.torch import load_file, save_file

from engine.errors import GladiusError, MissingError
from engine.export.tensors import (
    encode_tensor,
    lossless_type,
    map_tensors,
    permute,
    quantize_q8_0,
    tensor_type,
    unpermute,
)
from engine.export.weights import Weights
from tests.support.exported import byte_level_tokenizer, change_json, make_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"), byte_level_tokenizer())


@pytest.fixture
def copy(model: Path, tmp_path: Path) -> Path:
    for file in model.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def test_q8_0_is_bit_for_bit_the_reference_implementation() -> None:
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(64, 256, generator=generator) * torch.logspace(-9, 4, 64)[:, None]
    rows[0] = 0
    rows[1, :32] = torch.arange(32) * 0.5  # halves: rounded away from zero
    rows[2, :32] = -127.5
    reference = gguf.quants.quantize(rows.numpy(), GGMLQuantizationType.Q8_0)
    assert torch.equal(quantize_q8_0(rows), torch.from_numpy(reference.copy()))


def test_permute_interleaves_the_halves_of_each_head() -> None:
    rows = torch.arange(8.0)[:, None].expand(8, 3)  # two heads of four rows
    permuted = permute(rows, 2)
    assert permuted[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    assert torch.equal(unpermute(permuted, 2), rows)


def test_norms_stay_f32_and_rows_that_do_not_fit_blocks_become_f16(model: Path) -> None:
    mappings = {m.gguf_name: m for m in map_tensors(Weights(model))}
    assert "output.weight" not in mappings, "it is tied"
    assert tensor_type(mappings["output_norm.weight"], "q8_0") == GGMLQuantizationType.F32
    assert tensor_type(mappings["blk.0.attn_q.weight"], "q8_0") == GGMLQuantizationType.Q8_0
    odd = type(mappings["token_embd.weight"])("x", "x", (4, 40))
    assert tensor_type(odd, "q8_0") == GGMLQuantizationType.F16


def test_a_weight_that_overflows_f16_is_rejected() -> None:
    rows = torch.zeros(2, 32)
    rows[1, 5] = -1e6
    with pytest.raises(GladiusError, match=r"1e\+06.*export with --type bf16"):
        list(encode_tensor(rows, GGMLQuantizationType.F16, "model.norm.weight"))


def test_the_lossless_type_holds_what_is_stored() -> None:
    kinds = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}
    assert {dtype: lossless_type(dtype) for dtype in kinds} == kinds


def test_a_model_in_shards_is_read_by_its_index(copy: Path) -> None:
    tensors = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {"a.safetensors": names[:9], "b.safetensors": names[9:]}
    for file, part in parts.items():
        save_file({name: tensors[name] for name in part}, copy / file)
    index = {name: file for file, part in parts.items() for name in part}
    (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    weights = Weights(copy)
    assert all(torch.equal(weights.read(name), tensors[name]) for name in names)
    (copy / "b.safetensors").unlink()
    with pytest.raises(MissingError, match=r"b\.safetensors is missing, but the index lists it"):
        Weights(copy)


def test_damaged_weights_are_a_one_line_error(copy: Path) -> None:
    path = copy / "model.safetensors"
    whole = path.read_bytes()
    for damaged in (whole[:-100], whole[:20], b"", b"x" * 400):
        path.write_bytes(damaged)
        with pytest.raises(GladiusError, match="is damaged") as raised:
            Weights(copy)
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_hidden_layers": 3}, "model.layers.2.input_layernorm.weight is missing"),
        ({"num_hidden_layers": 1}, "contains model.layers.1"),
        ({"intermediate_size": 128}, "has the shape"),
        ({"model_type": "gemma2"}, "only Llama models"),
        ({"attention_bias": True}, "sets attention_bias"),
        ({"rope_parameters__rope_type": "llama3"}, "RoPE scaling of type llama3"),
        ({"hidden_act": "gelu"}, "supports only silu"),
    ],
)
def test_a_config_that_does_not_match_the_weights_is_rejected(
    copy: Path, fields, message: str
) -> None:
    change_json(copy / "config.json", **fields)
    with pytest.raises(GladiusError, match=message):
        map_tensors(Weights(copy))
