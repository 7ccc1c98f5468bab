"""Small real tokenizers, texts and reference formulas that the tests of distill share."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise

import torch
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from engine.chat import ChatRenderer
from engine.distill.align.blocks import BlockEncoder, ChatEncoder, EncodedExample, TextBlock
from engine.distill.align.projection import Projected, Projector
from engine.distill.align.tables import build_tables
from engine.distill.align.vocabulary import BYTE_TO_CHAR
from engine.distill.student import student_encoder, train_tokenizer
from engine.text.examples import Example, Message

PROSE = (
    "A river runs from the mountains to the sea. It is older than the towns on its banks, and "
    "it will be there when they are gone. The people who live beside the river know its moods.\n"
    "In spring it rises; in summer it is slow and warm, and the children swim in it.\n"
    "def area(width, height):\n    return width * height\n\n"
    'Answer with JSON: {"name": "search", "arguments": {"query": "rivers of the north"}}\n'
    "There are 12 months, 365 days and 8760 hours in a year; 3.14 is about pi.\n"
)

UNUSUAL_TEXTS = (
    "plain words, nothing more",
    "🙂 and 👩‍👩‍👧 and 🏳️‍🌈!",
    "e\u0301 a\u0308\u0323 ก\u0e48 combining \u0301",
    "line one\r\nline two\r\n\r\nline four",
    "runs   of    spaces        here ",
    "\ttabs\t\tand\n\n\n\nnewlines\n",
    "漢字かな交じり文 العربية हिन्दी",
    "\u00a0no-break\u200bzero-width\ufeff",
    "x",
    "\n",
    " ",
    "é",
    "<|im_end|> and </s> and <0x0A> and Ġ are text",
    "\x00\x01\x7f control",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𐍈 \U0010fffd",
)


def byte_level(size: int = 320) -> PreTrainedTokenizerFast:
    """A byte-level BPE as the nano student's is trained."""
    return train_tokenizer([PROSE] * 2, size)


def sentencepiece(style: str) -> PreTrainedTokenizerFast:
    """A SentencePiece-style BPE with byte fallback.

    The dummy leading space comes from the normalizer (`prepend`, as Llama 2's tokenizer.json has
    it) or from the pre-tokenizer (`metaspace`).
    """
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=160, min_frequency=2, show_progress=False)
    trained.train_from_iterator([PROSE] * 2, trainer)
    pieces = sorted(trained.get_vocab().items(), key=lambda item: item[1])
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256))]
    tokens += [token for token, _ in pieces]
    merges = _merges(trained)
    tokenizer = Tokenizer(
        models.BPE(
            vocab={token: n for n, token in enumerate(tokens)},
            merges=merges,
            unk_token="<unk>",
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    if style == "prepend":
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in ("<unk>", "<s>", "</s>")])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="</s>",
        chat_template=(
            "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + eos_token }}"
            "{{ '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
        ),
    )


def _merges(tokenizer: Tokenizer) -> list[tuple[str, str]]:
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in merges]


class Toy:
    """A byte-level BPE of a few tokens, and the same BPE in plain Python.

    Attributes:
        tokens: bytes of each token by id; None for the end token.
        end: id of the end token.
        encoder: encodes text with this tokenizer.
    """

    def __init__(
        self,
        alphabet: bytes,
        pairs: Sequence[tuple[bytes, bytes]],
        order: Sequence[int] | None = None,
    ) -> None:
        """`order` puts the tokens (the end token is the last) under other ids."""
        self.rank: dict[tuple[bytes, bytes], int] = {}
        spelled = [bytes([b]) for b in alphabet]
        for pair in pairs:
            self.rank.setdefault(pair, len(self.rank))
            if pair[0] + pair[1] not in spelled:
                spelled.append(pair[0] + pair[1])
        ids = list(range(len(spelled) + 1)) if order is None else list(order)
        self.tokens: list[bytes | None] = [None] * len(ids)
        for token, n in zip(spelled, ids, strict=False):
            self.tokens[n] = token
        self.end = ids[-1]
        vocab = {_printable(token): n for token, n in zip(spelled, ids, strict=False)}
        merges = [(_printable(a), _printable(b)) for a, b in self.rank]
        tokenizer = Tokenizer(models.BPE(vocab={**vocab, "<end>": self.end}, merges=merges))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.add_special_tokens([AddedToken("<end>", special=True)])
        self.id = {token: n for n, token in enumerate(self.tokens) if token is not None}
        fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")
        self.encoder = ChatEncoder(fast, ChatRenderer(fast), [self.end])

    def split(self, data: bytes) -> list[bytes]:
        """BPE over the bytes: repeatedly merge the leftmost pair of the lowest rank."""
        parts = [bytes([b]) for b in data]
        while True:
            ranked = [
                (self.rank[pair], n) for n, pair in enumerate(pairwise(parts)) if pair in self.rank
            ]
            if not ranked:
                return parts
            n = min(ranked)[1]
            parts[n : n + 2] = [parts[n] + parts[n + 1]]

    def phi(self, data: bytes) -> int:
        """First token of the bytes up to where they stop being UTF-8, or of bytes that are not."""
        return self.id[self.split(_valid(data) or data)[0]]


def _valid(data: bytes) -> bytes:
    for size in range(len(data), 0, -1):
        try:
            data[:size].decode()
        except UnicodeDecodeError:
            continue
        return data[:size]
    return b""


def _printable(data: bytes) -> str:
    return "".join(BYTE_TO_CHAR[b] for b in data)


def encoder_of(tokenizer: PreTrainedTokenizerFast, size: int = 0) -> ChatEncoder:
    """An encoder with this tokenizer, for a model with `size` rows."""
    return student_encoder(tokenizer, size or len(tokenizer))


def document(text: str, **more) -> Example:
    return Example(text=text, **more)


def chat(*turns: str, **more) -> Example:
    """A conversation: user, assistant, user, ..."""
    roles = ("user", "assistant")
    messages = tuple(Message(roles[n % 2], text) for n, text in enumerate(turns))
    return Example(messages=messages, **more)


def encode(
    example: Example, student: ChatEncoder, teacher: ChatEncoder, limit: int = 4096, **more
) -> EncodedExample:
    encoder = BlockEncoder(student, teacher, limit, max_teacher_tokens=limit, **more)
    return encoder.encode(example)


def blocks_of(
    example: Example, student: ChatEncoder, teacher: ChatEncoder, limit: int = 4096, **more
) -> list[TextBlock]:
    return encode(example, student, teacher, limit, **more).blocks


def block_of(example: Example, student: ChatEncoder, teacher: ChatEncoder, **more) -> TextBlock:
    """The only block of an example that can be encoded."""
    encoded = encode(example, student, teacher, **more)
    assert not encoded.problem, (encoded.problem, encoded.detail)
    (block,) = encoded.blocks
    return block


def projector_of(teacher: ChatEncoder, student: ChatEncoder, **more) -> Projector:
    tables = build_tables(
        teacher.vocabulary, student.vocabulary, teacher.end_ids, student.end_ids[0]
    )
    return Projector(tables, **more)


def project_all(
    projector: Projector, logits: Tensor, block: TextBlock, chunk: int = 64
) -> Projected:
    """The projection of a whole block, in the order of its text; logits (V_t, M)."""
    parts = list(projector.project(lambda lo, hi: logits[:, lo:hi].clone(), block.alignment, chunk))
    index = torch.cat([part.index for part in parts])
    order = torch.argsort(index)
    assert torch.equal(index[order], torch.arange(len(block.alignment)))
    return Projected(
        index=index[order],
        q=torch.cat([part.q for part in parts], dim=1)[:, order],
        residual=torch.cat([part.residual for part in parts])[order],
        mass=torch.cat([part.mass for part in parts])[order],
        weight=torch.cat([part.weight for part in parts])[order],
    )


def random_logits(vocabulary: int, positions: int, seed: int, scale: float = 3.0) -> Tensor:
    """(V_t, M) float32."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(vocabulary, positions, generator=generator) * scale


def dense_loss(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    q_t: Tensor,
    w: Tensor,
    alpha: float,
    temperature: float,
) -> Tensor:
    """The loss by its plain formula, summed over the positions; q_t is (N, V)."""
    z = hidden @ weight.t()
    log_p = z.log_softmax(1)
    log_pt = (z / temperature).log_softmax(1)
    kl = (torch.special.xlogy(q_t, q_t) - q_t * log_pt).sum(1)
    ce = -log_p[torch.arange(len(labels)), labels]
    return (alpha * w * temperature**2 * kl + (1 - alpha * w) * ce).sum()


def tiny_llama(vocab_size: int, seed: int = 0) -> LlamaForCausalLM:
    """A model of two small layers, fp32, in eval mode."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.2,
        attn_implementation="sdpa",
    )
    return LlamaForCausalLM(config).eval()
