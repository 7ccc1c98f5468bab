"""Export of a model with the 1b preset's shape and random bf16 weights:

`export_copy_ratio`: writing the f16 file, relative to copying the model's file; both with fsync.
`export_verify_ratio`: checking structure, tensors and token ids, relative to that copy.
`export_peak_mib`: peak memory of the exporting process, including verification and, where llama.cpp
is installed, the logits in transformers (llama.cpp itself runs in another process).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.timing import Figure, narrate, ratio
from engine.checkpoint.tensor_files import write_file
from engine.config import StudentConfig, load_config
from engine.distill.student import llama_config, save_tokenizer, train_tokenizer
from engine.export.gguf import write_gguf
from engine.export.parity.comparison import Comparison
from engine.export.parity.logits import check_logits
from engine.export.parity.structure import check_structure
from engine.export.parity.tensors import check_tensors
from engine.export.parity.tokens import check_tokens
from engine.export.progress import no_progress
from engine.export.tokenizer import read_gguf_tokenizer
from engine.export.weights import Weights
from engine.workspace import Workspace, assets_dir

COPY_BOUND = 2.0
PEAK_BOUND = 1536.0
ROUNDS = 3
_CHUNK = 8 << 20


def measure(folder: Path, preset: str = "1b") -> dict[str, Figure]:
    """`folder` needs space for three times the model (7 GB for 1b)."""
    config = load_config(Workspace.find(folder), preset=preset).student
    model = folder / "export-model"
    narrate(f"making a random model of the preset {preset}")
    make_model(model, config)
    size = (model / "model.safetensors").stat().st_size
    copied: list[float] = []
    exports: list[dict[str, float]] = []
    for number in range(ROUNDS):
        for part in ("copy", "export") if number % 2 == 0 else ("export", "copy"):
            if part == "copy":
                copied.append(_copy(model / "model.safetensors", folder / "copy"))
            else:
                exports.append(_export(model, folder / "out.gguf", logits=number == 0))
    written = [each["write"] for each in exports]
    verified = [each["verify"] for each in exports]
    peak = max(each["peak"] for each in exports)
    detail = {"model_bytes": size, "gguf_bytes": exports[0]["bytes"]}
    return {
        "export_copy_ratio": ratio(written, copied, COPY_BOUND, **detail),
        "export_verify_ratio": ratio(verified, copied, None, logits_seconds=exports[0]["logits"]),
        "export_peak_mib": Figure(peak, PEAK_BOUND, {"imports_alone": exports[0]["imports"]}),
    }


def make_model(folder: Path, student: StudentConfig) -> None:
    """Write a model that transformers loads: random weights, and a tokenizer trained on the demo's
    conversations."""
    folder.mkdir()
    with open(assets_dir() / "conversations" / "demo.jsonl", encoding="utf-8") as file:
        tokenizer = train_tokenizer(file, student.vocab_size)
    save_tokenizer(tokenizer, folder)
    config = llama_config(student, tokenizer)
    config.architectures = ["LlamaForCausalLM"]
    config.dtype = torch.bfloat16
    config.save_pretrained(folder)
    with torch.device("meta"):
        from transformers import LlamaForCausalLM

        shapes = {n: tuple(p.shape) for n, p in LlamaForCausalLM(config).named_parameters()}
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * torch.Size(shape).numel()
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)

    def pieces() -> Iterator[bytes | memoryview]:
        yield len(text).to_bytes(8, "little") + text
        generator = torch.Generator().manual_seed(0)
        for shape in shapes.values():
            values = torch.empty(shape, dtype=torch.bfloat16)
            if len(shape) == 1:
                values.fill_(1.0)
            else:
                values.normal_(0.0, 0.02, generator=generator)
            yield values.reshape(-1).view(torch.uint8).numpy().data

    write_file(folder / "model.safetensors", pieces())


def _copy(source: Path, target: Path) -> float:
    """Seconds to copy by reading and writing (a copy by the file system could share blocks)."""
    began = time.perf_counter()
    with open(source, "rb") as reading, open(target, "wb") as writing:
        while chunk := reading.read(_CHUNK):
            writing.write(chunk)
        writing.flush()
        os.fsync(writing.fileno())
    seconds = time.perf_counter() - began
    target.unlink()
    return seconds


def _export(model: Path, target: Path, *, logits: bool) -> dict[str, float]:
    """Export in a subprocess; returns its durations in seconds and its peak memory in MiB."""
    command = [sys.executable, "-m", "benchmarks.export", str(model), str(target)]
    command.append("logits" if logits else "")
    result = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    target.unlink()
    return json.loads(result.stdout.splitlines()[-1])


def _memory(key: str) -> float:
    """A field of /proc/self/status in MiB; 0 if there is no such file."""
    try:
        with open("/proc/self/status") as file:
            line = next(line for line in file if line.startswith(key))
    except (OSError, StopIteration):
        return 0.0
    return int(line.split()[1]) / 1024


def _child(model: Path, target: Path, with_logits: bool) -> dict[str, float]:
    imports = _memory("VmHWM")
    began = time.perf_counter()
    weights = Weights(model)
    tokenizer = read_gguf_tokenizer(model, weights.config["vocab_size"])
    size = write_gguf(
        target, weights, tokenizer, type_name="f16", model_name="random", report=no_progress
    )
    written = time.perf_counter()
    comparison = Comparison(target, model)
    rows = [check_structure(comparison), check_tensors(comparison), check_tokens(comparison)]
    verified = time.perf_counter()
    if with_logits:
        rows.append(check_logits(comparison))
    done = time.perf_counter()
    for row in rows:
        assert row.verdict in ("pass", "skip"), row
    return {
        "write": written - began,
        "verify": verified - written,
        "logits": done - verified,
        "bytes": size,
        "peak": _memory("VmHWM"),
        "imports": imports,
    }


if __name__ == "__main__":
    print(json.dumps(_child(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] == "logits")))
