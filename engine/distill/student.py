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
from engine.errors import MissingError, UsageError
from engine.experts.registry import expert_path, load_experts
from engine.generation import Generator
from engine.workspace import Workspace, publish_dir

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


def load_tokenizer(path: Path, vocab_size: int) -> PreTrainedTokenizerFast:
    """A tokenizer from a folder (or tokenizer.json), with a chat template, BOS and EOS.

    Raises:
        MissingError: there is no tokenizer.json.
        UsageError: it has more tokens than the student has rows, or no end-of-text token.
    """
    folder = path if path.is_dir() else path.parent
    file = path if path.is_file() else path / "tokenizer.json"
    if not file.is_file():
        raise MissingError(
            f"student.tokenizer: no tokenizer.json in {path}; set it to a folder with one, "
            "an expert's name, or `train`"
        )
    if (folder / "tokenizer_config.json").is_file():
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        # from_pretrained may rebuild steps by class name: use tokenizer.json as it is.
        tokenizer._tokenizer = Tokenizer.from_file(str(file))
    else:
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(file))
    known = tokenizer.get_vocab()
    for role, names in (("bos_token", ("<s>",)), ("eos_token", ("</s>", "<|endoftext|>"))):
        if getattr(tokenizer, role) is None:
            name = next((name for name in names if name in known), None)
            if name is not None:
                setattr(tokenizer, role, name)
    if tokenizer.eos_token is None:
        raise UsageError(f"student.tokenizer: {file} has no end-of-text token (eos_token)")
    if len(tokenizer) > vocab_size:
        raise UsageError(
            f"student.tokenizer has {len(tokenizer)} tokens, student.vocab_size is {vocab_size}: "
            f"set student.vocab_size={len(tokenizer)} or more"
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.chat_template is None:
        tokenizer.chat_template = _ZEPHYR
    return tokenizer


def tokenizer_path(workspace: Workspace, config: RunConfig) -> Path:
    """Path of the student's tokenizer: an expert's, the user's, or the one the run trains."""
    name = config.student.tokenizer
    if name == "train":
        return workspace.checkpoints_dir / TOKENIZER
    known = load_experts(workspace)
    return expert_path(workspace, known[name]) if name in known else Path(name)


def student_encoder(tokenizer: PreTrainedTokenizerFast, vocab_size: int) -> ChatEncoder:
    """Encodes text for the student; its only end-of-turn token is its EOS."""
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
    state = {name: tensor.detach().to(dtype) for name, tensor in model.named_parameters()}
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
