from __future__ import annotations

import json
import pickle
from pathlib import Path

import msgspec
import pytest
import torch
from tokenizers import Tokenizer

from engine.distill.teacher.teacher import Answer, Teacher, load_teacher, load_tokenizer, sample
from engine.errors import GladiusError, MissingError
from engine.experts.registry import ExpertSpec
from engine.text.examples import Message
from engine.workspace import Workspace
from tests.support.paths import REPO
from tests.support.tiny_expert import SPEC, make_expert

REAL = REPO / "tmp" / "tokenizers"
CHATS = [
    [Message("user", text)]
    for text in ("hi", "write the text of the test, please", "a b c", "write the tiny text " * 4)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_expert(tmp_path_factory.mktemp("expert"))


@pytest.fixture(scope="module")
def teacher(folder: Path) -> Teacher:
    return load_teacher(folder, SPEC, "cpu", torch.float32)


def _with(teacher: Teacher, **changes: object) -> Teacher:
    spec = msgspec.structs.replace(teacher.spec, **changes)
    return Teacher(teacher.model, teacher.tokenizer, spec)


# Loading


def test_the_expert_is_frozen_and_in_eval_mode(teacher: Teacher) -> None:
    assert not teacher.model.training
    assert not any(p.requires_grad for p in teacher.model.parameters())


def test_end_tokens_come_as_registered_and_the_first_is_the_one_written(teacher: Teacher) -> None:
    assert teacher.end_token_ids == (2, 0)
    assert _with(teacher, end_tokens=()).end_token_ids == (2,)  # its own config's
    assert _with(teacher, end_tokens=("<|eot_id|>", "<|endoftext|>")).end_token_ids == (0,)


def test_an_expert_that_is_not_there_is_missing(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="download tiny"):
        load_teacher(tmp_path / "none", SPEC)


def test_pickled_weights_are_refused_and_their_payload_is_not_run(
    folder: Path, tmp_path: Path
) -> None:
    class Payload:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (Path(tmp_path / "ran"),)  # type: ignore[return-value]

    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Payload()))
    with pytest.raises(MissingError, match=r"no \.safetensors"):
        load_teacher(tmp_path, SPEC)
    (tmp_path / "model.safetensors").write_bytes(pickle.dumps(Payload()))
    with pytest.raises(GladiusError, match="can't be loaded"):
        load_teacher(tmp_path, SPEC)
    assert not (tmp_path / "ran").exists()


def test_code_that_comes_with_a_model_is_not_run(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    config["model_type"] = "custom"
    config["auto_map"] = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(GladiusError, match="can't be loaded"):
        load_teacher(tmp_path, SPEC)
    assert not (tmp_path / "ran").exists()


def test_a_folder_without_tokenizer_json_is_missing_something(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"tokenizer\.json"):
        load_tokenizer(tmp_path, SPEC)


@pytest.mark.parametrize("name", ["llama2", "qwen3", "llama3", "gpt2", "mistral"])
@pytest.mark.parametrize("kind", [None, "LlamaTokenizer"])
def test_real_tokenizers_obey_their_tokenizer_json_whatever_their_class(
    name: str, kind: str | None, tmp_path: Path
) -> None:
    source = REAL / name
    if not source.is_dir():
        pytest.skip(f"{name} is not in tmp/tokenizers; run: make tokenizers")
    config = json.loads((source / "tokenizer_config.json").read_text())
    config["tokenizer_class"] = kind or config.get("tokenizer_class")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "tokenizer.json").symlink_to(source / "tokenizer.json")
    tokenizer = load_tokenizer(tmp_path, SPEC)
    reference = Tokenizer.from_file(str(source / "tokenizer.json"))
    for text in ("▁ Ġ <s>", "  x\t\r\n", "1234 don't", "e\u0301 🙂 漢字", " \u00a0 a  b   c"):
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert ids == reference.encode(text, add_special_tokens=False).ids


# Scoring


def test_hidden_states_times_the_head_are_the_models_logits(teacher: Teacher) -> None:
    ids = torch.randint(3, 256, (2, 12), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 7:] = 0  # padded on the right
    weight, bias = teacher.head
    assert bias is None
    logits = teacher.hidden(ids, mask) @ weight.T
    with torch.no_grad():
        assert torch.allclose(logits[0], teacher.model(ids[:1]).logits[0], atol=1e-5)
        alone = teacher.model(ids[1:, :7]).logits[0]
    assert torch.allclose(logits[1, :7], alone, atol=1e-5)


# Chat formats


def test_a_template_renders_up_to_where_the_answer_begins(teacher: Teacher) -> None:
    text = teacher.render([Message("system", "be short"), Message("user", "hi")])
    assert text == (
        "<|im_start|>system\nbe short<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_where_a_template_refuses_system_turns_they_go_before_the_users(teacher: Teacher) -> None:
    refusing = (
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no') }}"
        "{% endif %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    )
    own = teacher.tokenizer.chat_template
    try:
        teacher.tokenizer.chat_template = refusing
        text = teacher.render([Message("system", "be short"), Message("user", "hi")])
    finally:
        teacher.tokenizer.chat_template = own
    assert text == "user: be short\n\nhi\n"


def test_phi_reads_instruct_and_output(teacher: Teacher) -> None:
    phi = _with(teacher, chat="phi")
    chat = [Message("system", "be short"), Message("user", "hi")]
    assert phi.render(chat) == "Instruct: be short\n\nhi\nOutput: "
    longer = [*chat, Message("assistant", "hello"), Message("user", "bye")]
    assert phi.render(longer) == "Instruct: be short\n\nhi\nOutput: hello\nInstruct: bye\nOutput: "
    # The space is left to the first word of the answer.
    assert str(phi.tokenizer.decode(phi.encode_prompt(chat))).endswith("Output:")


@pytest.mark.parametrize("template_writes_bos", [True, False])
def test_a_prompt_begins_with_exactly_one_bos(teacher: Teacher, template_writes_bos: bool) -> None:
    source = REAL / "llama2"
    if not source.is_dir():
        pytest.skip("llama2 is not in tmp/tokenizers; run: make tokenizers")
    tokenizer = load_tokenizer(source, SPEC)
    tokenizer.chat_template = (
        "<s>" if template_writes_bos else ""
    ) + "{{ messages[0]['content'] }}"
    spec = msgspec.structs.replace(SPEC, end_tokens=("</s>",))
    ids = Teacher(teacher.model, tokenizer, spec).encode_prompt([Message("user", "Hello")])
    assert ids.count(1) == 1
    assert ids[0] == 1


# Writing


def _write(teacher: Teacher, chats: list[list[Message]] = CHATS, **changes: object) -> list[Answer]:
    settings: dict = {
        "max_new_tokens": 24,
        "temperature": 0.0,
        "top_p": 1.0,
        "seed": 0,
        "batch_size": 4,
    }
    return teacher.generate(chats, **{**settings, **changes})


def test_greedy_answers_of_a_padded_batch_are_those_of_transformers(teacher: Teacher) -> None:
    answers = _write(teacher)
    for chat, answer in zip(CHATS, answers, strict=True):
        ids = torch.tensor([teacher.encode_prompt(chat)])
        expected = teacher.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=24,
            do_sample=False,
            eos_token_id=[2, 0],
            pad_token_id=2,
        )[0, ids.shape[1] :]
        text = str(teacher.tokenizer.decode(expected, skip_special_tokens=True))
        assert answer.text == text.rstrip("\ufffd").strip()
        assert answer.complete == (int(expected[-1]) in (0, 2))


def test_the_same_seed_writes_the_same_and_another_seed_does_not(teacher: Teacher) -> None:
    first = _write(teacher, temperature=1.0, seed=5)
    assert _write(teacher, temperature=1.0, seed=5) == first
    assert _write(teacher, temperature=1.0, seed=6) != first


def test_answers_come_in_the_order_of_the_conversations(teacher: Teacher) -> None:
    assert _write(teacher, CHATS[::-1], batch_size=2) == _write(teacher, batch_size=1)[::-1]


def test_rows_that_finish_early_do_not_disturb_the_others(teacher: Teacher) -> None:
    chats = [[Message("user", f"{letter} write the text")] for letter in "abcdefghijklmnop"]
    together = _write(teacher, chats, temperature=1.0, top_p=0.9, batch_size=16)
    assert 0 < sum(answer.complete for answer in together) < 16  # some were dropped on the way

    class Unending(Teacher):
        """Keeps every row to the end; what follows an end token is cut afterwards."""

        def _text(self, ids: list[int]) -> str:
            ends = [n for n, i in enumerate(ids) if i in (0, 2)]
            return super()._text(ids[: min(ends, default=len(ids))])

    unending = Unending(teacher.model, teacher.tokenizer, teacher.spec)
    unending.end_token_ids = (10**9,)
    unending._left_padded = teacher._left_padded  # type: ignore[method-assign]
    apart = _write(unending, chats, temperature=1.0, top_p=0.9, batch_size=16)
    assert [answer.text for answer in apart] == [answer.text for answer in together]


def test_the_token_limit_cuts_and_says_so(teacher: Teacher) -> None:
    long = _write(teacher, temperature=1.0)
    short = _write(teacher, temperature=1.0, max_new_tokens=1)
    assert any(answer.complete for answer in long)
    assert not any(answer.complete for answer in short if answer.text)


def test_no_answer_is_longer_than_the_context(tmp_path: Path) -> None:
    small = load_teacher(make_expert(tmp_path, context=48), SPEC, "cpu", torch.float32)
    prompt = small.encode_prompt(CHATS[0])
    answers = _write(small, [CHATS[0]], max_new_tokens=1000, temperature=1.0)
    assert len(small.tokenizer.encode(answers[0].text)) <= 48 - len(prompt)
    full = [[Message("user", "write " * 60)]]
    assert _write(small, full, max_new_tokens=1000) == [Answer("", False)]


def test_a_stop_string_ends_the_answer_before_it(teacher: Teacher) -> None:
    plain = _write(teacher)[3].text
    stop = plain[4:8]
    answer = _write(_with(teacher, stop_strings=(stop,)))[3]
    assert answer == Answer(plain[: plain.index(stop)].strip(), True)


def test_beat_is_told_at_every_token_and_may_interrupt(teacher: Teacher) -> None:
    calls: list[str] = []

    def beat(doing: str) -> None:
        calls.append(doing)
        if len(calls) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        teacher.generate(
            CHATS, max_new_tokens=24, temperature=1.0, top_p=1.0, seed=0, batch_size=4, beat=beat
        )
    assert len(calls) == 3


# Sampling


@pytest.mark.parametrize(("vocabulary", "top_p"), [(40, 0.8), (3000, 0.95), (3000, 1.0)])
def test_samples_follow_the_truncated_distribution(vocabulary: int, top_p: float) -> None:
    """Draws on a fine grid against the nucleus computed plainly; 3000 flat tokens need the sort."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(vocabulary, generator=generator)
    draws = (torch.arange(4000) + 0.5) / 4000
    tokens = torch.cat(
        [sample(logits.expand(500, -1), part, 0.7, top_p) for part in draws.split(500)]
    )
    found = torch.bincount(tokens, minlength=vocabulary) / 4000
    probabilities = (logits.double() / 0.7).softmax(-1)
    ordered, index = probabilities.sort(descending=True)
    kept = torch.zeros(vocabulary, dtype=torch.double)
    mass = 0.0
    for value, token in zip(ordered.tolist(), index.tolist(), strict=True):
        if mass >= top_p:
            break
        kept[token] = value
        mass += value
    assert (found - kept / kept.sum()).abs().max() < 5e-4


def test_a_rows_sample_depends_on_its_own_logits_and_draw_only() -> None:
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(8, 2000, generator=generator)
    logits[::2] *= 8  # peaked rows beside flat ones
    draws = torch.rand(8, generator=generator)
    together = sample(logits, draws, 0.8, 0.95)
    apart = torch.cat([sample(logits[n : n + 1], draws[n : n + 1], 0.8, 0.95) for n in range(8)])
    assert torch.equal(together, apart)


def test_draws_at_the_very_ends_stay_inside_the_nucleus() -> None:
    logits = torch.tensor([[5.0, 1.0, 0.0, -40.0]] * 2)
    ends = torch.tensor([0.0, 1.0 - 2**-24])
    assert sample(logits, ends, 1.0, 0.99).tolist()[0] == 0
    assert sample(logits, ends, 1.0, 0.99).tolist()[1] in (0, 1)
    assert sample(logits, ends, 1.0, 1.0).tolist()[1] != 3


# The real expert


def test_the_real_expert_answers_a_question() -> None:
    path = Workspace.find(REPO).experts_dir / "smollm2"
    if not (path / "model.safetensors").is_file():
        pytest.skip("smollm2 is not downloaded; run: ./gladius_train download smollm2")
    spec = ExpertSpec(
        name="smollm2", title="S", source="wheel", repo="", end_tokens=("<|im_end|>",)
    )
    teacher = load_teacher(path, spec, "cpu", torch.float32)
    question = [[Message("user", "What is the capital of France? One short sentence.")]]
    answer = _write(teacher, question)[0]
    assert len(teacher.tokenizer.encode("2024")) == 4  # digits are single tokens
    assert "Paris" in answer.text
    assert answer.complete
