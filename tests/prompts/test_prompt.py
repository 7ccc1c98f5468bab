"""Hand-written and generated prompts, and the split between training and evaluation."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from pathlib import Path

import msgspec
import pytest

from engine.errors import GladiusError
from engine.experts.registry import CAPABILITIES
from engine.prompts.duplicates import shingles
from engine.prompts.prompt import (
    RESERVED,
    CodeCheck,
    FormatCheck,
    JsonCheck,
    MentionCheck,
    NumberCheck,
    Prompt,
    RefusalCheck,
    ToolCheck,
    is_reserved,
    load_prompts,
)
from engine.prompts.tools import load_tools
from engine.prompts.variants.generate import GENERATORS, evaluation_prompts, generate_variants
from engine.text.examples import Message

KINDS = {
    "tool_calling": ToolCheck,
    "json": JsonCheck,
    "math": NumberCheck,
    "code": CodeCheck,
    "safety": RefusalCheck,
}


def _user_text(prompt: Prompt) -> str:
    return "\n".join(m.content for m in prompt.messages if m.role != "system")


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_each_capability_has_at_least_150_hand_written_prompts(capability: str) -> None:
    prompts = load_prompts([capability])
    assert len(prompts) >= 150
    assert {prompt.capability for prompt in prompts} == {capability}
    assert len({prompt.id for prompt in prompts}) == len(prompts)
    assert len({_user_text(prompt).casefold() for prompt in prompts}) == len(prompts)
    for prompt in prompts:
        assert prompt.messages[-1].role == "user"
        assert prompt.id.startswith(capability)
    if kind := KINDS.get(capability):
        assert sum(isinstance(prompt.check, kind) for prompt in prompts) >= 60


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_hand_written_prompts_are_not_variants_of_one_template(capability: str) -> None:
    """Few are similar to one another, and those are on the same side of the split."""
    prompts = load_prompts([capability])
    parts = {prompt.id: shingles(_user_text(prompt)) for prompt in prompts}
    near = [
        (one, other)
        for one, other in itertools.combinations(prompts, 2)
        if len(parts[one.id] & parts[other.id]) >= 0.5 * len(parts[one.id] | parts[other.id])
    ]
    assert len(near) <= len(prompts) // 20
    for one, other in near:
        assert is_reserved(one.group) == is_reserved(other.group)


def test_only_the_given_capabilities_are_read_and_an_unknown_one_has_no_prompts() -> None:
    assert {p.capability for p in load_prompts(["math", "juggling"])} == {"math"}


def test_an_invalid_line_is_named(tmp_path: Path) -> None:
    good = msgspec.json.encode(Prompt("p", "math", (Message("user", "one"),)))
    (tmp_path / "math.jsonl").write_bytes(good + b'\n{"id": "x"}\n')
    with pytest.raises(GladiusError, match=r"math\.jsonl, line 2"):
        load_prompts(["math"], tmp_path)


def test_prompts_are_nfc(tmp_path: Path) -> None:
    prompt = Prompt("a", "math", (Message("user", "cafe\u0301"),))
    (tmp_path / "math.jsonl").write_bytes(msgspec.json.encode(prompt))
    assert load_prompts(["math"], tmp_path)[0].messages[0].content == "caf\u00e9"


# Variants


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_a_generator_makes_12_000_distinct_prompts(capability: str) -> None:
    prompts = list(itertools.islice(generate_variants(capability, 0), 12_000))
    assert len(prompts) == 12_000
    assert len({prompt.id for prompt in prompts}) == 12_000
    texts = {"\n".join((_user_text(p), *p.then)).casefold() for p in prompts}
    assert len(texts) == 12_000
    assert all(prompt.check is not None and prompt.family for prompt in prompts)
    assert all("{" not in _user_text(p) or capability in ("json", "code") for p in prompts)


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_variants_depend_only_on_the_seed(capability: str) -> None:
    def first(seed: int) -> list[Prompt]:
        return list(itertools.islice(generate_variants(capability, seed), 50))

    assert first(3) == first(3)
    assert first(3) != first(4)


def test_a_capability_without_a_generator_has_no_variants() -> None:
    assert list(generate_variants("juggling", 0)) == []


def test_tool_prompts_need_one_call_two_a_later_one_or_none() -> None:
    prompts = list(itertools.islice(generate_variants("tool_calling", 0), 2000))
    kinds: Counter[str] = Counter()
    for prompt in prompts:
        assert isinstance(prompt.check, ToolCheck)
        count = len(prompt.check.calls)
        kinds["later" if prompt.then else ("none", "one", "two")[count]] += 1
        assert {call.tool for call in prompt.check.calls} <= set(prompt.check.tools)
        assert all(name in prompt.messages[0].content for name in prompt.check.tools)
    assert min(kinds[kind] for kind in ("one", "two", "later", "none")) > 50


def test_the_tools_include_the_original_eight_and_cover_many_domains() -> None:
    tools = load_tools()
    original = "read_db write_db search remember recall run_syndicate send_discord send_email"
    assert set(original.split()) < set(tools)
    assert len(tools) >= 48
    domains = Counter(tool.domain for tool in tools.values())
    assert len(domains) >= 12 and max(domains.values()) <= len(tools) / 4
    for tool in tools.values():
        assert len(tool.requests) >= 2 and tool.description.endswith(".")


# The split


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_no_training_prompt_is_similar_to_an_evaluation_prompt(capability: str) -> None:
    """Compares every reserved prompt with every other one, hand-written and generated.

    The text of offered tools is left out: both sides may offer the same tools.
    """
    prompts = load_prompts([capability])
    prompts += itertools.islice(generate_variants(capability, 1), 2000)
    prompts += itertools.islice(generate_variants(capability, 1, reserved=True), 100)
    evaluation = [shingles(_user_text(p)) for p in prompts if is_reserved(p.group)]
    index: dict[str, list[int]] = defaultdict(list)
    for n, part in enumerate(evaluation):
        for shingle in part:
            index[shingle].append(n)
    assert evaluation
    for prompt in prompts:
        if is_reserved(prompt.group):
            continue
        own = shingles(_user_text(prompt))
        shared = Counter(n for shingle in own for n in index.get(shingle, ()))
        for n, count in shared.items():
            similar = count / len(own | evaluation[n])
            assert similar < 0.7, (_user_text(prompt), sorted(evaluation[n])[:8], similar)


def test_the_share_of_reserved_families_is_reserved() -> None:
    share = sum(is_reserved(f"family {n}") for n in range(20_000)) / 20_000
    assert abs(share - RESERVED) < 0.01


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_evaluation_prompts_are_reserved_and_have_a_check(
    capability: str,
) -> None:
    prompts = evaluation_prompts(capability)
    assert len(prompts) >= 20 and len({prompt.id for prompt in prompts}) == len(prompts)
    assert all(is_reserved(prompt.group) and prompt.check for prompt in prompts)
    assert len({prompt.group for prompt in prompts[:8]}) >= 4


def test_every_capability_with_prompts_has_a_generator() -> None:
    assert set(GENERATORS) == set(CAPABILITIES)


def test_checks_have_the_kind_of_their_capability() -> None:
    reasoning = [p.check for p in load_prompts(["reasoning"]) if p.check]
    assert all(isinstance(c, NumberCheck | MentionCheck) for c in reasoning)
    instructions = [p.check for p in load_prompts(["instructions"]) if p.check]
    assert all(isinstance(check, FormatCheck) for check in instructions)
    safety = [p.check.refuse for p in load_prompts(["safety"]) if isinstance(p.check, RefusalCheck)]
    assert sum(safety) >= 30 and len(safety) - sum(safety) >= 60
