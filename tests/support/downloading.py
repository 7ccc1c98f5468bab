"""Shared helpers of tests of the download job: the files of a tiny model, and a recording link."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.models import BPE

from engine.events import AnyCommand, Event, LogLine, Progress, RunEnded

TOKENIZER = Tokenizer(BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")])).to_str().encode()
CONFIG = json.dumps(
    {"model_type": "llama", "hidden_size": 8, "num_attention_heads": 2, "vocab_size": 3}
).encode()


def safetensors(count: int, seed: int = 0, name: str = "w") -> bytes:
    """A valid safetensors file with one tensor of `count` pseudo-random bytes."""
    entry = {name: {"dtype": "U8", "shape": [count], "data_offsets": [0, count]}}
    header = json.dumps(entry).encode()
    return len(header).to_bytes(8, "little") + header + random.Random(seed).randbytes(count)


def model_files(count: int = 3_000_000, **more: bytes | Path) -> dict[str, bytes | Path]:
    """Files of a repository: a tiny model with weights of `count` bytes, and files that must not be
    downloaded."""
    return {
        "config.json": CONFIG,
        "tokenizer.json": TOKENIZER,
        "tokenizer_config.json": b'{"model_max_length": 64}',
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
    weight_map = {}
    for number in (1, 2):
        name = f"model-0000{number}-of-00002.safetensors"
        files[name] = folder / name
        (folder / name).write_bytes(safetensors(megabytes * 500_000, number, f"w{number}"))
        weight_map[f"w{number}"] = name
    files["model.safetensors.index.json"] = json.dumps({"weight_map": weight_map}).encode()
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
