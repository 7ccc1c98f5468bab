"""Read an expert from a GGUF file: its config, weights and tokenizer.

Weights are dequantised exactly. The tokenizer is rebuilt from the file's tokens and merges and the
pre-tokenizer that the file names. `engine.export` writes GGUF.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import dequantize
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.processors import TemplateProcessing
from transformers import LlamaConfig, PreTrainedTokenizerFast, Qwen2Config
from transformers.configuration_utils import PreTrainedConfig

from engine.errors import GladiusError
from engine.experts.gguf_header import open_gguf
from engine.experts.model_checks import config_problem

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

# Pre-tokenizers of byte-level BPE by their name in GGUF (tokenizer.ggml.pre).
_SPLITS: dict[str, Callable[[], pre_tokenizers.PreTokenizer]] = {
    "gpt-2": lambda: pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
    "smollm": lambda: pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    ),
    "llama-bpe": lambda: _regex_split(_WORDS + r"\p{N}{1,3}" + _REST),
    "qwen2": lambda: _regex_split(_WORDS + r"\p{N}" + _REST),
}

_EPSILON = "attention.layer_norm_rms_epsilon"
_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4  # values of tokenizer.ggml.token_type

_GLOBAL_TENSORS = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_BLOCK_TENSORS = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def _regex_split(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _unrotated(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of q or k, (rows, H), in the order of transformers."""
    split = weight.reshape(heads, weight.shape[0] // heads // 2, 2, *weight.shape[1:])
    return split.swapaxes(1, 2).reshape(weight.shape)


class GGUFExpert:
    """An expert in one GGUF file (architectures llama and qwen2).

    All methods raise GladiusError if the file is damaged or can't be read exactly.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._reader = open_gguf(path)
        except Exception as error:  # the reader indexes, unpacks and maps
            why = " ".join(str(error).split())[:160]
            raise GladiusError(
                f"{path} is not a readable GGUF file ({why}); download it again"
            ) from error

    def _get(self, key: str, default: Any = None) -> Any:
        field = self._reader.fields.get(key)
        return default if field is None else field.contents()

    def _need(self, key: str) -> Any:
        value = self._get(key)
        if value is None:
            raise GladiusError(f"{self.path} lacks {key}; convert the model to GGUF again")
        return value

    def config(self) -> PreTrainedConfig:
        """The model's config for transformers, without quantisation settings."""
        with self._one_line("its config"):
            config = self._config()
        elements = sum(int(tensor.n_elements) for tensor in self._reader.tensors)
        problem = config_problem(config.to_dict(), elements, len(self._reader.tensors))
        if problem is not None:
            what = problem.replace("config.json has", "its metadata has")
            raise GladiusError(f"{self.path}: {what}; download it again")
        return config

    @contextmanager
    def _one_line(self, what: str) -> Iterator[None]:
        """Turn any error about the file's values into a GladiusError."""
        try:
            yield
        except GladiusError:
            raise
        except Exception as error:
            why = " ".join(f"{type(error).__name__}: {error}".split())[:160]
            raise GladiusError(
                f"{self.path}: {what} can't be read ({why}); download it again, or use the model's "
                "safetensors folder"
            ) from error

    def _config(self) -> PreTrainedConfig:
        arch = self._need("general.architecture")
        classes = {"llama": LlamaConfig, "qwen2": Qwen2Config}
        tensors = {tensor.name for tensor in self._reader.tensors}
        if arch not in classes or self._get(f"{arch}.rope.scaling.type") not in (None, "none"):
            raise GladiusError(
                f"{self.path}: architecture {arch} with its rope scaling can't be read from GGUF; "
                "use the model's safetensors folder instead"
            )
        if unread := sorted(t for t in tensors if "rope_freqs" in t or "exps" in t):
            raise GladiusError(
                f"{self.path}: tensor {unread[0]} can't be read from GGUF; "
                "use the model's safetensors folder instead"
            )
        heads = self._need(f"{arch}.attention.head_count")
        hidden = self._need(f"{arch}.embedding_length")
        extra: dict[str, Any] = {}
        if arch == "llama":
            extra["head_dim"] = self._get(f"{arch}.attention.key_length", hidden // heads)
        return classes[arch](
            architectures=[f"{'Llama' if arch == 'llama' else 'Qwen2'}ForCausalLM"],
            vocab_size=len(self._need("tokenizer.ggml.tokens")),
            hidden_size=hidden,
            intermediate_size=self._need(f"{arch}.feed_forward_length"),
            num_hidden_layers=self._need(f"{arch}.block_count"),
            num_attention_heads=heads,
            num_key_value_heads=self._get(f"{arch}.attention.head_count_kv", heads),
            max_position_embeddings=self._need(f"{arch}.context_length"),
            # The file stores an f32; its shortest decimal is the original value (1e-5).
            rms_norm_eps=float(str(np.float32(self._need(f"{arch}.{_EPSILON}")))),
            rope_parameters={
                "rope_type": "default",
                "rope_theta": self._get(f"{arch}.rope.freq_base", 10000.0),
            },
            tie_word_embeddings="output.weight" not in tensors,
            bos_token_id=self._get("tokenizer.ggml.bos_token_id"),
            eos_token_id=self._get("tokenizer.ggml.eos_token_id"),
            pad_token_id=self._get("tokenizer.ggml.padding_token_id"),
            **extra,
        )

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """(name in transformers, fp32 weight) of every tensor, dequantised one at a time."""
        config: Any = self.config()
        # llama.cpp permutes the rows of llama's q and k: it rotates neighbouring pairs.
        rotated = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
        for tensor in self._reader.tensors:
            name, kind = self._name(tensor.name)
            with self._one_line(f"tensor {tensor.name}"):
                weight = np.asarray(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
                if config.model_type == "llama" and kind in rotated:
                    weight = _unrotated(weight, rotated[kind])
            yield name, torch.from_numpy(np.require(weight, requirements=["C", "W"]))

    def _name(self, name: str) -> tuple[str, str]:
        """(name in transformers, kind within a block or "") of a GGUF tensor."""
        if name in _GLOBAL_TENSORS:
            return _GLOBAL_TENSORS[name], ""
        parts = name.split(".")
        if len(parts) == 4 and parts[0] == "blk" and parts[2] in _BLOCK_TENSORS:
            return f"model.layers.{parts[1]}.{_BLOCK_TENSORS[parts[2]]}.{parts[3]}", parts[2]
        raise GladiusError(
            f"{self.path}: tensor {name} is unknown in this architecture; "
            "use the model's safetensors folder instead"
        )

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokenizer, with special tokens and chat template."""
        with self._one_line("its tokenizer"):
            return self._tokenizer()

    def _tokenizer(self) -> PreTrainedTokenizerFast:
        tokens = self._need("tokenizer.ggml.tokens")
        kind = self._need("tokenizer.ggml.model")
        if kind == "gpt2":
            backend = self._byte_level(tokens)
        elif kind == "llama":
            backend = self._sentencepiece(tokens)
        else:
            raise GladiusError(
                f"{self.path}: tokenizer {kind} can't be rebuilt from GGUF; "
                "use the model's folder with its tokenizer.json instead"
            )
        backend.add_tokens(self._added(tokens, _USER_DEFINED))
        backend.add_special_tokens(self._added(tokens, _CONTROL))
        named = {
            role: tokens[index]
            for role, key in (
                ("bos_token", "bos_token_id"),
                ("eos_token", "eos_token_id"),
                ("unk_token", "unknown_token_id"),
                ("pad_token", "padding_token_id"),
            )
            if (index := self._get(f"tokenizer.ggml.{key}")) is not None
        }
        if self._adds_bos(kind) and "bos_token" in named:
            bos = named["bos_token"]
            backend.post_processor = TemplateProcessing(
                single=f"{bos} $A",
                pair=f"{bos} $A {bos}:1 $B:1",
                special_tokens=[(bos, self._need("tokenizer.ggml.bos_token_id"))],
            )
        return PreTrainedTokenizerFast(
            tokenizer_object=backend,
            chat_template=self._get("tokenizer.chat_template"),
            clean_up_tokenization_spaces=False,
            **named,
        )

    def _added(self, tokens: list[str], token_type: int) -> list[AddedToken]:
        types = self._need("tokenizer.ggml.token_type")
        special = token_type == _CONTROL
        kinds = (_CONTROL, _UNKNOWN) if special else (token_type,)
        return [
            AddedToken(token, special=special, normalized=False)
            for token, type_ in zip(tokens, types, strict=True)
            if type_ in kinds
        ]

    def _adds_bos(self, kind: str) -> bool:
        by_default = kind == "llama" or self._get("tokenizer.ggml.pre") == "llama-bpe"
        return bool(self._get("tokenizer.ggml.add_bos_token", by_default))

    def _byte_level(self, tokens: list[str]) -> Tokenizer:
        pre = self._get("tokenizer.ggml.pre", "gpt-2")
        if pre not in _SPLITS:
            raise GladiusError(
                f"{self.path}: its pre-tokenizer {pre} is unknown; "
                "use the model's folder with its tokenizer.json instead"
            )
        # A merge is two tokens with one space between: byte-level tokens contain no space.
        merges = [
            (left, right)
            for left, right in (m.split(" ", 1) for m in self._need("tokenizer.ggml.merges"))
        ]
        vocabulary = {token: index for index, token in enumerate(tokens)}
        # Llama 3 uses a pre-token that is in the vocabulary directly, without merging.
        backend = Tokenizer(BPE(vocabulary, merges, ignore_merges=pre == "llama-bpe"))
        backend.pre_tokenizer = _SPLITS[pre]()
        backend.decoder = decoders.ByteLevel()
        return backend

    def _sentencepiece(self, tokens: list[str]) -> Tokenizer:
        vocabulary = {token: index for index, token in enumerate(tokens)}
        merges = merges_from_scores(tokens, self._need("tokenizer.ggml.scores"))
        unknown = tokens[self._get("tokenizer.ggml.unknown_token_id", 0)]
        backend = Tokenizer(
            BPE(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
        )
        steps: list[normalizers.Normalizer] = [normalizers.Replace(" ", "▁")]
        ends: list[decoders.Decoder] = [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
        ]
        if self._get("tokenizer.ggml.add_space_prefix", True):
            steps.insert(0, normalizers.Prepend("▁"))
            ends.append(decoders.Strip(" ", 1, 0))
        backend.normalizer = normalizers.Sequence(steps)
        backend.decoder = decoders.Sequence(ends)
        return backend


def merges_from_scores(tokens: list[str], scores: list[float]) -> list[tuple[str, str]]:
    """The merges of a SentencePiece BPE: every pair of tokens that joins to a token, best first.

    The order is the one of transformers' SentencePiece conversion, so that token ids agree.
    """
    index = {token: n for n, token in enumerate(tokens)}
    merges: list[tuple[str, str, float]] = []
    for token, score in zip(tokens, scores, strict=True):
        pairs = [
            (token[:cut], token[cut:])
            for cut in range(1, len(token))
            if token[:cut] in index and token[cut:] in index
        ]
        pairs.sort(key=lambda pair: (index[pair[0]], index[pair[1]]))
        merges += [(left, right, score) for left, right in pairs]
    merges.sort(key=lambda merge: (merge[2], len(merge[0]), len(merge[1])), reverse=True)
    return [(left, right) for left, right, _ in merges]
