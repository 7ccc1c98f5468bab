"""First stages of a run's preparation: each expert's text, and the student's tokenizer."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
from transformers import PreTrainedTokenizerFast

from engine.budget import streamed_files
from engine.chat_tools import answer_text
from engine.checkpoint.hashing import file_record
from engine.checkpoint.layout import TOKENIZER
from engine.distill.data import corpus
from engine.distill.data.conversations import (
    chosen_prompts,
    expert_commit,
    kept_examples,
    write_answers,
)
from engine.distill.data.streamed_text import StreamedText, open_streams
from engine.distill.jobs.sealed_files import is_as_sealed, set_aside
from engine.distill.jobs.setup import RunSetup
from engine.distill.student import (
    copy_tokenizer,
    has_template,
    load_tokenizer,
    store_tokenizer,
    tokenizer_path,
    train_tokenizer,
)
from engine.events import TextsRead
from engine.experts.registry import ExpertSpec
from engine.prompts.answers import answer_files
from engine.prompts.checkers import VERSION as CHECKS_VERSION
from engine.prompts.prompt import Prompt
from engine.text.examples import Example, LeftOut, encode_example, read_data_file
from engine.text.tally import require_learnable
from engine.workspace import remove_entry, write_bytes


@dataclass(frozen=True)
class RunTexts:
    """The text of a run, before it is encoded.

    Attributes:
        fixed: text in memory, by expert: its own answers, then its share of the files.
        streamed: text that is read while the student trains; None where there is none.
        left_out: texts of the files that can't be read.
        table: of the files, before they are encoded.
    """

    fixed: dict[str, list[Example]]
    streamed: StreamedText | None
    left_out: Sequence[LeftOut] = ()
    table: TextsRead = field(default_factory=TextsRead)


def read_texts(setup: RunSetup) -> RunTexts:
    """Read the files, open the streams, and let the experts write their answers.

    Where targets are cached, streamed text is sampled up to `data.max_teacher_tokens` and added to
    the text in memory. Emits TextsRead for the files.

    Raises UsageError where more than a tenth of the files' texts can't be learnt.
    """
    data = setup.config.data
    with setup.ctx.busy("opening the text"):
        streamed_names = streamed_files(data)
        files = [source for source in data.files if source not in streamed_names]
        read = corpus.read_files(files)
        from_files = corpus.assign_to_experts(read.examples, setup.experts)
        streamed = StreamedText(
            setup.config,
            setup.experts,
            open_streams(setup.config, setup.experts, setup.workspace.cache_dir, setup.original),
            heartbeat=setup.ctx.checkpoint_point,
            log=setup.ctx.log,
            emit=setup.ctx.emit,
        )
    if files:
        setup.ctx.emit(read.table)
    require_learnable(read.table, lenient=data.lenient)
    cached = setup.config.targets.source == "cached"
    if cached:
        for spec in setup.experts:
            from_files[spec.name] += streamed.sample_to_score(spec)
    fixed: dict[str, list[Example]] = {}
    for spec in setup.experts:
        writes = data.generate and data.max_answers != 0
        answers = expert_answers(setup, spec) if writes else []
        fixed[spec.name] = answers + from_files[spec.name]
    if setup.sealing is not None:
        setup.sealing.check_text(with_streamed=False)  # the rest before the first step
    streams = streamed if streamed and not cached else None
    return RunTexts(fixed, streams, read.left_out, read.table)


def expert_answers(setup: RunSetup, spec: ExpertSpec) -> list[Example]:
    """The expert's answers to its prompts; once complete they are read without loading it."""
    config = setup.config
    with setup.ctx.busy("choosing prompts"):
        chosen = chosen_prompts(spec, config)
    identity = setup.identity(spec)
    data = setup.stored_data
    settings = [CHECKS_VERSION, chosen, data, config.seed, str(setup.dtype), identity]
    digest = hashlib.sha256(msgspec.json.encode(settings)).hexdigest()[:16]
    complete_file = setup.cache_dir(spec) / f"text-{digest}.jsonl"
    sealing = setup.sealing
    if sealing is None:
        if complete_file.is_file():
            return list(read_data_file(complete_file))
        return _write_answers(setup, spec, chosen, complete_file)
    if is_as_sealed(sealing, "answers", spec.name, complete_file):
        answers = list(read_data_file(complete_file))
    else:
        answers = _write_answers(setup, spec, chosen, complete_file)
        known = sealing.sealed_value("answers", spec.name)
        if known is not None and file_record(complete_file) != known:
            # The stored batches are damaged too: the expert writes them again.
            for file in answer_files(setup.cache_dir(spec)):
                set_aside(sealing, file.path)
            answers = _write_answers(setup, spec, chosen, complete_file)
    if answers:
        record = file_record(complete_file)
        sealing.compare("answers", spec.name, record, f"the answers of expert {spec.name}")
    return answers


def _write_answers(
    setup: RunSetup,
    spec: ExpertSpec,
    chosen: Sequence[tuple[Prompt, int]],
    complete_file: Path,
) -> list[Example]:
    """Let the expert write what is not stored yet; the kept answers are stored in one file."""
    config = setup.config
    judged = write_answers(
        setup.pool.get(spec),
        chosen,
        setup.workspace.experts_cache_dir,
        config.data,
        config.seed,
        emit=setup.ctx.emit,
        heartbeat=setup.ctx.checkpoint_point,
        commit=expert_commit(setup.expert_path(spec), spec),
        repo=setup.original(spec.repo),
    )
    answers = kept_examples(judged, spec.name)
    if answers:
        write_bytes(complete_file, b"".join(encode_example(a) + b"\n" for a in answers))
    return answers


def student_tokenizer(setup: RunSetup, texts: RunTexts) -> PreTrainedTokenizerFast:
    """The student's tokenizer; a trained one is stored next to the checkpoints."""
    size = setup.config.student.vocab_size
    source = tokenizer_path(setup.workspace, setup.config)
    path = setup.workspace.checkpoints_dir / TOKENIZER
    trained = setup.config.student.tokenizer == "train"
    if not trained and not has_template(source if source.is_dir() else source.parent):
        text = "the student's tokenizer has no chat template: Zephyr's format is used"
        setup.ctx.log(text, "warning")
    if setup.sealing is None and not trained:
        return load_tokenizer(source, size)
    if setup.sealing is not None and (problem := setup.sealing.tokenizer_problem(path)):
        # Only before the first checkpoint: later it is restored from there.
        setup.ctx.log(f"the student's tokenizer is made again ({problem})", "warning")
        remove_entry(path)
    if (path / "tokenizer.json").is_file():
        return load_tokenizer(path, size)
    if not trained:
        load_tokenizer(source, size)
        copy_tokenizer(source, path)
        return load_tokenizer(path, size)
    with setup.ctx.busy("training the student's tokenizer"):
        sampled = texts.streamed.sample_for_tokenizer() if texts.streamed else []
        unique = dict.fromkeys(
            text
            for part in (*texts.fixed.values(), sampled)
            for example in part
            for text in _texts_of(example)
        )
        store_tokenizer(train_tokenizer(unique, size), path)
    setup.ctx.log(f"trained a tokenizer of {size:,} tokens on the run's own text")
    return load_tokenizer(path, size)


def _texts_of(example: Example) -> list[str]:
    if example.messages is None:
        return [example.text or ""]
    return [
        answer_text(message) if message.role == "assistant" else message.content
        for message in example.messages
    ]
