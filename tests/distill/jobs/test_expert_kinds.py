"""Prepare runs with the experts that people bring: short contexts, missing rows, scaled logits."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from engine.distill.jobs.expert_preparation import PreparedExpert
from engine.workspace import Workspace
from tests.support.small_run import make_config, make_root, prepare
from tests.support.tiny_expert import make_tokenizer
from tests.support.tiny_models import tiny_model


@pytest.fixture
def ws(tmp_path: Path) -> Workspace:
    return make_root(tmp_path)


def use_model(ws: Workspace, name: str, **fields) -> Path:
    """Put another model in the place of the expert `tiny`; returns its folder."""
    folder = ws.root / "tiny"
    for file in folder.iterdir():
        file.unlink()
    rows = len(make_tokenizer())
    tiny_model(name, vocab_size=rows, **fields).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def long_documents(ws: Workspace) -> None:
    """Documents of about 1,500 tokens of the expert in place of the short texts."""
    with open(ws.root / "text.jsonl", "w", encoding="utf-8") as file:
        for n in range(12):
            words = " ".join(f"river{n} stone{m}" for m in range(60))
            file.write(json.dumps({"text": words}) + "\n")


def prepared(ws: Workspace, **fields) -> PreparedExpert:
    return prepare(ws, make_config(ws, **fields))[1]["tiny"]


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_run_with_an_expert_of_short_context_cuts_its_blocks(ws, name):
    """GPT-2 has 1,024 positions, TinyLlama 2,048: longer rows must not reach them."""
    use_model(ws, name, max_position_embeddings=70)
    long_documents(ws)
    expert = prepared(ws, optimizer__max_seq_len=128)
    counts = expert.sources["tiny"][0].token_counts()
    use_model(ws, name, max_position_embeddings=2048)
    whole = prepared(ws, optimizer__max_seq_len=128).sources["tiny"][0].token_counts()
    assert len(counts) > len(whole) > 0, "more blocks than with a long context"
    assert sum(counts) >= sum(whole), "no text is lost"


def test_the_targets_of_another_context_are_not_used(ws):
    use_model(ws, "llama", max_position_embeddings=70)
    (ws.root / "tiny" / "manifest.json").write_text("{}")  # the content stays the same
    first = prepared(ws).held_out.folder
    config = ws.root / "tiny" / "config.json"
    config.write_text(config.read_text().replace(": 70", ": 90"))
    second = prepared(ws).held_out.folder
    config.write_text(config.read_text().replace(": 90", ": 70"))
    assert first != second and first == prepared(ws).held_out.folder


def test_a_run_with_an_added_token_without_a_row_is_prepared(ws):
    folder = use_model(ws, "llama")
    content = json.loads((folder / "tokenizer.json").read_text())
    rows = len(make_tokenizer())
    content["added_tokens"].append(
        dict(content["added_tokens"][0], id=rows, content="<pad>", special=True)
    )
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    assert len(prepared(ws).held_out) > 0


def test_the_scale_of_an_experts_logits_is_in_its_targets(ws):
    def entropy(scaling: float) -> float:
        use_model(ws, "granite", logits_scaling=scaling)
        shards = prepared(ws, loss__temperature=1.0).held_out
        return float(np.concatenate(list(shards.column("entropy"))).mean())

    sharp, flat = entropy(0.125), entropy(1.0)
    assert sharp < flat - 1.0, "logits * 8 give a sharper distribution"
