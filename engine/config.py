"""Owns RunConfig: everything that a training run depends on, its presets, and how it is read.

It does not own what the values mean to the trainer; the docstrings here give units and bounds.
"""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from engine.errors import UsageError
from engine.experts.registry import CAPABILITIES, load_experts
from engine.structs import Problem, convert, leaves, nearest, problems_text
from engine.text.sources import HUB, absolute_source
from engine.workspace import Workspace, assets_dir

# A field whose Meta says `extra={"mutable": True}` may be changed when a run is resumed.
_MUTABLE = {"mutable": True}

Positive = Annotated[int, Meta(ge=1)]
PositiveFloat = Annotated[float, Meta(gt=0)]
Share = Annotated[float, Meta(ge=0, le=1)]
Capability = Literal[
    "tool_calling", "json", "reasoning", "fluency", "math", "code", "safety", "instructions"
]


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the config."""


class StudentConfig(Section, frozen=True, kw_only=True):
    """The model to be trained: a LlamaForCausalLM, initialised at random."""

    hidden_size: Positive = 2048
    intermediate_size: Positive = 5632
    num_hidden_layers: Positive = 24
    num_attention_heads: Positive = 16
    num_key_value_heads: Positive = 4
    vocab_size: Positive = 32000
    """Rows of the embedding matrix; tokens the tokenizer lacks are added as unused ones."""
    max_position_embeddings: Positive = 8192
    """Context of the finished model, tokens."""
    rope_theta: PositiveFloat = 10000.0
    rms_norm_eps: PositiveFloat = 1e-5
    tie_word_embeddings: bool = True
    initializer_range: PositiveFloat = 0.02
    tokenizer: str = "tinyllama"
    """An expert's name, a folder or tokenizer.json, or `train`: a byte-level BPE of vocab_size
    tokens, trained on the run's own text."""


class ExpertsConfig(Section, frozen=True, kw_only=True):
    """The experts that teach, in the order of their phases."""

    names: Annotated[list[str], Meta(min_length=1)] = msgspec.field(
        default_factory=lambda: ["qwen", "llama", "phi", "tinyllama"]
    )
    weights: dict[str, Annotated[float, Meta(gt=0)]] = {}
    """Shares of budget and mix that replace the registry's."""


class CorpusConfig(Section, frozen=True, kw_only=True):
    """A public corpus that is streamed from the Hub."""

    source: str
    """hf:ORG/NAME[/CONFIG][@REVISION][:SPLIT[:COLUMN]]"""
    share: PositiveFloat = 1.0
    """Against the other corpora of the same expert."""
    capabilities: list[str] = []
    """It is taught by the experts that have one of these; none: by all."""
    tokens: PositiveFloat | None = None
    """About how many tokens it has (for the budget's figures)."""


class DataConfig(Section, frozen=True, kw_only=True):
    """The text that is learnt from."""

    files: list[str] = []
    """JSON Lines files with {"messages": [...]} or {"text": "..."}, plain text (.txt, .md),
    Parquet, folders of these, or hf:DATASET[:SPLIT[:COLUMN]]."""
    corpora: list[CorpusConfig] = []
    """Streamed besides; only where `generate` is true (else `files` are all there is)."""
    stream_above: PositiveFloat = 8.0
    """MiB of files (together) from which on they are streamed, not read whole before the start."""
    stream_share: Annotated[float, Meta(gt=0, le=1)] = 0.7
    """Share of an expert's rows that is streamed text, where it has other text too."""
    window: PositiveFloat = 0.5
    """MiB of streamed text that are read, shuffled and packed together."""
    generate: bool = True
    """Let each expert answer the prompts of its capabilities."""
    capabilities: list[Capability] = []
    """Ask only for these; none: for all that an expert has."""
    answers_per_prompt: Positive = 1
    max_answers: Annotated[int, Meta(ge=0)] | None = None
    """Answers that each expert writes in all. After the hand-written prompts come variants that
    generators make, tens of thousands of each capability; None: the hand-written ones alone."""
    max_answer_tokens: Positive = 384
    answer_temperature: Annotated[float, Meta(ge=0)] | None = None
    """0 is greedy; None: by capability (engine/prompts/sampling.py)."""
    answer_top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    generation_batch: Positive = 16
    keep_answers: Literal["right", "sound", "all"] = "right"
    """right: drop what a checker finds wrong; sound: only empty, looping, echoing and repeated
    answers; all: only empty ones."""
    held_out: Annotated[float, Meta(gt=0, lt=1)] = 0.05
    """Share of the blocks that is kept for evaluation and never trained on."""
    max_held_out_blocks: Positive = 64
    """Most held-out blocks for each expert (evaluation time grows with them)."""
    held_out_streamed: Positive = 16
    """Held-out blocks of each expert's streamed text."""
    max_teacher_tokens: Positive | None = None
    """Most tokens that each expert scores before the first step; None: all its text."""


class TargetsConfig(Section, frozen=True, kw_only=True):
    """Where soft targets come from and what is kept of them."""

    source: Literal["auto", "cached", "online"] = "auto"
    """cached: text is scored once, before the first step, and kept. online: the expert stays in
    memory and scores each batch. auto: online for what is streamed, cached for the rest."""
    top_k: Positive = 64
    """Most probable student tokens kept exactly, per position (cached)."""
    draws: Positive = 32
    """Draws from the rest, per position and epoch (cached)."""
    draw_epochs: Positive = 4
    """Epochs before the draws repeat (cached)."""
    min_mass: Share = 0.05
    """Gamma: below this mass under rule 2 a position has no soft target."""


class LossConfig(Section, frozen=True, kw_only=True):
    """L = mean(alpha w T^2 D(q_T, p_T) + (1 - alpha w) CE)."""

    divergence: Literal["forward_kl", "reverse_kl", "jsd"] = "forward_kl"
    """D, between the expert's distribution q_T and the student's p_T: KL(q_T || p_T),
    KL(p_T || q_T), or the Jensen-Shannon divergence (engine/distill/train/divergences.py)."""
    alpha: Share = 0.5
    """Weight of the expert's distribution against the text; 0 is plain cross-entropy."""
    temperature: PositiveFloat = 2.0
    chunk_size: Annotated[int, Meta(ge=0)] = 0
    """Positions whose logits exist at a time; 0: chosen from the vocabulary's size."""


class OptimizerConfig(Section, frozen=True, kw_only=True):
    """Fused AdamW and the shape of a step."""

    lr: PositiveFloat = 3e-4
    beta1: Annotated[float, Meta(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Meta(ge=0, lt=1)] = 0.95
    eps: PositiveFloat = 1e-8
    weight_decay: Annotated[float, Meta(ge=0)] = 0.1
    grad_clip: PositiveFloat = 1.0
    """Largest norm of the whole gradient."""
    micro_batch_size: Annotated[int, Meta(ge=1, extra=_MUTABLE)] = 1
    """Packed rows that go through the model at once."""
    rows_per_step: Positive = 16
    """Packed rows of one optimizer step (micro_batch_size x accumulation)."""
    max_seq_len: Annotated[int, Meta(ge=16)] = 2048
    """Tokens of a packed row."""
    activation_checkpointing: Annotated[bool, Meta(extra=_MUTABLE)] = False


class ScheduleConfig(Section, frozen=True, kw_only=True):
    """How long, and the learning rate: warmup, stable, decay."""

    max_steps: Annotated[int, Meta(ge=1, extra=_MUTABLE)] | None = None
    """Optimizer steps of the whole run; None: until hours are over or it has converged."""
    hours: Annotated[float, Meta(gt=0, extra=_MUTABLE)] | None = None
    """Unpaused worker time of the whole run, decay and save included."""
    expert_tokens: Positive = 250_000_000
    """Student tokens of each expert phase when neither max_steps nor hours is given."""
    unified_tokens: Positive | None = None
    """Most student tokens of the unified phase; None: until it has converged."""
    expert_share: Share = 0.6
    """Share of a budget that goes to the expert phases together; the unified phase has the rest."""
    decay_share: Share = 0.15
    """Share of the whole budget in which the learning rate decays (part of the unified phase)."""
    min_lr_ratio: Share = 0.0
    """Learning rate at the end of the decay, as a share of lr."""
    replay: Share = 0.2
    """Share of earlier experts' text in later expert phases."""
    mix: Literal["weights", "deficits"] = "weights"
    """Of the unified phase: by the experts' weights, or those times what the student still lacks
    of each (held-out KL), measured anew at every evaluation."""
    on_policy_share: Share = 0.0
    """Share of the rows that the student wrote itself, to prompts of its text, and the expert
    judges (KL alone; generalised knowledge distillation)."""
    on_policy_from: Share = 0.5
    """Share of the run after which that begins (with the unified phase where no end is known)."""
    on_policy_interval: Positive = 50
    """Steps after which the student writes anew."""
    on_policy_answers: Positive = 64
    """Answers that it writes each time; none is learnt from more than twice."""
    warmup_steps: Annotated[int, Meta(ge=0)] = 100
    log_interval: Annotated[int, Meta(ge=1, extra=_MUTABLE)] = 10
    """Steps between printed lines (every step is in the history)."""
    eval_interval: Annotated[int, Meta(ge=1, extra=_MUTABLE)] = 500
    """Steps between evaluations on held-out text."""
    sample_tokens: Annotated[int, Meta(ge=1, extra=_MUTABLE)] = 64
    """Tokens of the sample text at each evaluation."""
    capability_prompts: Annotated[int, Meta(ge=0, extra=_MUTABLE)] = 4
    """Held-out prompts of each capability that the student answers at each evaluation, judged by
    rule; 0: none."""
    capability_tokens: Annotated[int, Meta(ge=1, extra=_MUTABLE)] = 64
    """Most tokens of each of these answers."""
    converge_patience: Annotated[int, Meta(ge=1, extra=_MUTABLE)] = 5
    """Evaluations of the unified phase without progress that count as converged."""
    converge_delta: Annotated[float, Meta(ge=0, extra=_MUTABLE)] = 0.002
    """Progress is a fall of held-out bits per byte by at least this."""


class CheckpointConfig(Section, frozen=True, kw_only=True):
    """When the run is saved, and how much is kept."""

    interval_steps: Annotated[int, Meta(ge=1, extra=_MUTABLE)] | None = None
    interval_minutes: Annotated[float, Meta(gt=0, extra=_MUTABLE)] | None = 15.0
    keep: Annotated[int, Meta(ge=2, extra=_MUTABLE)] = 2
    """Newest full checkpoints that stay."""
    keep_best: Annotated[bool, Meta(extra=_MUTABLE)] = True
    """Keep the weights of the best evaluation as well."""


class GuardsConfig(Section, frozen=True, kw_only=True):
    """What is done about bad numbers."""

    max_non_finite: Annotated[int, Meta(ge=1, extra=_MUTABLE)] = 3
    """Non-finite steps in a row before a rollback."""
    max_rollbacks: Annotated[int, Meta(ge=0, extra=_MUTABLE)] = 2
    rollback_lr_scale: Annotated[float, Meta(gt=0, le=1)] = 0.5
    spike_factor: Annotated[float, Meta(gt=1)] = 10.0
    """A gradient norm over this many times its running median is a spike: the step is skipped."""
    spike_window: Positive = 64
    """Steps of the running median; no spike is called before a quarter of them."""
    max_spikes: Positive = 3
    """Spikes skipped in a row; with a longer row it is the weights that have to move."""


class DeviceConfig(Section, frozen=True, kw_only=True):
    """Where and how it computes."""

    device: Annotated[Literal["auto", "cuda", "mps", "cpu"], Meta(extra=_MUTABLE)] = "auto"
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Of the matrix products; master weights are fp32. auto: bf16 where the processor has it."""
    threads: Annotated[int, Meta(ge=0)] = 0
    """CPU threads of torch; 0: one per physical core."""
    deterministic: bool = False
    """Bit-exact on CUDA too (slower); the CPU always is for a fixed number of threads."""


class RunConfig(Section, frozen=True, kw_only=True):
    """Everything that a training run depends on."""

    preset: str = "1b"
    seed: Annotated[int, Meta(ge=0, le=2**31 - 1)] = 0
    student: StudentConfig = StudentConfig()
    experts: ExpertsConfig = ExpertsConfig()
    data: DataConfig = DataConfig()
    targets: TargetsConfig = TargetsConfig()
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    guards: GuardsConfig = GuardsConfig()
    device: DeviceConfig = DeviceConfig()


def preset_names() -> list[str]:
    """The presets that ship, by name."""
    return sorted(path.stem for path in (assets_dir() / "presets").glob("*.toml"))


def load_config(
    workspace: Workspace,
    *,
    preset: str | None = None,
    file: str | Path | None = None,
    overrides: Sequence[str] = (),
    experts: Sequence[str] | None = None,
    data: Sequence[str] = (),
    hours: float | None = None,
) -> RunConfig:
    """A checked config: the preset, then `file` (TOML), then `overrides` (key=value), then options.

    `preset` is the option's, else the file's, else `1b`. Paths become absolute. UsageError names
    every problem at once, each with its field and what it may be.
    """
    given = _read_toml(Path(file)) if file is not None else {}
    name = preset or given.get("preset", "1b")
    if name not in preset_names():
        raise UsageError(f"unknown preset {name!r}; {nearest(str(name), preset_names())}")
    tables = _read_toml(assets_dir() / "presets" / f"{name}.toml")
    _merge(tables, given)
    problems: list[Problem] = []
    for override in overrides:
        problems += _set(tables, override)
    options: dict[str, Any] = {"preset": name}
    if experts is not None:
        options["experts"] = {"names": list(experts)}
    if data:
        options["data"] = {"files": [str(path) for path in data]}
    if hours is not None:
        options["schedule"] = {"hours": hours}
    _merge(tables, options)
    return _checked(workspace, tables, problems)


def change_config(
    workspace: Workspace, config: RunConfig, overrides: Sequence[str], hours: float | None
) -> RunConfig:
    """The config of a stored run with `overrides` and `hours` laid over it, checked as above.

    Which of the changes may be made on resume is for `changed_fields` to say.
    """
    tables = msgspec.to_builtins(config)
    problems = [problem for override in overrides for problem in _set(tables, override)]
    if hours is not None:
        tables["schedule"]["hours"] = hours
    return _checked(workspace, tables, problems)


def _checked(workspace: Workspace, tables: dict[str, Any], problems: list[Problem]) -> RunConfig:
    """The tables as a config with absolute paths; UsageError with all problems, also `problems`."""
    config, found = convert(RunConfig, tables)
    assert config is not None, "every field of RunConfig has a default"
    problems = problems + found
    config = _absolute_paths(config)
    bad = {problem.name for problem in problems}
    problems += [
        Problem(fields[0], text)
        for fields, text in _cross_checks(config, load_experts(workspace))
        if bad.isdisjoint(fields)
    ]
    if problems:
        raise UsageError(problems_text(problems, "config"))
    return config


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: {error}") from error


def _merge(base: dict[str, Any], over: Mapping[str, Any]) -> None:
    for key, value in over.items():
        if isinstance(value, Mapping) and isinstance(base.get(key), dict):
            _merge(base[key], value)
        else:
            base[key] = value


def _set(tables: dict[str, Any], override: str) -> list[Problem]:
    """Lay one `section.field=value` over the tables; the value is TOML, or bare text."""
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        return [Problem("", f"{override!r} is not section.field=value")]
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    section: dict[str, Any] = {parts[-1]: value}
    for part in reversed(parts[:-1]):
        section = {part: section}
    _merge(tables, section)
    return []


def _absolute_paths(config: RunConfig) -> RunConfig:
    """Paths made absolute, so that a resume from another folder finds the same files."""
    replace = msgspec.structs.replace
    corpora = [replace(c, source=absolute_source(c.source)) for c in config.data.corpora]
    files = [absolute_source(source) for source in config.data.files]
    config = replace(config, data=replace(config.data, files=files, corpora=corpora))
    tokenizer = config.student.tokenizer
    if "/" in tokenizer or tokenizer.endswith(".json"):
        tokenizer = str(Path(tokenizer).expanduser().absolute())
        config = replace(config, student=replace(config.student, tokenizer=tokenizer))
    return config


def _cross_checks(
    config: RunConfig, experts: Mapping[str, Any]
) -> Iterator[tuple[tuple[str, ...], str]]:
    """Problems between fields: the names concerned (the one to blame first) and the text."""
    student, optimizer, schedule = config.student, config.optimizer, config.schedule
    heads, kv_heads = student.num_attention_heads, student.num_key_value_heads
    if student.hidden_size % (2 * heads):
        yield (
            ("student.num_attention_heads", "student.hidden_size"),
            f"{heads} heads must divide hidden_size {student.hidden_size} into parts of even size",
        )
    if heads % kv_heads:
        yield (
            ("student.num_key_value_heads", "student.num_attention_heads"),
            f"{kv_heads} must divide num_attention_heads {heads}",
        )
    if config.targets.source != "online" and student.vocab_size > 65536:
        yield (
            ("student.vocab_size", "targets.source"),
            f"{student.vocab_size} is over 65536, the most that cached targets can name",
        )
    if config.targets.top_k > student.vocab_size:
        yield (
            ("targets.top_k", "student.vocab_size"),
            f"{config.targets.top_k} is over vocab_size {student.vocab_size}",
        )
    if optimizer.rows_per_step % optimizer.micro_batch_size:
        yield (
            ("optimizer.rows_per_step", "optimizer.micro_batch_size"),
            f"{optimizer.rows_per_step} must be a multiple of micro_batch_size "
            f"{optimizer.micro_batch_size}",
        )
    if optimizer.max_seq_len > student.max_position_embeddings:
        yield (
            ("optimizer.max_seq_len", "student.max_position_embeddings"),
            f"{optimizer.max_seq_len} is over max_position_embeddings "
            f"{student.max_position_embeddings}",
        )
    if schedule.expert_share + schedule.decay_share > 1:
        yield (
            ("schedule.decay_share", "schedule.expert_share"),
            f"{schedule.decay_share} and expert_share {schedule.expert_share} are over 1 together",
        )
    if schedule.on_policy_share > 0 and config.loss.alpha == 0:
        yield (
            ("schedule.on_policy_share", "loss.alpha"),
            "loss.alpha is 0: nothing is learnt of what the expert says to the student's own text",
        )
    names = config.experts.names
    for name in dict.fromkeys(names):
        if name not in experts:
            yield ("experts.names",), f"unknown expert {name!r}; {nearest(name, experts)}"
        if names.count(name) > 1:
            yield ("experts.names",), f"{name!r} stands there {names.count(name)} times"
    for name in config.experts.weights:
        if name not in names:
            yield (
                ("experts.weights", "experts.names"),
                f"{name!r} is none of the run's experts; {nearest(name, names)}",
            )
    tokenizer = student.tokenizer
    if Path(tokenizer).is_absolute():
        if not Path(tokenizer).exists():
            yield ("student.tokenizer",), f"{tokenizer} doesn't exist"
    elif tokenizer != "train" and tokenizer not in experts:
        yield (
            ("student.tokenizer",),
            f"{tokenizer!r} is no expert, no path and not 'train'; "
            f"{nearest(tokenizer, ['train', *experts])}",
        )
    for source in config.data.files:
        if not source.startswith(HUB) and not Path(source).exists():
            yield ("data.files",), f"{source} doesn't exist"
    for corpus in config.data.corpora:
        for name in corpus.capabilities:
            if name not in CAPABILITIES:
                yield (
                    ("data.corpora",),
                    f"unknown capability {name!r}; {nearest(name, CAPABILITIES)}",
                )
    if not config.data.files and not config.data.generate:
        yield (
            ("data.generate", "data.files"),
            "false, and there are no data.files: nothing to learn from",
        )


def to_json(config: RunConfig) -> bytes:
    """The whole config as JSON, as it goes to the worker and beside the checkpoints."""
    return msgspec.json.encode(config)


def from_json(data: bytes) -> RunConfig:
    """The config that `to_json` wrote; raises msgspec.ValidationError for another one's."""
    return msgspec.json.decode(data, type=RunConfig)


def to_toml(config: RunConfig) -> str:
    """The whole config as TOML that `load_config` reads back to the same config."""
    import tomlkit  # only ever needed here, and slow to import

    def named(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: named(entry) for key, entry in value.items()}
        if isinstance(value, list):
            return [named(entry) for entry in value]
        return "none" if value is None else value

    return tomlkit.dumps(named(msgspec.to_builtins(config)))


def digest(config: RunConfig) -> str:
    """16 hex digits that name the fields which may not change within a run."""
    fixed = {name: value for name, (value, mutable) in leaves(config).items() if not mutable}
    encoded = msgspec.json.encode(fixed, order="deterministic")
    return hashlib.sha256(encoded).hexdigest()[:16]


def changed_fields(old: RunConfig, new: RunConfig) -> list[tuple[str, Any, Any, bool]]:
    """The fields in which two configs differ: dotted name, old, new, whether it may change."""
    after = leaves(new)
    return [
        (name, value, after[name][0], mutable)
        for name, (value, mutable) in leaves(old).items()
        if value != after[name][0]
    ]
