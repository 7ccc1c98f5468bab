"""Tiny random models of every architecture that transformers has a causal language model for."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.configuration_utils import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

ROWS = 128
_MAX_PARAMETERS = 30_000_000
_SIZES: dict[str, Any] = {
    "vocab_size": ROWS,
    "hidden_size": 32,
    "d_model": 32,
    "n_embd": 32,
    "embedding_size": 32,
    "emb_dim": 32,
    "dim": 32,
    "num_hidden_layers": 2,
    "num_layers": 2,
    "n_layer": 2,
    "n_layers": 2,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "num_encoder_layers": 1,
    "num_decoder_layers": 2,
    "num_attention_heads": 4,
    "n_head": 4,
    "n_heads": 4,
    "num_heads": 4,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "num_encoder_attention_heads": 4,
    "num_decoder_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "global_head_dim": 8,
    "intermediate_size": 48,
    "intermediate_dim": 48,
    "ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "encoder_ffn_dim": 48,
    "ffn_hidden_size": 48,
    "n_inner": 48,
    "d_inner": 48,
    "dff": 48,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "shared_intermediate_size": 16,
    "expert_ffn_hidden_size": 16,
    "prefix_dense_intermediate_size": 48,
    "n_routed_experts": 4,
    "num_experts": 4,
    "num_local_experts": 4,
    "moe_num_experts": 4,
    "zero_expert_num": 2,
    "num_experts_per_tok": 2,
    "moe_topk": 2,
    "moe_k": 2,
    "top_k_experts": 2,
    "n_group": 1,
    "topk_group": 1,
    "q_lora_rank": 16,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "qk_head_dim": 16,
    "v_head_dim": 8,
    "attention_head_dim": 8,
    "max_position_embeddings": 64,
    "n_positions": 64,
    "max_seq_len": 64,
    "sliding_window": 16,
    "state_size": 8,
    "mamba_d_ssm": 64,
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_d_state": 8,
    "mamba_num_heads": 8,
    "mamba_head_dim": 8,
    "ssm_state_size": 8,
    "n_groups": 1,
    "mamba_n_groups": 1,
    "mamba_ngroups": 1,
    "time_step_rank": 4,
    "mamba_dt_rank": 4,
    "rotary_dim": 4,
    "lru_width": 32,
    "attention_window_size": 16,
    "vocab_size_per_layer_input": ROWS,
    "hidden_size_per_layer_input": 8,
    "num_kv_shared_layers": 0,
    "laurel_rank": 4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "is_decoder": True,
    "conv_kernel": 4,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "index_head_dim": 16,
    "index_n_heads": 2,
    "index_topk": 8,
}
"""Small values of config fields; a config takes those that it has."""
_MORE: dict[str, dict[str, Any]] = {
    # Factors between hidden states and logits that differ from 1: their defaults are 1 or large.
    "cohere": {"logit_scale": 0.0625},
    "cohere2": {"logit_scale": 0.0625},
    "granite": {"logits_scaling": 8.0},
    "granitemoe": {"logits_scaling": 6.0},
    "granitemoeshared": {"logits_scaling": 6.0},
    "granitemoehybrid": {"logits_scaling": 6.0},
    "falcon_h1": {"lm_head_multiplier": 0.04},
    "minicpm3": {"dim_model_base": 8},
    "gemma2": {"final_logit_softcapping": 0.5},
    "gemma3_text": {"final_logit_softcapping": 0.5},
    "gemma4_text": {"final_logit_softcapping": 0.5},
    "hyperclovax": {"logits_scaling": 4.0},
    "zaya": {"num_experts_per_tok": 1},
    "dots3_note_text": {"num_key_value_heads": 4},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "mamba2": {"num_heads": 8},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "reformer": {"axial_pos_embds_dim": (16, 16), "axial_pos_shape": (8, 8)},
    "falcon": {"new_decoder_architecture": False, "num_kv_heads": 4},
}


class CannotBuild(Exception):
    """Why a tiny model of an architecture can't be made, in a few words."""


def architectures() -> list[str]:
    """Every model type with a causal language model."""
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def tiny_config(model_type: str, **fields: Any) -> PreTrainedConfig:
    """A small config of this type. Raises CannotBuild."""
    try:
        return _small(CONFIG_MAPPING[model_type], {**_MORE.get(model_type, {}), **fields})
    except Exception as error:
        raise CannotBuild(f"config: {_text(error)}") from error


def _small(cls: type[PreTrainedConfig], fields: dict[str, Any]) -> PreTrainedConfig:
    known = set(inspect.signature(cls.__init__).parameters)
    known |= set(getattr(cls, "__dataclass_fields__", {})) | set(cls.attribute_map)
    values = {name: value for name, value in _SIZES.items() if name in known}
    if "kv_lora_rank" in known:
        values["num_key_value_heads"] = values["num_attention_heads"]
    for name, sub in cls.sub_configs.items():
        if name in known and hasattr(sub, "attribute_map"):
            values[name] = _small(sub, {}).to_dict()
    return cls(**{**values, **fields})


def tiny_model(model_type: str, seed: int = 0, **fields: Any) -> Any:
    """A random fp32 model in eval mode, with weights large enough for distinct logits.

    Raises CannotBuild.
    """
    config = tiny_config(model_type, **fields)
    config._attn_implementation = "eager"
    try:
        with torch.device("meta"):
            count = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
    except Exception as error:
        raise CannotBuild(f"model: {_text(error)}") from error
    if count > _MAX_PARAMETERS:
        raise CannotBuild(f"its smallest config here has {count:,} parameters")
    try:
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    except Exception as error:
        raise CannotBuild(f"model: {_text(error)}") from error
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and "conv" not in name:
                parameter.normal_(0, 0.1, generator=generator)
        head = model.get_output_embeddings()
        if head is not None and getattr(head, "bias", None) is not None:
            head.bias.normal_(0, 0.5, generator=generator)
    return model


def _text(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:100]
