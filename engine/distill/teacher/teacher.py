"""Owns an expert that is loaded and frozen: its tokenizer, its chat format, its hidden states for
scoring, and the answers it writes. What becomes of them is `conversations`' and `targets`'.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.cache_utils import DynamicCache
from transformers.utils import logging as transformers_logging

from engine.errors import GladiusError, MissingError
from engine.experts.gguf_source import GGUFExpert
from engine.experts.registry import ExpertSpec
from engine.text.examples import Message

# Text on which a tokenizer that was rebuilt wrongly shows it.
_NASTY = (
    "  two spaces, then\ta tab\r\n\r\nand\n\n\nlines 1234567 3.14 don't WE'LL",
    "naïve café — e\u0301 🙂👩‍👩‍👧 漢字かな ไทย العربية \u00a0\u200b",
    "def f(x):\n        return x ** 2  # ▁ Ġ <s> x </s>\n",
)

# Candidates among which top-p looks first; the whole vocabulary is sorted only where these hold
# less than top-p.
_TOP = 512

_ROLES = {"user": "Instruct", "assistant": "Output", "tool": "Tool"}


class Answer(NamedTuple):
    """What an expert wrote. `complete` is False where the token limit cut it."""

    text: str
    complete: bool


def load_tokenizer(path: Path, spec: ExpertSpec) -> PreTrainedTokenizerFast:
    """The expert's tokenizer, exactly as its tokenizer.json (or GGUF file) says.

    Not by AutoTokenizer: for some classes transformers 5 rebuilds the tokenizer in a form that
    encodes otherwise. Raises MissingError without a tokenizer.json, GladiusError when what was
    loaded encodes otherwise than the file.
    """
    if path.suffix == ".gguf":
        return GGUFExpert(path).tokenizer()
    file = path / "tokenizer.json"
    if not file.is_file():
        raise MissingError(
            f"expert {spec.name} has no tokenizer.json in {path}; download it again, or save a "
            "fast tokenizer there"
        )
    try:
        with _quiet():
            tokenizer = PreTrainedTokenizerFast.from_pretrained(path, local_files_only=True)
        reference = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises whatever a broken file leads it to
        why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise GladiusError(
            f"expert {spec.name}: {file} is no tokenizer that can be read ({why}); "
            f"fetch it again: gladius_train download {spec.name} --force"
        ) from error
    for text in _NASTY:
        if tokenizer.encode(text) != reference.encode(text).ids:
            raise GladiusError(
                f"expert {spec.name}: the loaded tokenizer disagrees with {file} on {text!r}; "
                "report this with the versions of transformers and tokenizers"
            )
    return tokenizer


def load_teacher(
    path: Path,
    spec: ExpertSpec,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.bfloat16,
    beat: Callable[[str], None] = lambda doing: None,
) -> Teacher:
    """Load an expert from its folder (safetensors only, no code of its own) or .gguf file.

    `beat` is told what is being done. Raises MissingError when there is nothing to load,
    GladiusError when it can't be loaded.
    """
    if not path.exists():
        raise MissingError(f"expert {spec.name} is not at {path}; run: download {spec.name}")
    beat(f"loading {spec.title}")
    tokenizer = load_tokenizer(path, spec)
    model = _load_gguf(path, dtype) if path.suffix == ".gguf" else _load_folder(path, spec, dtype)
    beat(f"loading {spec.title}")
    model.to(device).eval().requires_grad_(False)
    return Teacher(model, tokenizer, spec)


def _load_folder(path: Path, spec: ExpertSpec, dtype: torch.dtype) -> Any:
    if not any(path.glob("*.safetensors")):
        raise MissingError(
            f"expert {spec.name} has no .safetensors weights in {path} (.bin and .pt files are "
            f"never loaded); run: download {spec.name}"
        )
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        with _quiet():
            config = AutoConfig.from_pretrained(path, **options)
            if getattr(config, "attn_logit_softcapping", None):
                options["attn_implementation"] = "eager"  # the fused kernels can't cap
            return AutoModelForCausalLM.from_pretrained(
                path, config=config, dtype=dtype, use_safetensors=True, **options
            )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        why = " ".join(str(error).split())[:200]
        raise GladiusError(
            f"expert {spec.name} can't be loaded from {path} ({why}); "
            f"download it again with: download {spec.name} --force"
        ) from error


def _load_gguf(path: Path, dtype: torch.dtype) -> Any:
    expert = GGUFExpert(path)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(expert.config(), dtype=dtype)
    weights = {name: tensor.to(dtype) for name, tensor in expert.tensors()}
    # Buffers (rope frequencies) are not in the file: they are computed anew off the meta device.
    model.to_empty(device="cpu")
    lacking = set(model.load_state_dict(weights, strict=False, assign=True).missing_keys)
    model.tie_weights()
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config)
    if lacking - {"lm_head.weight"}:
        raise GladiusError(f"{path} lacks {sorted(lacking)[0]}; get the file again")
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars and advice of transformers in the worker's log."""
    level = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


def end_tokens(
    tokenizer: PreTrainedTokenizerFast, spec: ExpertSpec, configured: Any
) -> tuple[int, ...]:
    """Ids of the tokens that end an expert's turn: the registered ones that its vocabulary has,
    else what its files call the end (`configured`: eos_token_id of its generation config)."""
    vocabulary = tokenizer.get_vocab()
    ids: list[Any] = [vocabulary[t] for t in spec.end_tokens if t in vocabulary]
    if not ids:
        more = configured if isinstance(configured, list) else [configured]
        ids = [i for i in (tokenizer.eos_token_id, *more) if i is not None]
    if not ids:
        raise GladiusError(
            f"expert {spec.name} names no token that ends its turn; give its end_tokens "
            "in gladius.toml"
        )
    return tuple(dict.fromkeys(ids))


def reads_phi(tokenizer: PreTrainedTokenizerFast, spec: ExpertSpec) -> bool:
    """Whether it reads phi's "Instruct: ...\\nOutput: ", as a tokenizer without a template does."""
    return spec.chat == "phi" or not tokenizer.chat_template


def render_chat(
    tokenizer: PreTrainedTokenizerFast, spec: ExpertSpec, messages: Sequence[Message]
) -> str:
    """The conversation as an expert reads it, up to where its answer begins.

    The tokenizer's template, or phi's format. Where a template knows no system turn, its text goes
    before the first user's.
    """
    if reads_phi(tokenizer, spec):
        turns = [f"{_ROLES[m.role]}: {m.content}\n" for m in _fold_system(messages)]
        return "".join(turns) + "Output: "
    try:
        return _render_template(tokenizer, messages)
    except jinja2.TemplateError:
        return _render_template(tokenizer, _fold_system(messages))


def _render_template(tokenizer: PreTrainedTokenizerFast, messages: Sequence[Message]) -> str:
    text = tokenizer.apply_chat_template(
        [{"role": m.role, "content": m.content} for m in messages],
        tokenize=False,
        add_generation_prompt=True,
    )
    assert isinstance(text, str)
    return text


class Teacher:
    """A frozen expert on its device.

    Attributes:
        model: the causal language model, in eval mode, without gradients.
        tokenizer: as its tokenizer.json says.
        spec: the expert's registration.
        end_token_ids: ids of all tokens that end its turn; the first is the one it writes.
        logit_softcap: gemma-2's final cap c, logits = c tanh(logits / c); None elsewhere.
    """

    def __init__(self, model: Any, tokenizer: PreTrainedTokenizerFast, spec: ExpertSpec) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.spec = spec
        configured = getattr(model.generation_config, "eos_token_id", None)
        self.end_token_ids = end_tokens(tokenizer, spec, configured)
        self.logit_softcap: float | None = getattr(model.config, "final_logit_softcapping", None)
        self._special = set(tokenizer.all_special_ids)

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def head(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The output matrix (V, H) and its bias (V,), if it has one."""
        layer = self.model.get_output_embeddings()
        return layer.weight, getattr(layer, "bias", None)

    def hidden(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Hidden states (B, L, H) after the last norm, what the head multiplies.

        input_ids (B, L) long, padded on the right; attention_mask (B, L), 1 for tokens.
        """
        with torch.no_grad():
            output = self.model.base_model(
                input_ids=input_ids.to(self.device),
                attention_mask=attention_mask.to(self.device),
                use_cache=False,
            )
        return output.last_hidden_state

    def render(self, messages: Sequence[Message]) -> str:
        """The conversation as the expert reads it, up to where its answer begins."""
        return render_chat(self.tokenizer, self.spec, messages)

    def encode_prompt(self, messages: Sequence[Message]) -> list[int]:
        """Token ids from which an answer to `messages` is generated.

        They begin with exactly one BOS where the tokenizer begins text with one: some templates
        write it themselves, the others leave it to the tokenizer. Nothing is added behind the text.
        """
        text = self.render(messages)
        if reads_phi(self.tokenizer, self.spec):
            # In byte-level BPE the space belongs to the answer's first word.
            text = text.rstrip(" ")
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        bos: Any = self.tokenizer.bos_token_id
        added = self.tokenizer.encode("", add_special_tokens=True)
        if bos is not None and added[:1] == [bos] and ids[:1] != [bos]:
            ids.insert(0, bos)
        return ids

    def generate(
        self,
        conversations: Sequence[Sequence[Message]],
        *,
        max_new_tokens: int | Sequence[int],
        temperature: float | Sequence[float],
        top_p: float | Sequence[float],
        seed: int,
        batch_size: int,
        beat: Callable[[str], None] = lambda doing: None,
    ) -> list[Answer]:
        """Answers to `conversations`, in their order.

        Limit, temperature and top_p are for all, or one for each conversation.

        Batches of similar length, padded on the left; nucleus sampling at `temperature` (0 is
        greedy). The same arguments give the same answers on the same machine and thread count.
        An answer ends at an end token or stop string, or is cut at `max_new_tokens` or where the
        model's context is full.
        """
        prompts = [self.encode_prompt(messages) for messages in conversations]
        count = len(prompts)
        limits, temperatures, top_ps = (
            list(value) if isinstance(value, Sequence) else [value] * count
            for value in (max_new_tokens, temperature, top_p)
        )
        order = sorted(range(len(prompts)), key=lambda n: len(prompts[n]))
        answers: dict[int, Answer] = {}
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            generator = torch.Generator().manual_seed((seed * 1_000_003 + start) % 2**63)
            written = self._generate_batch(
                [prompts[n] for n in batch],
                [int(limits[n]) for n in batch],
                torch.tensor([float(temperatures[n]) for n in batch], device=self.device),
                torch.tensor([float(top_ps[n]) for n in batch], device=self.device),
                generator,
                beat,
            )
            answers.update(zip(batch, written, strict=True))
        return [answers[n] for n in range(len(prompts))]

    @torch.no_grad()
    def _generate_batch(
        self,
        prompts: list[list[int]],
        limits: list[int],
        temperature: torch.Tensor,
        top_p: torch.Tensor,
        generator: torch.Generator,
        beat: Callable[[str], None],
    ) -> list[Answer]:
        longest = max(len(prompt) for prompt in prompts)
        context = getattr(self.model.config, "max_position_embeddings", None) or math.inf
        room = int(min(max(limits), context - longest))
        input_ids, mask = self._left_padded(prompts, longest)
        positions = (mask.cumsum(1) - 1).clamp_min(0)
        cache = DynamicCache(config=self.model.config)
        # As a tensor: a plain 1 gives a strided slice, for which matmul copies the head per row.
        last = torch.tensor([-1], device=self.device)
        rows = list(range(len(prompts)))  # the prompts that the rows of the batch belong to
        written: list[list[int]] = [[] for _ in prompts]
        answers: dict[int, Answer] = {}
        for step in range(room):
            beat(f"{self.spec.title} is writing")
            # All prompts at once can take a minute on a busy processor: a beat for each layer.
            with self._beating(beat) if step == 0 else nullcontext():
                logits = self.model(
                    input_ids=input_ids,
                    attention_mask=mask,
                    position_ids=positions,
                    past_key_values=cache,
                    use_cache=True,
                    logits_to_keep=last,
                ).logits[:, -1]
            # A draw for every prompt, finished or not: dropping rows changes nobody's draws.
            draws = torch.rand(len(prompts), generator=generator)[rows]
            tokens = sample(logits.float(), draws.to(self.device), temperature[rows], top_p[rows])
            kept = []
            for place, (row, token) in enumerate(zip(rows, tokens.tolist(), strict=True)):
                if token in self.end_token_ids:
                    answers[row] = Answer(self._text(written[row]), True)
                    continue
                written[row].append(token)
                if (text := self._stopped(written[row])) is not None:
                    answers[row] = Answer(text, True)
                elif len(written[row]) < limits[row]:
                    kept.append(place)
            if not kept:
                break
            if len(kept) < len(rows):
                keep = torch.tensor(kept, device=self.device)
                cache.batch_select_indices(keep)
                mask, positions, tokens = mask[keep], positions[keep], tokens[keep]
                rows = [rows[place] for place in kept]
            input_ids = tokens[:, None]
            mask = F.pad(mask, (0, 1), value=1)
            positions = positions[:, -1:] + 1
        for row, ids in enumerate(written):
            answers.setdefault(row, Answer(self._text(ids), False))
        return [answers[row] for row in range(len(prompts))]

    @contextmanager
    def _beating(self, beat: Callable[[str], None]) -> Iterator[None]:
        """Let each layer of the model beat while the block runs."""
        doing = f"{self.spec.title} reads prompts"
        layers = getattr(self.model.base_model, "layers", [])
        hooks = [layer.register_forward_pre_hook(lambda *_: beat(doing)) for layer in layers]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _left_padded(
        self, prompts: list[list[int]], longest: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids and mask, both (B, longest) long."""
        pad = self.end_token_ids[0]
        ids = [[pad] * (longest - len(prompt)) + prompt for prompt in prompts]
        mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
        return (
            torch.tensor(ids, dtype=torch.long, device=self.device),
            torch.tensor(mask, dtype=torch.long, device=self.device),
        )

    def _text(self, ids: list[int]) -> str:
        """The answer's text without special tokens, trimmed as chat templates trim it."""
        text = self.tokenizer.decode([i for i in ids if i not in self._special])
        assert isinstance(text, str)
        return text.rstrip("\ufffd").strip()  # a cut answer may end inside a character

    def _stopped(self, ids: list[int]) -> str | None:
        """The answer up to the first stop string; None where there is none in it."""
        if not self.spec.stop_strings:
            return None
        # Only the newest tokens can have completed one.
        tail = self.tokenizer.decode(ids[-16:])
        if not any(stop in tail for stop in self.spec.stop_strings):
            return None
        text = self.tokenizer.decode([i for i in ids if i not in self._special])
        assert isinstance(text, str)
        ends = [end for stop in self.spec.stop_strings if (end := text.find(stop)) >= 0]
        return text[: min(ends, default=len(text))].strip()


def _fold_system(messages: Sequence[Message]) -> list[Message]:
    """The conversation without system turns: their text goes before the first user's."""
    system = [m.content for m in messages if m.role == "system"]
    others = [m for m in messages if m.role != "system"]
    for n, message in enumerate(others):
        if system and message.role == "user":
            others[n] = Message("user", "\n\n".join([*system, message.content]))
            break
    return others


def sample(
    logits: torch.Tensor,
    draws: torch.Tensor,
    temperature: float | torch.Tensor,
    top_p: float | torch.Tensor,
) -> torch.Tensor:
    """One token a row (B,) by nucleus sampling (arXiv 1904.09751); greedy at temperature 0.

    logits (B, V) fp32; draws (B,), uniform in [0, 1); temperature and top_p for all rows, or (B,).
    By inverse distribution over the sorted probabilities, so a row's token depends on its own
    logits and draw only.
    """
    count = len(logits)
    temperature = torch.as_tensor(temperature, dtype=torch.float32, device=logits.device)
    temperature = temperature.expand(count)
    top_p = torch.as_tensor(top_p, dtype=torch.float32, device=logits.device).expand(count)[:, None]
    greedy = temperature == 0
    if bool(greedy.all()):
        return logits.argmax(-1)
    probabilities = (logits / temperature.where(~greedy, 1.0)[:, None]).softmax(-1)
    values, indices = probabilities.topk(min(_TOP, probabilities.shape[-1]), dim=-1)
    if bool((values.sum(-1, keepdim=True) < top_p).any()):
        values, indices = probabilities.sort(dim=-1, descending=True)
    cumulative = values.cumsum(-1)
    # The smallest set that holds top_p: a token stays when those before it hold less.
    allowed = (cumulative - values) < top_p
    cumulative = torch.where(allowed, values, 0.0).cumsum(-1)
    target = draws[:, None] * cumulative[:, -1:]
    # Rounding may put the target at the very end: then the last token of the set is meant.
    place = torch.searchsorted(cumulative, target, right=True)
    place = place.clamp(max=values.shape[-1] - 1).minimum(allowed.sum(-1, keepdim=True) - 1)
    tokens = indices.gather(-1, place).squeeze(-1)
    return tokens.where(~greedy, logits.argmax(-1)) if bool(greedy.any()) else tokens
