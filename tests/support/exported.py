"""Small random models with both kinds of tokenizer, and exports of them in this process."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from engine.distill.student import load_tokenizer, save_tokenizer, train_tokenizer
from engine.events import JobRequest
from engine.export.gguf import write_gguf
from engine.export.job import ExportJob
from engine.export.llama_runtime import find_python
from engine.export.progress import no_progress
from engine.export.tokenizer import read_gguf_tokenizer
from engine.export.weights import Weights
from engine.run.job import JobContext
from engine.workspace import Workspace
from tests.support.paths import REPO
from tests.support.small_run import KeepingLink

needs_llama_cpp = pytest.mark.skipif(
    find_python() is None, reason="llama-cpp-python is not installed: run `make llama-cpp`"
)


def byte_level_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer as `student.tokenizer=train` makes it, trained on text that ships."""
    with open(REPO / "assets" / "conversations" / "demo.jsonl", encoding="utf-8") as file:
        return train_tokenizer((line for _, line in zip(range(120), file, strict=False)), 900)


def llama2_tokenizer() -> PreTrainedTokenizerFast:
    """The real Llama 2 tokenizer; skips the test where `make tokenizers` has not fetched it."""
    folder = REPO / "tmp" / "tokenizers" / "llama2"
    if not (folder / "tokenizer.json").is_file():
        pytest.skip("the real tokenizer llama2 is not in tmp/: run `make tokenizers`")
    return load_tokenizer(folder, 32000)


def make_model(
    folder: Path,
    tokenizer: PreTrainedTokenizerFast,
    *,
    rows: int | None = None,
    dtype: torch.dtype = torch.bfloat16,
    tied: bool = True,
    **shape: Any,
) -> Path:
    """A model folder as training writes it; `rows` of the embedding, by default one per token."""
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
    }
    config = LlamaConfig(
        **{**sizes, **shape},
        vocab_size=rows or len(tokenizer),
        rope_parameters={"rope_type": "default", "rope_theta": 50000.0},
        tie_word_embeddings=tied,
        initializer_range=0.06,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():  # norms of one would hide a norm that is missing or misplaced
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.uniform_(0.5, 1.5)
    model.to(dtype).save_pretrained(folder)
    save_tokenizer(tokenizer, folder)
    return folder


def write(folder: Path, path: Path, kind: str = "f16") -> Path:
    """Write the model in `folder` as a GGUF file, without comparing it."""
    weights = Weights(folder)
    tokenizer = read_gguf_tokenizer(folder, weights.config["vocab_size"])
    write_gguf(path, weights, tokenizer, type_name=kind, model_name="tiny", report=no_progress)
    return path


def root_with(model: Path, folder: Path) -> Workspace:
    """A workspace with a copy of `model` as its finished model."""
    workspace = Workspace.find(folder)
    workspace.create()
    shutil.copytree(model, workspace.model_dir)
    return workspace


def export(workspace: Workspace, link: KeepingLink | None = None, **config: Any) -> KeepingLink:
    """Run the export job as a worker process does; returns the link with its events."""
    link = link or KeepingLink()
    request = JobRequest(
        job="export",
        root=str(workspace.root),
        run_id="export",
        attempt=1,
        config=msgspec.json.encode(config),
    )
    assert ExportJob(JobContext(link), request).run() == 0
    return link


def change_json(path: Path, **fields: Any) -> None:
    """Set fields of a JSON file; `a__b` means b in a."""
    data = json.loads(path.read_bytes())
    for name, value in fields.items():
        *parents, last = name.split("__")
        place = data
        for parent in parents:
            place = place[parent]
        place[last] = value
    path.write_text(json.dumps(data))
