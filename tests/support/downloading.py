"""Shared helpers of tests of the download job: the files of a tiny model, and a recording link."""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from engine.events import AnyCommand, Event, LogLine, Progress, RunEnded

END = "<end>"
_BACKEND = Tokenizer(BPE({char: n for n, char in enumerate(sorted(ByteLevel.alphabet()))}, []))
_BACKEND.pre_tokenizer = ByteLevel(add_prefix_space=False)
_BACKEND.decoder = ByteLevelDecoder()
_BACKEND.add_special_tokens([AddedToken(END, special=True)])
TEMPLATE = "{% for m in messages %}{{ m['content'] }}<end>{% endfor %}"
TOKENIZER = _BACKEND.to_str().encode()
CONFIG = json.dumps(
    {
        "model_type": "llama",
        "hidden_size": 8,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
        "intermediate_size": 16,
        "vocab_size": 257,
        "tie_word_embeddings": True,
        "max_position_embeddings": 256,
    }
).encode()
_LAYER = "model.layers.0."
SHAPES = {
    "model.embed_tokens.weight": (257, 8),
    "model.norm.weight": (8,),
    **{_LAYER + f"self_attn.{part}_proj.weight": (8, 8) for part in "qkvo"},
    **{_LAYER + f"mlp.{part}_proj.weight": (16, 8) for part in ("gate", "up")},
    _LAYER + "mlp.down_proj.weight": (8, 16),
    _LAYER + "input_layernorm.weight": (8,),
    _LAYER + "post_attention_layernorm.weight": (8,),
}
"""The tensors of the tiny model."""
_MODEL_BYTES = sum(4 * math.prod(shape) for shape in SHAPES.values())


def safetensors(count: int, seed: int = 0, name: str = "w") -> bytes:
    """A valid safetensors file with `count` bytes of data.

    If they are enough, it holds the tiny model, and a tensor `name` of pseudo-random bytes.
    """
    shapes = SHAPES if count > _MODEL_BYTES and name in ("w", "w1") else {}
    header: dict[str, object] = {}
    data = bytearray()
    values = np.random.default_rng(seed)
    for tensor, shape in shapes.items():
        content = values.normal(0, 0.1, shape).astype("<f4").tobytes()
        offsets = [len(data), len(data) + len(content)]
        header[tensor] = {"dtype": "F32", "shape": list(shape), "data_offsets": offsets}
        data += content
    left = count - len(data)
    header[name] = {"dtype": "U8", "shape": [left], "data_offsets": [len(data), count]}
    data += random.Random(seed).randbytes(left)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(data)


def model_files(count: int = 3_000_000, **more: bytes | Path) -> dict[str, bytes | Path]:
    """Files of a repository: a tiny model with weights of `count` bytes, and files that must not be
    downloaded."""
    return {
        "config.json": CONFIG,
        "tokenizer.json": TOKENIZER,
        "tokenizer_config.json": json.dumps({"eos_token": END, "chat_template": TEMPLATE}).encode(),
        "model.safetensors": safetensors(count),
        "pytorch_model.bin": b"never fetched",
        "evil.py": b"never fetched",
        "original/consolidated.00.pth": b"never fetched",
        **more,
    }


def big_shards(folder: Path, megabytes: int) -> dict[str, bytes | Path]:
    """Weights in two shards with their index; the shards are files in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, bytes | Path] = {}
    weight_map: dict[str, str] = {}
    for number in (1, 2):
        name = f"model-0000{number}-of-00002.safetensors"
        files[name] = folder / name
        (folder / name).write_bytes(safetensors(megabytes * 500_000, number, f"w{number}"))
        weight_map |= dict.fromkeys([f"w{number}", *(SHAPES if number == 1 else ())], name)
    files["model.safetensors.index.json"] = json.dumps(
        {"metadata": {}, "weight_map": weight_map}
    ).encode()
    return files


class RecordingLink:
    """A `JobLink` that records the events; `on_event(event)` may return the next command."""

    def __init__(self, *commands: AnyCommand) -> None:
        self.events: list[Event] = []
        self.commands: list[AnyCommand] = list(commands)
        self.on_event: Callable[[Event], AnyCommand | None] = lambda event: None

    def emit(self, event: Event) -> None:
        self.events.append(event)
        command = self.on_event(event)
        if command is not None:
            self.commands.append(command)

    def poll(self) -> list[AnyCommand]:
        commands, self.commands = self.commands, []
        return commands

    def wait(self, timeout: float) -> list[AnyCommand]:
        time.sleep(min(timeout, 0.05))
        return self.poll()

    def commit(self) -> None:
        pass

    def heartbeat(self, activity: str = "") -> None:
        pass

    @contextmanager
    def busy(self, activity: str, at_most: float = 3600.0) -> Iterator[None]:
        yield

    def of(self, kind: type) -> list:
        return [event for event in self.events if isinstance(event, kind)]

    @property
    def ended(self) -> RunEnded:
        assert isinstance(self.events[-1], RunEnded)
        return self.events[-1]

    @property
    def lines(self) -> list[str]:
        return [event.text for event in self.of(LogLine)]

    def tasks(self) -> set[str]:
        return {event.task for event in self.of(Progress)}
