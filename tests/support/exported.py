"""Small models of both tokenizer families with random weights, and an export of them in this
process."""

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
from engine.export.tensors import Weights
from engine.export.tokenizer import read_gguf_tokenizer
from engine.run.job import JobContext
from engine.workspace import Workspace
from tests.support.paths import REPO
from tests.support.small_run import KeepingLink

needs_llama_cpp = pytest.mark.skipif(
    find_python() is None, reason="llama-cpp-python is not here: run `make llama-cpp`"
)


def byte_level_tokenizer() -> PreTrainedTokenizerFast:
    """What `student.tokenizer=train` makes, of text that ships."""
    with open(REPO / "assets" / "conversations" / "demo.jsonl", encoding="utf-8") as file:
        return train_tokenizer((line for _, line in zip(range(120), file, strict=False)), 900)


def llama2_tokenizer() -> PreTrainedTokenizerFast:
    """The real vocabulary, where `make tokenizers` has fetched it."""
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
    """A model folder as training leaves it; `rows` of the embedding, else one for each token."""
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
    with torch.no_grad():  # norms of one would hide a norm that is left out or laid elsewhere
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.uniform_(0.5, 1.5)
    model.to(dtype).save_pretrained(folder)
    save_tokenizer(tokenizer, folder)
    return folder


def write(folder: Path, path: Path, kind: str = "f16") -> Path:
    """The model in `folder` as a GGUF file, written and not compared."""
    weights = Weights(folder)
    tokenizer = read_gguf_tokenizer(folder, weights.config["vocab_size"])
    options: dict[str, Any] = {"wanted": kind, "name": "tiny", "report": lambda *_: None}
    write_gguf(path, weights, tokenizer, **options)
    return path


def root_with(model: Path, folder: Path) -> Workspace:
    """A root whose finished model this is."""
    workspace = Workspace.find(folder)
    workspace.create()
    shutil.copytree(model, workspace.model_dir)
    return workspace


def export(workspace: Workspace, link: KeepingLink | None = None, **config: Any) -> KeepingLink:
    """The job as the worker process does it; what it said."""
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
    """Set fields of a JSON file; `a__b` is b in a."""
    data = json.loads(path.read_bytes())
    for name, value in fields.items():
        *parents, last = name.split("__")
        place = data
        for parent in parents:
            place = place[parent]
        place[last] = value
    path.write_text(json.dumps(data))
