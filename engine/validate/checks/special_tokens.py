"""Check that special tokens are single tokens, and the same in all of the model's files."""

from __future__ import annotations

from typing import Any

from engine.events import CheckDone
from engine.validate.check import Check, one_per_line, structural_row
from engine.validate.context import CheckContext
from engine.validate.model_files import read_json

_NAME, _TITLE = "special_tokens", "special tokens"


def check_special_tokens(context: CheckContext) -> CheckDone:
    """Each special token is one special token, and the configs agree with the tokenizer."""
    context.heartbeat("checking the tokenizer")
    if context.gguf is None:
        config = read_json(context.folder / "config.json")
        generation_config = read_json(context.folder / "generation_config.json")
    else:
        config, generation_config = context.model.model.config.to_dict(), {}
    tokenizer = context.model.tokenizer
    findings: list[str] = []
    found: list[str] = []
    for role in ("bos", "eos", "pad"):
        token, token_id = (
            getattr(tokenizer, f"{role}_token"),
            getattr(tokenizer, f"{role}_token_id"),
        )
        if token is None:
            if role == "eos":
                findings.append("there is no end-of-text token: generation would never stop")
            continue
        found.append(f"{role} {token} {token_id}")
        findings += _token_findings(tokenizer, role, token, token_id)
        for name, data in (("config.json", config), ("generation_config.json", generation_config)):
            given = data.get(f"{role}_token_id")
            allowed = given if isinstance(given, list) else [given]
            if given is not None and token_id not in allowed:
                findings.append(f"{role} is {given} in {name}, but {token_id} in the tokenizer")
    eos = generation_config.get("eos_token_id", config.get("eos_token_id"))
    if (config or generation_config) and eos is None:
        findings.append("neither config.json nor generation_config.json has an eos_token_id")
    return structural_row(
        _NAME,
        _TITLE,
        passed=not findings,
        value=findings[0] if findings else ", ".join(found),
        meaning="The end-of-text token is one special token, the same in all files, so that "
        "generation can stop.",
        bound="tokenizer, config and generation config agree",
        detail=one_per_line(findings) if findings[1:] else "",
    )


def _token_findings(tokenizer: Any, role: str, token: str, token_id: int) -> list[str]:
    """What is wrong with one special token of the tokenizer."""
    if tokenizer.get_vocab().get(token) != token_id:
        return [f"{role}_token {token!r} is not in the vocabulary"]
    findings = []
    if tokenizer(token, add_special_tokens=False).input_ids != [token_id]:
        findings.append(f"{role}_token {token!r} is encoded as more than one token")
    if tokenizer.decode([token_id], skip_special_tokens=True) != "":
        findings.append(f"{role}_token {token!r} is not special, so it would show in answers")
    return findings


CHECK = Check(group="structural", name=_NAME, title=_TITLE, run=check_special_tokens)
