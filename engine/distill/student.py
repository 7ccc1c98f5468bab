"""The student: its tokenizer, its random initialisation, and its final form on disk."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from engine.chat import ChatRenderer
from engine.chat_tools import with_tools
from engine.checkpoint.layout import TOKENIZER
from engine.checkpoint.model_record import ModelRecord, write_record
from engine.config import RunConfig, StudentConfig
from engine.distill.align.blocks import ChatEncoder
from engine.distill.teacher.tokenizer import read_tokenizer
from engine.errors import MissingError, UsageError
from engine.experts.registry import expert_path, load_experts
from engine.generation import Generator
from engine.template_date import with_date
from engine.workspace import Workspace, publish_dir, remove_entry

_CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# TinyLlama-Chat's (Zephyr's) format: role tags are plain text, the tokenizer's EOS ends a turn.
_ZEPHYR = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>\n' + message['content'] + eos_token + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE of exactly `vocab_size` tokens (GPT-2's pre-tokenizer, ChatML format).

    Unused tokens fill the vocabulary if the text has too few merges.
    """
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    if vocab_size < 256 + len(specials):
        raise UsageError(
            f"student.vocab_size is {vocab_size}: a byte-level tokenizer needs at least "
            f"{256 + len(specials)}"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=specials,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    missing = vocab_size - tokenizer.get_vocab_size()
    tokenizer.add_special_tokens(
        [AddedToken(f"<|unused_{n}|>", special=True) for n in range(missing)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|endoftext|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=with_tools(_CHATML),
        clean_up_tokenization_spaces=False,
    )


_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
)
"""The files that a tokenizer is loaded from."""


def store_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the run's own tokenizer durably: all files, or none after a crash."""
    temporary = _empty_temporary(folder)
    tokenizer.save_pretrained(temporary)
    _publish(temporary, folder)


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Copy the tokenizer of an expert, or of the user, to the run durably."""
    temporary = _empty_temporary(folder)
    if source.is_file():
        shutil.copyfile(source, temporary / "tokenizer.json")
    origin = source if source.is_dir() else source.parent
    for name in _TOKENIZER_FILES:
        if (origin / name).is_file() and not (temporary / name).exists():
            shutil.copyfile(origin / name, temporary / name)
    _publish(temporary, folder)


def _empty_temporary(folder: Path) -> Path:
    temporary = folder.with_name(f".tmp-{folder.name}")
    remove_entry(temporary)
    temporary.mkdir(parents=True)
    return temporary


def _publish(temporary: Path, folder: Path) -> None:
    remove_entry(folder)  # without tokenizer.json: left by a crash of an older version
    publish_dir(temporary, folder)


def load_tokenizer(path: Path, vocab_size: int) -> PreTrainedTokenizerFast:
    """A tokenizer from a folder (or tokenizer.json), with a chat template, BOS and EOS.

    Raises:
        MissingError: there is no tokenizer.json.
        UsageError: it is broken, its template fails, it has more tokens than the student has rows,
            or no end-of-text token.
    """
    folder = path if path.is_dir() else path.parent
    file = path if path.is_file() else path / "tokenizer.json"
    if not file.is_file():
        raise MissingError(
            f"student.tokenizer: no tokenizer.json in {path}; set it to a folder with one, "
            "an expert's name, or `train`"
        )
    try:
        tokenizer = _read_tokenizer(folder, file)
    except Exception as error:  # a broken file can raise anything
        why = " ".join(f"{type(error).__name__}: {error}".split())[:160]
        raise UsageError(
            f"student.tokenizer: {file} is not a readable tokenizer ({why}); save it again as a "
            "fast tokenizer, or use another"
        ) from error
    known = tokenizer.get_vocab()
    for role, names in (("bos_token", ("<s>",)), ("eos_token", ("</s>", "<|endoftext|>"))):
        if getattr(tokenizer, role) is None:
            name = next((name for name in names if name in known), None)
            if name is not None:
                setattr(tokenizer, role, name)
    if tokenizer.eos_token is None:
        raise UsageError(
            f"student.tokenizer: {file} has no end-of-text token; set eos_token in the "
            "tokenizer_config.json next to it"
        )
    if len(tokenizer) > vocab_size:
        raise UsageError(
            f"student.tokenizer has {len(tokenizer)} tokens, student.vocab_size is {vocab_size}: "
            f"set student.vocab_size={len(tokenizer)} or more"
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if isinstance(tokenizer.chat_template, dict):  # several by name, such as one for tools
        named = tokenizer.chat_template
        tokenizer.chat_template = named.get("default") or next(iter(named.values()), None)
    if not tokenizer.chat_template:
        tokenizer.chat_template = _ZEPHYR
    _check_template(tokenizer, folder)
    return tokenizer


def _read_tokenizer(folder: Path, file: Path) -> PreTrainedTokenizerFast:
    """The tokenizer as in its tokenizer.json, without truncation and padding."""
    if (folder / "tokenizer_config.json").is_file():
        tokenizer, reference = read_tokenizer(folder)
        # from_pretrained may rebuild steps by class name: use tokenizer.json as it is.
        tokenizer._tokenizer = reference
        return tokenizer
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(file))
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    return tokenizer


def has_template(folder: Path) -> bool:
    """Whether a tokenizer's folder has a chat template; without one Zephyr's format is used."""
    if not (folder / "tokenizer_config.json").is_file():
        return False
    return bool(read_tokenizer(folder)[0].chat_template)


def _check_template(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Raise UsageError if the chat template can't render a question and its answer."""
    chat = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi there"}]
    try:
        text = tokenizer.apply_chat_template(chat, tokenize=False)
    except Exception as error:  # a template can raise anything
        why = " ".join(f"{type(error).__name__}: {error}".split())[:160]
        raise UsageError(
            f"student.tokenizer: the chat template in {folder} fails ({why}); correct it, or "
            "remove it to use Zephyr's format"
        ) from error
    if "Hello" not in text or "Hi there" not in text:
        raise UsageError(
            f"student.tokenizer: the chat template in {folder} leaves out what is said; correct "
            "it, or remove it to use Zephyr's format"
        )


def tokenizer_path(workspace: Workspace, config: RunConfig) -> Path:
    """Path of the student's tokenizer: an expert's, the user's, or the one the run trains."""
    name = config.student.tokenizer
    if name == "train":
        return workspace.checkpoints_dir / TOKENIZER
    known = load_experts(workspace)
    return expert_path(workspace, known[name]) if name in known else Path(name)


def student_encoder(tokenizer: PreTrainedTokenizerFast, vocab_size: int) -> ChatEncoder:
    """Encodes text for the student; its only end-of-turn token is its EOS."""
    tokenizer = with_date(tokenizer)
    eos = tokenizer.eos_token_id
    assert isinstance(eos, int), "load_tokenizer requires an EOS token"
    renderer = ChatRenderer(tokenizer, as_learnt=True)
    return ChatEncoder(tokenizer, renderer, [eos], vocab_size, as_generated=True)


def student_generator(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, dtype: torch.dtype
) -> Generator:
    """Generates the student's answers, with matrix products in `dtype`."""
    eos = tokenizer.eos_token_id
    assert isinstance(eos, int), "load_tokenizer requires an EOS token"
    tokenizer = with_date(tokenizer)
    return Generator(model, tokenizer, [eos], title="The student", compute_dtype=dtype)


def llama_config(config: StudentConfig, tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    """The student's transformers config."""
    return LlamaConfig(
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads,
        vocab_size=config.vocab_size,
        max_position_embeddings=config.max_position_embeddings,
        rms_norm_eps=config.rms_norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        tie_word_embeddings=config.tie_word_embeddings,
        initializer_range=config.initializer_range,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        attn_implementation="sdpa",  # type: ignore[call-arg]
        use_cache=False,
    )


def build_student(
    config: StudentConfig, tokenizer: PreTrainedTokenizerFast, seed: int
) -> LlamaForCausalLM:
    """The student, initialised at random (fp32, on the CPU).

    Normal(0, initializer_range), the matrices that write to the residual stream scaled down by
    sqrt(2 layers) as in GPT-2, so that depth does not change the stream's size at the start.
    """
    llama = llama_config(config, tokenizer)
    # Weights are drawn below: the library's own initialisation would be overwritten.
    with torch.device("meta"):
        model = LlamaForCausalLM(llama)
    rotary = type(model.model.rotary_emb)(llama)
    model.to_empty(device="cpu")
    model.model.rotary_emb = rotary
    model.tie_weights()
    generator = torch.Generator().manual_seed(seed)
    residual = config.initializer_range / (2 * config.num_hidden_layers) ** 0.5
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.fill_(1.0)
            elif name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.normal_(0.0, residual, generator=generator)
            else:
                parameter.normal_(0.0, config.initializer_range, generator=generator)
    return model.train()


def save_student(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
    dtype: torch.dtype,
    record: ModelRecord | None = None,
) -> None:
    """Write the finished model in the format of transformers; replaces an earlier one.

    The new model is complete in a temporary folder before the earlier one is moved away. `record`
    is stored with it, with the digests of all other files.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".tmp-{folder.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    config = model.config
    # By parameters, not by state_dict: copies of a tied output matrix would be stored twice.
    # On the CPU: a second copy of the weights may not fit on the device.
    state = {n: tensor.detach().to("cpu", dtype) for n, tensor in model.named_parameters()}
    cached, stored = config.use_cache, config.dtype
    config.use_cache = True
    try:
        model.save_pretrained(temporary, state_dict=state)
        config.dtype = dtype  # save_pretrained stored the dtype of training
        config.save_pretrained(temporary)
    finally:
        config.use_cache, config.dtype = cached, stored
    # save_pretrained writes the weights readable by the owner only.
    for file in temporary.glob("*.safetensors"):
        file.chmod((temporary / "config.json").stat().st_mode)
    save_tokenizer(tokenizer, temporary)
    if record is not None:
        write_record(temporary, record)
    previous = folder.with_name(f".old-{folder.name}")
    _keep_user_files(previous, folder)  # left by a crash
    if folder.exists():
        folder.rename(previous)
    publish_dir(temporary, folder)
    _keep_user_files(previous, folder)


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the tokenizer's files and the matching generation config.

    A chat template that does not write tools as the student learnt them gets that form.
    """
    copied = copy.deepcopy(tokenizer)
    if not ChatRenderer(tokenizer).writes_as_learnt:
        copied.chat_template = with_tools(str(tokenizer.chat_template))
    copied.save_pretrained(folder)
    GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    ).save_pretrained(folder)


def _keep_user_files(previous: Path, folder: Path) -> None:
    """Move files that only the earlier folder has (a GGUF file, a report) to the new one."""
    if not previous.exists():
        return
    folder.mkdir(exist_ok=True)
    for item in previous.iterdir():
        if not (folder / item.name).exists():
            item.rename(folder / item.name)
    shutil.rmtree(previous)
