"""The configuration of a training run: its fields with units and bounds, presets, and reading it
from TOML files, `--set` options and stored runs.
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
from engine.small_files import Damaged, decode_json, read_toml
from engine.structs import Problem, convert, leaves, nearest, problems_text
from engine.text.sources import HUB, absolute_source
from engine.workspace import Workspace, assets_dir, moved_path

# A field whose Meta has `extra={"mutable": True}` may be changed when a run is resumed.
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
    """The model that is trained: a LlamaForCausalLM, initialised at random."""

    hidden_size: Positive = 2048
    intermediate_size: Positive = 5632
    num_hidden_layers: Positive = 24
    num_attention_heads: Positive = 16
    num_key_value_heads: Positive = 4
    vocab_size: Positive = 32000
    """Rows of the embedding matrix; a smaller tokenizer is padded with unused tokens."""
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
    """Weight of an expert in budget and mix, in place of the registry's."""


class CorpusConfig(Section, frozen=True, kw_only=True):
    """A public corpus, streamed from the Hub."""

    source: str
    """hf:ORG/NAME[/CONFIG][@REVISION][:SPLIT[:COLUMN]]"""
    share: PositiveFloat = 1.0
    """Relative to the other corpora of the same expert."""
    capabilities: list[str] = []
    """Experts with one of these capabilities teach it; empty: all experts do."""
    tokens: PositiveFloat | None = None
    """Approximate number of tokens (for estimates of the token budget)."""


class DataConfig(Section, frozen=True, kw_only=True):
    """The training text."""

    files: list[str] = []
    """Files of rows with messages, text, instructions and other forms (JSON Lines, JSON, Parquet),
    plain text (.txt, .md), folders of these, or hf:DATASET[:SPLIT[:COLUMN]]; see docs/data.md."""
    corpora: list[CorpusConfig] = []
    """Public text that is streamed as well, if `generate` is true (else only `files` are used)."""
    stream_above: PositiveFloat = 8.0
    """MiB: larger files (all together) are streamed instead of being read before the start."""
    stream_share: Annotated[float, Meta(gt=0, le=1)] = 0.7
    """Share of streamed text in an expert's rows, where it has other text too."""
    window: PositiveFloat = 0.5
    """MiB of streamed text that are shuffled and packed together."""
    generate: bool = True
    """Let each expert answer the prompts of its capabilities."""
    capabilities: list[Capability] = []
    """Use only prompts of these; empty: of all capabilities that an expert has."""
    answers_per_prompt: Positive = 1
    max_answers: Annotated[int, Meta(ge=0)] | None = None
    """Total answers of each expert. Once the hand-written prompts are used up, generators make
    variants, tens of thousands for each capability; None: only the hand-written prompts."""
    max_answer_tokens: Positive = 384
    answer_temperature: Annotated[float, Meta(ge=0)] | None = None
    """0 is greedy decoding; None: a value for each capability (engine/prompts/sampling.py)."""
    answer_top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    generation_batch: Positive = 16
    keep_answers: Literal["right", "sound", "all"] = "right"
    """right: drop answers that a checker finds wrong; sound: drop only empty, looping, echoing and
    repeated answers; all: drop only empty ones."""
    held_out: Annotated[float, Meta(gt=0, lt=1)] = 0.05
    """Share of the blocks that is used for evaluation only."""
    max_held_out_blocks: Positive = 64
    """Held-out blocks for each expert, at most (evaluation time grows with them)."""
    held_out_streamed: Positive = 16
    """Held-out blocks of each expert's streamed text."""
    max_teacher_tokens: Positive | None = None
    """Tokens that each expert scores before the first step, at most; None: all its text."""
    lenient: Annotated[bool, Meta(extra=_MUTABLE)] = False
    """Train even if more than a tenth of the texts can't be learnt."""


class TargetsConfig(Section, frozen=True, kw_only=True):
    """Creation and storage of soft targets."""

    source: Literal["auto", "cached", "online"] = "auto"
    """cached: text is scored once, before the first step, and stored. online: the expert stays in
    memory and scores each batch. auto: online for streamed text, cached for the rest."""
    top_k: Positive = 64
    """Most probable student tokens stored exactly, per position (cached)."""
    draws: Positive = 32
    """Tokens drawn from the rest, per position and epoch (cached)."""
    draw_epochs: Positive = 4
    """Epochs with independent draws; then they repeat (cached)."""
    min_mass: Share = 0.05
    """Gamma: a position inside a teacher token has no soft target where less than this share of
    the teacher's probability agrees with the text so far."""


class LossConfig(Section, frozen=True, kw_only=True):
    """L = mean(alpha w T^2 D(q_T, p_T) + (1 - alpha w) CE)."""

    divergence: Literal["forward_kl", "reverse_kl", "jsd"] = "forward_kl"
    """D, between the expert's distribution q_T and the student's p_T: KL(q_T || p_T),
    KL(p_T || q_T), or the Jensen-Shannon divergence (engine/distill/train/divergences.py)."""
    alpha: Share = 0.5
    """Weight of the expert's distribution relative to the text; 0 is plain cross-entropy."""
    temperature: PositiveFloat = 2.0
    chunk_size: Annotated[int, Meta(ge=0)] = 0
    """Positions whose logits exist at a time; 0: chosen from the vocabulary's size."""


class OptimizerConfig(Section, frozen=True, kw_only=True):
    """Fused AdamW and the size of an optimizer step."""

    lr: PositiveFloat = 3e-4
    beta1: Annotated[float, Meta(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Meta(ge=0, lt=1)] = 0.95
    eps: PositiveFloat = 1e-8
    weight_decay: Annotated[float, Meta(ge=0)] = 0.1
    grad_clip: PositiveFloat = 1.0
    """The gradient's norm is clipped to this value."""
    micro_batch_size: Annotated[int, Meta(ge=1, extra=_MUTABLE)] = 1
    """Packed sequences in one forward pass."""
    global_batch_size: Positive = 16
    """Packed sequences per optimizer step (micro_batch_size x gradient accumulation steps)."""
    max_seq_len: Annotated[int, Meta(ge=16)] = 2048
    """Tokens of a packed sequence."""
    activation_checkpointing: Annotated[bool, Meta(extra=_MUTABLE)] = False


class ScheduleConfig(Section, frozen=True, kw_only=True):
    """Length of the run, and its learning rate: warmup, stable, decay."""

    max_steps: Annotated[int, Meta(ge=1, extra=_MUTABLE)] | None = None
    """Optimizer steps of the run; None: until `hours` have passed or it has converged."""
    hours: Annotated[float, Meta(gt=0, extra=_MUTABLE)] | None = None
    """Training time of the run without pauses, including the decay and the final save."""
    expert_tokens: Positive = 250_000_000
    """Student tokens of each expert phase, if neither max_steps nor hours is set."""
    unified_tokens: Positive | None = None
    """Student tokens of the unified phase, at most; None: until it has converged."""
    expert_share: Share = 0.6
    """Share of the budget for all expert phases together; the rest is for the unified phase."""
    decay_share: Share = 0.15
    """Share of the budget in which the learning rate decays (the end of the unified phase)."""
    min_lr_ratio: Share = 0.0
    """Learning rate at the end of the decay, as a share of lr."""
    replay: Share = 0.2
    """Share of earlier experts' text in later expert phases."""
    mix: Literal["weights", "deficits"] = "weights"
    """How the unified phase mixes the experts: by their weights, or by weight times held-out KL
    (updated at every evaluation), so that the student gets more of what it still lacks."""
    on_policy_share: Share = 0.0
    """Share of the rows that the student generates, in answer to prompts of its training text, and
    the expert scores (divergence only; generalised knowledge distillation, arXiv 2306.13649)."""
    on_policy_from: Share = 0.5
    """Share of the run after which that begins (the unified phase, if the end is not known)."""
    on_policy_interval: Positive = 50
    """Steps of a round; then the student writes new answers."""
    on_policy_answers: Positive = 64
    """Answers per round; each is trained on at most twice."""
    warmup_steps: Annotated[int, Meta(ge=0)] = 100
    log_interval: Annotated[int, Meta(ge=1, extra=_MUTABLE)] = 10
    """Steps between printed lines (the history has every step)."""
    eval_interval: Annotated[int, Meta(ge=1, extra=_MUTABLE)] = 500
    """Steps between evaluations on held-out text."""
    sample_tokens: Annotated[int, Meta(ge=1, extra=_MUTABLE)] = 64
    """Tokens of the sample text at each evaluation."""
    capability_prompts: Annotated[int, Meta(ge=0, extra=_MUTABLE)] = 4
    """Held-out prompts of each capability that the student answers at each evaluation; a program
    checks the answers. 0: none."""
    capability_tokens: Annotated[int, Meta(ge=1, extra=_MUTABLE)] = 64
    """Tokens of each of these answers, at most."""
    converge_patience: Annotated[int, Meta(ge=1, extra=_MUTABLE)] = 5
    """The run has converged after this many evaluations of the unified phase without progress."""
    converge_delta: Annotated[float, Meta(ge=0, extra=_MUTABLE)] = 0.002
    """Progress: held-out bits per byte fall by at least this much."""


class CheckpointConfig(Section, frozen=True, kw_only=True):
    """When a checkpoint is saved, and how many are kept."""

    interval_steps: Annotated[int, Meta(ge=1, extra=_MUTABLE)] | None = None
    interval_minutes: Annotated[float, Meta(gt=0, extra=_MUTABLE)] | None = 15.0
    keep: Annotated[int, Meta(ge=2, extra=_MUTABLE)] = 2
    """Number of newest full checkpoints that are kept."""
    keep_best: Annotated[bool, Meta(extra=_MUTABLE)] = True
    """Also keep the weights of the best evaluation."""


class GuardsConfig(Section, frozen=True, kw_only=True):
    """Handling of non-finite numbers and gradient spikes."""

    max_non_finite: Annotated[int, Meta(ge=1, extra=_MUTABLE)] = 3
    """Non-finite steps in a row that cause a rollback to the last good checkpoint."""
    max_rollbacks: Annotated[int, Meta(ge=0, extra=_MUTABLE)] = 2
    rollback_lr_scale: Annotated[float, Meta(gt=0, le=1)] = 0.5
    spike_factor: Annotated[float, Meta(gt=1)] = 10.0
    """A gradient norm above this multiple of its running median is a spike: the step is skipped."""
    spike_window: Positive = 64
    """Steps of the running median; spikes are detected once a quarter of them is known."""
    max_spikes: Positive = 3
    """Consecutive spikes that are skipped; a longer series is trained on (clipped)."""


class DeviceConfig(Section, frozen=True, kw_only=True):
    """Device and precision of the computation."""

    device: Annotated[Literal["auto", "cuda", "mps", "cpu"], Meta(extra=_MUTABLE)] = "auto"
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Of matrix products; weights are kept in fp32. auto: bf16 where the processor has it."""
    threads: Annotated[int, Meta(ge=0)] = 0
    """CPU threads of PyTorch; 0: one per physical core."""
    deterministic: bool = False
    """Reproduce results bit by bit on CUDA too (slower); the CPU always does for a fixed number of
    threads."""


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
    """Names of the presets that come with the program."""
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
    notes: list[str] | None = None,
) -> RunConfig:
    """A checked config: the preset, then `file` (TOML), then `overrides` (key=value), then options.

    `preset` is the option, else the file's, else `1b`. Paths become absolute. One line for each
    former field name that was read is appended to `notes`.

    Raises UsageError with all problems at once, each with its field and the values allowed.
    """
    file_tables = _read_toml(Path(file)) if file is not None else {}
    found = read_former_names(file_tables)
    name = preset or file_tables.get("preset", "1b")
    if name not in preset_names():
        raise UsageError(f"unknown preset {name!r}; {nearest(str(name), preset_names())}")
    tables = _read_toml(assets_dir() / "presets" / f"{name}.toml")
    _merge(tables, file_tables)
    problems: list[Problem] = []
    for override in overrides:
        problems += _set(tables, override, found)
    if notes is not None:
        notes += found
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
    workspace: Workspace,
    config: RunConfig,
    overrides: Sequence[str],
    hours: float | None,
    notes: list[str] | None = None,
) -> RunConfig:
    """The config of a stored run with `overrides` and `hours` applied, checked as in load_config.

    `changed_fields` has which of the changes are allowed on resume.
    """
    tables = msgspec.to_builtins(config)
    found: list[str] = []
    problems = [problem for override in overrides for problem in _set(tables, override, found)]
    if notes is not None:
        notes += found
    if hours is not None:
        tables["schedule"]["hours"] = hours
    return _checked(workspace, tables, problems)


def _checked(workspace: Workspace, tables: dict[str, Any], problems: list[Problem]) -> RunConfig:
    """The tables as a config with absolute paths.

    Raises UsageError with all problems, those in `problems` included.
    """
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
        return read_toml(path)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from error
    except Damaged as error:
        raise UsageError(f"{path}: {error.reason}") from error


def _merge(base: dict[str, Any], over: Mapping[str, Any]) -> None:
    for key, value in over.items():
        if isinstance(value, Mapping) and isinstance(base.get(key), dict):
            _merge(base[key], value)
        else:
            base[key] = value


def _set(tables: dict[str, Any], override: str, notes: list[str]) -> list[Problem]:
    """Apply one `section.field=value` to the tables; the value is TOML, or bare text."""
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        return [Problem("", f"{override!r} is not section.field=value")]
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except (tomllib.TOMLDecodeError, RecursionError):
        value = text.strip()
    section: dict[str, Any] = {parts[-1]: value}
    for part in reversed(parts[:-1]):
        section = {part: section}
    notes += read_former_names(section)
    _merge(tables, section)
    return []


FORMER_NAMES = {"optimizer.rows_per_step": "optimizer.global_batch_size"}
"""Fields that were renamed: section.field as it was, and as it is."""


def read_former_names(tables: dict[str, Any]) -> list[str]:
    """Rename fields with former names in place; returns one line for each that was found.

    Raises UsageError where a field is given by both of its names.
    """
    notes = []
    for old_name, name in FORMER_NAMES.items():
        section, _, old = old_name.partition(".")
        new = name.rpartition(".")[2]
        table = tables.get(section)
        if not isinstance(table, dict) or old not in table:
            continue
        if new in table:
            raise UsageError(f"config: {old_name} is the former name of {name}; remove one of them")
        table[new] = table.pop(old)
        notes.append(f"{old_name} is now called {name}")
    return notes


def _absolute_paths(config: RunConfig) -> RunConfig:
    """The config with absolute paths, so that a resume from another folder finds the same files."""
    replace = msgspec.structs.replace
    corpora = [replace(c, source=absolute_source(c.source)) for c in config.data.corpora]
    files = [absolute_source(source) for source in config.data.files]
    config = replace(config, data=replace(config.data, files=files, corpora=corpora))
    tokenizer = config.student.tokenizer
    if "/" in tokenizer or tokenizer.endswith(".json"):
        tokenizer = str(Path(tokenizer).expanduser().absolute())
        config = replace(config, student=replace(config.student, tokenizer=tokenizer))
    return config


FieldProblem = tuple[tuple[str, ...], str]
"""The names of the fields concerned (the most likely cause first), and the text."""


def _cross_checks(config: RunConfig, experts: Mapping[str, Any]) -> Iterator[FieldProblem]:
    """Problems between fields; `experts` are those of the registry."""
    yield from _check_shape(config)
    yield from _check_schedule(config)
    yield from _check_experts(config, experts)
    yield from _check_text(config, experts)


def _check_shape(config: RunConfig) -> Iterator[FieldProblem]:
    """The student's dimensions and the size of a step."""
    student, optimizer = config.student, config.optimizer
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
            f"{student.vocab_size} is more than 65536, the limit for cached targets",
        )
    if config.targets.top_k > student.vocab_size:
        yield (
            ("targets.top_k", "student.vocab_size"),
            f"{config.targets.top_k} is more than vocab_size {student.vocab_size}",
        )
    if optimizer.global_batch_size % optimizer.micro_batch_size:
        yield (
            ("optimizer.global_batch_size", "optimizer.micro_batch_size"),
            f"{optimizer.global_batch_size} must be a multiple of micro_batch_size "
            f"{optimizer.micro_batch_size}",
        )
    if optimizer.max_seq_len > student.max_position_embeddings:
        yield (
            ("optimizer.max_seq_len", "student.max_position_embeddings"),
            f"{optimizer.max_seq_len} is more than max_position_embeddings "
            f"{student.max_position_embeddings}",
        )


def _check_schedule(config: RunConfig) -> Iterator[FieldProblem]:
    schedule = config.schedule
    if schedule.expert_share + schedule.decay_share > 1:
        yield (
            ("schedule.decay_share", "schedule.expert_share"),
            f"{schedule.decay_share} plus expert_share {schedule.expert_share} is more than 1",
        )
    if schedule.on_policy_share > 0 and config.loss.alpha == 0:
        yield (
            ("schedule.on_policy_share", "loss.alpha"),
            "loss.alpha is 0, and the student's own text is trained with the divergence only; "
            "set loss.alpha above 0, or on_policy_share to 0",
        )


def _check_experts(config: RunConfig, experts: Mapping[str, Any]) -> Iterator[FieldProblem]:
    names = config.experts.names
    for name in dict.fromkeys(names):
        if name not in experts:
            yield ("experts.names",), f"unknown expert {name!r}; {nearest(name, experts)}"
        if names.count(name) > 1:
            yield ("experts.names",), f"{name!r} is listed {names.count(name)} times"
    for name in config.experts.weights:
        if name not in names:
            yield (
                ("experts.weights", "experts.names"),
                f"{name!r} is not one of the run's experts; {nearest(name, names)}",
            )


def _check_text(config: RunConfig, experts: Mapping[str, Any]) -> Iterator[FieldProblem]:
    """The student's tokenizer and the training text."""
    tokenizer = config.student.tokenizer
    if Path(tokenizer).is_absolute():
        if not Path(tokenizer).exists():
            yield ("student.tokenizer",), f"{tokenizer} doesn't exist"
    elif tokenizer != "train" and tokenizer not in experts:
        yield (
            ("student.tokenizer",),
            f"{tokenizer!r} is not an expert, a path or 'train'; "
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
            "false, and data.files is empty: there is no training text",
        )


def to_json(config: RunConfig) -> bytes:
    """The complete config as JSON, for the worker and the checkpoints."""
    return msgspec.json.encode(config)


def from_json(data: bytes, notes: list[str] | None = None) -> RunConfig:
    """The config that `to_json` wrote, also by a version with former field names.

    One line for each former name is appended to `notes`. Raises Damaged if the data is not a
    config.
    """
    tables = decode_json(data, source="the config")
    try:
        found = read_former_names(tables) if isinstance(tables, dict) else []
        config = msgspec.convert(tables, RunConfig)
    except (msgspec.MsgspecError, RecursionError, UsageError) as error:
        raise Damaged("the config", " ".join(str(error).split())) from error
    if notes is not None:
        notes += found
    return config


def move_paths(config: RunConfig, before: str | Path, after: str | Path) -> RunConfig:
    """The config with the paths below the folder `before` moved to the folder `after`."""
    if str(before) == str(after):
        return config
    replace = msgspec.structs.replace

    def moved(source: str) -> str:
        prefix = HUB if source.startswith(HUB) else ""
        return prefix + moved_path(source.removeprefix(prefix), before, after)

    data = replace(
        config.data,
        files=[moved(source) for source in config.data.files],
        corpora=[replace(c, source=moved(c.source)) for c in config.data.corpora],
    )
    student = replace(config.student, tokenizer=moved(config.student.tokenizer))
    return replace(config, data=data, student=student)


def to_toml(config: RunConfig) -> str:
    """The complete config as TOML that `load_config` reads back to the same config."""
    import tomlkit  # slow to import, and needed only here

    def named(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: named(entry) for key, entry in value.items()}
        if isinstance(value, list):
            return [named(entry) for entry in value]
        return "none" if value is None else value

    return tomlkit.dumps(named(msgspec.to_builtins(config)))


_ADDED_LATER = {"loss.divergence": "forward_kl"}
"""Fields that older versions did not have, with the value that matches their behaviour."""


def digest(config: RunConfig) -> str:
    """16 hex digits that identify the fields which may not change within a run.

    Computed with the former field names, so that digests stored by older versions stay valid.
    """
    old_names = {name: old_name for old_name, name in FORMER_NAMES.items()}
    fixed = {
        old_names.get(name, name): value
        for name, (value, mutable) in leaves(config).items()
        if not mutable and _ADDED_LATER.get(name, ...) != value
    }
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
