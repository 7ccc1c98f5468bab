"""Runs of the golden tests: inputs, the command as a process, and the numbers that are compared.

Nothing of the program is imported. The tests run `./gladius_train` and read the numbers from the
events of `--json` and the saved model. Every name of the program's interface that they depend on is
in the first part of this file.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import tokenizers
import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

Numbers = dict[str, str]
"""Numbers of a run as text; the keys are `step N`, `evaluation N` and `weights`."""

# The program's interface

REPO = Path(__file__).resolve().parents[2]
LAUNCHER = REPO / "gladius_train"
EVENT_TYPE, STEP = "type", "step"
STEP_EVENT, EVALUATION_EVENT = "StepDone", "EvalDone"
STEP_NUMBERS = ("loss", "kl", "ce", "grad_norm", "lr", "mean_weight")
"""Fields of a step's event that are compared bit for bit."""
SAVED_MODEL = "models/*/model.safetensors"
"""Glob pattern relative to the root."""

HERE = "/proc/self/cwd" if Path("/proc/self/cwd").exists() else "."
"""An absolute path of the working folder that is the same for every root.

A run stores the absolute paths of its text and experts, and seeds of its answers depend on them.
Without /proc, roots must have the same path for the same numbers.
"""

RECORDING = bool(os.environ.get("GOLDEN_RECORD"))

CONFIG = """
[student]
hidden_size = 16
intermediate_size = 24
num_hidden_layers = 2
num_attention_heads = 2
num_key_value_heads = 1
vocab_size = 288
max_position_embeddings = 128
tokenizer = "train"

[data]
generate = false
max_answer_tokens = 12
keep_answers = "all"
held_out = 0.1

[targets]
top_k = 16
draws = 4
draw_epochs = 2

[loss]
alpha = 0.5
temperature = 2.0

[optimizer]
lr = 0.002
micro_batch_size = 2
rows_per_step = 4
max_seq_len = 128

[schedule]
warmup_steps = 4
eval_interval = 8
log_interval = 1
sample_tokens = 4
capability_prompts = 0
on_policy_share = 0.25
on_policy_from = 0.3
on_policy_interval = 6
on_policy_answers = 6
mix = "deficits"

[device]
device = "cpu"
precision = "fp32"
threads = 1
"""
"""Overrides of the preset `nano`, with the field names of the version that made the record."""

# Inputs

WORDS = ("river", "town", "bank", "old", "snow", "stone", "bridge", "water", "mill", "field")
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def _sentence(seed: int, words: int) -> str:
    return " ".join(WORDS[(seed * 7 + n * n * 3 + n // 4) % len(WORDS)] for n in range(words))


def write_text(path: Path, examples: int, words: int) -> None:
    """Write documents and, as every third example, a conversation, without random numbers."""
    with open(path, "w", encoding="utf-8") as file:
        for n in range(examples):
            example: dict[str, Any] = {"text": f"{n} {_sentence(n, words)}."}
            if n % 3 == 0:
                question = {"role": "user", "content": f"Tell of the {WORDS[n % 10]} {n}."}
                answer = {"role": "assistant", "content": _sentence(n + 5, words)}
                example = {"messages": [question, answer]}
            file.write(json.dumps(example) + "\n")


def byte_level_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE with a chat template, like those of Qwen and Llama 3."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=276,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(["user and assistant tell of the river and the town"] * 4, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        chat_template=(
            "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
            "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
        ),
    )


def sentencepiece_tokenizer() -> PreTrainedTokenizerFast:
    """A SentencePiece-style BPE with byte fallback and a leading space, like that of Llama 2."""
    merges = [("▁", "t"), ("h", "e"), ("▁t", "he"), ("r", "i"), ("o", "w"), ("e", "r"), ("s", "t")]
    letters = "▁abcdefghijklmnopqrstuvwxyz"
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *letters]
    tokens += [a + b for a, b in merges]
    backend = Tokenizer(
        models.BPE(
            vocab={token: n for n, token in enumerate(tokens)},
            merges=merges,
            unk_token="<unk>",
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    backend.add_special_tokens([AddedToken(t, special=True) for t in ("<unk>", "<s>", "</s>")])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="</s>",
        chat_template=(
            "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + eos_token }}"
            "{{ '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
        ),
    )


def _write_expert(folder: Path, tokenizer: PreTrainedTokenizerFast, seed: int) -> None:
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    model = LlamaForCausalLM(config)
    # Independent of the library's initialisation, whose order may change between versions.
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if "norm" not in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for path in folder.iterdir():  # the program compares modification times
        os.utime(path, (1_700_000_000, 1_700_000_000))


def make_inputs(root: Path, examples: int = 40, words: int = 24) -> None:
    """Two experts with different tokenizers, a text and a config file, in an empty root."""
    _write_expert(root / "one", byte_level_tokenizer(), seed=1)
    _write_expert(root / "two", sentencepiece_tokenizer(), seed=2)
    (root / "gladius.toml").write_text(
        f'[experts.one]\ntitle = "One"\nrepo = "{HERE}/one"\nend_tokens = ["<|im_end|>"]\n'
        f'[experts.two]\ntitle = "Two"\nrepo = "{HERE}/two"\nend_tokens = ["</s>"]\n'
        "weight = 2.0\n"
    )
    (root / "config.toml").write_text(CONFIG)
    write_text(root / "text.jsonl", examples, words)


# Running the command


class Run:
    """The command on one root, with the root as working folder; `events` has all its events.

    runtime: a folder with a short path for its control sockets.
    """

    def __init__(self, root: Path, runtime: Path) -> None:
        self.root = root
        self.events: list[dict[str, Any]] = []
        self._environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("HF_", "GLADIUS"))
        } | {
            "XDG_RUNTIME_DIR": str(runtime),
            "OMP_NUM_THREADS": "1",
            "OMP_WAIT_POLICY": "PASSIVE",
            "HF_HUB_OFFLINE": "1",
        }

    def train(self, steps: int, *settings: str, stop_at: int = 0) -> None:
        """Train for `steps` steps; settings as section.field=value.

        stop_at: send SIGTERM once this step was printed. The run stops at this step or one of the
        next few; the numbers do not depend on which.
        """
        words = ["train", "--preset", "nano", "--config", str(self.root / "config.toml")]
        words += ["--experts", "one,two", "--data", f"{HERE}/text.jsonl"]
        for setting in (f"schedule.max_steps={steps}", *settings):
            words += ["--set", setting]
        self._command(words, stop_at)

    def resume(self, *settings: str) -> None:
        """Resume the run; settings as in `train`."""
        self._command(["resume", *(w for setting in settings for w in ("--set", setting))])

    def _command(self, words: list[str], stop_at: int = 0) -> None:
        number = len(list(self.root.glob("out-*")))
        errors = self.root / f"err-{number}"
        with open(errors, "wb") as error_file:
            process = subprocess.Popen(
                [str(LAUNCHER), "--root", str(self.root), "--no-ui", "--json", *words],
                stdout=subprocess.PIPE,
                stderr=error_file,
                cwd=self.root,
                env=self._environment,
            )
        try:
            assert process.stdout is not None
            stopping = False
            with open(self.root / f"out-{number}", "wb") as output:
                for line in process.stdout:
                    output.write(line)
                    self.events.append(json.loads(line))
                    if stop_at and not stopping and self.steps()[-1:] >= [stop_at]:
                        process.send_signal(signal.SIGTERM)
                        stopping = True
            code = process.wait(60)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait(60)
        expected = 128 + signal.SIGTERM if stop_at else 0
        assert code == expected, f"exit code {code}\n{errors.read_text()}"

    def steps(self) -> list[int]:
        """The steps that it printed, in order."""
        return [event[STEP] for event in self.events if event[EVENT_TYPE] == STEP_EVENT]

    def numbers(self) -> Numbers:
        """The numbers that must not change: those of every step (the last time it was taken) and
        evaluation as hexadecimal floats, and the digest of the final weights."""
        found: Numbers = {}
        for event in self.events:
            if event[EVENT_TYPE] == STEP_EVENT:
                numbers = [f"{name}={_hex(event[name])}" for name in STEP_NUMBERS]
                found[f"step {event[STEP]}"] = " ".join([*numbers, f"tokens={event['tokens']}"])
            elif event[EVENT_TYPE] == EVALUATION_EVENT:
                numbers = [f"bits_per_byte={_hex(event['bits_per_byte'])}"]
                numbers += [f"kl({s['expert']})={_hex(s['kl'])}" for s in event["scores"]]
                found[f"evaluation {event[STEP]}"] = " ".join(numbers)
        return {**found, "weights": self.weights_digest()}

    def weights_digest(self) -> str:
        """SHA-256 over names, types, shapes and bytes of the saved model's tensors."""
        (path,) = self.root.glob(SAVED_MODEL)
        digest = hashlib.sha256()
        for name, tensor in sorted(safetensors.torch.load_file(path).items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


def _hex(number: float | None) -> str:
    return "none" if number is None else float(number).hex()


# The record

RECORD = Path(__file__).with_name("golden.json")


def processor() -> dict[str, Any]:
    """The processor and library versions, on which the last bits of the numbers depend."""
    facts: dict[str, str] = {}
    try:
        for line in Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines():
            name, _, value = line.partition(":")
            facts[name.strip()] = value.strip()
    except OSError:
        pass  # not Linux: only the machine type and torch's CPU capability are known
    flags = facts.get("flags", facts.get("Features", "")).split()
    return {
        "machine": platform.machine(),
        "cpu": facts.get("model name", platform.processor()),
        "model": "/".join(facts.get(n, "?") for n in ("vendor_id", "cpu family", "model")),
        "vector": " ".join(sorted(f for f in flags if f.startswith(("avx", "amx", "fma", "sve")))),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": 1,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "tokenizers": tokenizers.__version__,
    }


def recorded(name: str) -> tuple[Numbers | None, str]:
    """The numbers recorded for a run on this kind of processor, or None and the reason."""
    current = processor()
    reasons: list[str] = []
    for record in _records():
        other = record["processor"]
        if other == current and name in record["runs"]:
            return record["runs"][name], ""
        reasons += [
            f"{key} is {current[key]!r} here and {other.get(key)!r} in the record"
            for key in current
            if other.get(key) != current[key]
        ]
    return None, "no record for this kind of processor: " + (
        "; ".join(reasons) or "none of " + name
    )


def write_record(name: str, numbers: Numbers) -> None:
    """Store the numbers of a run in the record of this kind of processor."""
    assert "PYTEST_XDIST_WORKER" not in os.environ, "record without -n: the file has one writer"
    records = _records()
    record = next((r for r in records if r["processor"] == processor()), None)
    if record is None:
        record = {"processor": processor(), "runs": {}}
        records.append(record)
    record["runs"][name] = numbers
    RECORD.write_text(json.dumps(records, indent=1) + "\n")


def _records() -> list[dict[str, Any]]:
    return json.loads(RECORD.read_text()) if RECORD.exists() else []


def check(name: str, numbers: Numbers) -> None:
    """Compare with the record; the assertion message lists the first differences.

    With GOLDEN_RECORD set the numbers are recorded instead; without a record the test is skipped.
    """
    if RECORDING:
        write_record(name, numbers)
        return
    expected, reason = recorded(name)
    if expected is None:
        pytest.skip(reason)
    differing = [
        f"{key}\n  now      {numbers.get(key)}\n  recorded {expected.get(key)}"
        for key in dict.fromkeys((*expected, *numbers))
        if numbers.get(key) != expected.get(key)
    ]
    assert not differing, f"{len(differing)} entries differ\n" + "\n".join(differing[:6])
