"""Owns which experts there are and what of them lies on this machine. No torch, no network.

The ones that ship stand in assets/experts.toml; `[experts.NAME]` tables in the root's gladius.toml
add others or change single fields. Fetching them is `fetch`'s.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from engine.errors import UsageError
from engine.experts import folder as folders
from engine.structs import Problem, convert, nearest, problems_text
from engine.units import size
from engine.workspace import Workspace, assets_dir, tree_bytes

CAPABILITIES = (
    "tool_calling",
    "json",
    "reasoning",
    "fluency",
    "math",
    "code",
    "safety",
    "instructions",
)

MANIFEST = "manifest.json"
VERIFY = "gladius_train models --verify"
_CHECK = f"check it with: {VERIFY}"
_HUB_NAME = r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?"
_HUB_ID = re.compile(rf"(?:{_HUB_NAME}/)?{_HUB_NAME}")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,249}")


class ExpertSpec(msgspec.Struct, frozen=True, kw_only=True):
    """An expert as registered."""

    name: str
    title: str
    source: Literal["hub", "wheel", "folder", "gguf"]
    repo: str
    """Hub id, wheel requirement, or path of the folder or .gguf file."""
    revision: str = "main"
    file: str = ""
    """Member inside a wheel."""
    sha256: str = ""
    """Of that member, in hex."""
    size_bytes: Annotated[int, Meta(ge=0)] = 0
    """Bytes to download; 0 where unknown."""
    weight: Annotated[float, Meta(gt=0)] = 1.0
    """Share of budget and mix, relative to the others'."""
    capabilities: tuple[str, ...] = CAPABILITIES
    """What it is asked for: the prompt banks that it answers."""
    required: bool = False
    gated: bool = False
    """The Hub asks for a licence to be accepted and for a token."""
    license: str = ""
    parameters: Annotated[int, Meta(ge=0)] = 0
    chat: Literal["template", "phi"] = "template"
    """How it reads a conversation: its tokenizer's template, or phi's Instruct/Output."""
    end_tokens: tuple[str, ...] = ()
    """Tokens that end its turn; none: what its tokenizer and generation config call the end."""
    stop_strings: tuple[str, ...] = ()
    """Texts at which its answers are cut."""
    trust_end: bool = True
    """False: its probability of ending a turn is not learnt from (cross-entropy only there)."""


class ExpertStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What of an expert lies on this machine."""

    name: str
    state: Literal["ready", "partial", "missing"]
    present_bytes: int
    expected_bytes: int
    detail: str = ""
    """What is lacking, or where it lies."""
    revision: str = ""
    """The commit of the Hub's repository that lies here, where it is known."""

    @property
    def unverified(self) -> bool:
        """Whether all of it is here, and only hashing it (`models --verify`) can say more."""
        return _CHECK in self.detail


class ManifestFile(msgspec.Struct, frozen=True, kw_only=True):
    """One file of a fetched expert."""

    size: int
    sha256: str
    mtime_ns: int = 0
    """When it was written, as the file system had it at the time of the last verification: with
    the same size and time it is not read again. 0: sizes alone decide."""


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What the download job writes beside an expert that it has verified (manifest.json)."""

    files: dict[str, ManifestFile]
    """By path relative to the expert's folder."""
    source: str = ""
    revision: str = ""
    """The commit that was fetched; empty for what does not come from the Hub."""
    license: str = ""
    damage: str = ""
    """What the last verification found wrong; empty: nothing."""


def load_experts(workspace: Workspace) -> dict[str, ExpertSpec]:
    """All experts by name: the ones that ship, in their order, then the user's.

    UsageError names every problem of gladius.toml.
    """
    with open(assets_dir() / "experts.toml", "rb") as file:
        tables: dict[str, Any] = dict(tomllib.load(file))
    problems: list[Problem] = []
    for name, table in _user_tables(workspace).items():
        prefix = f"experts.{_printable(name)}"
        if not isinstance(table, dict):
            problems.append(Problem(prefix, f"{table!r} is not a table"))
        elif name in tables:
            tables[name] = {**tables[name], **table}
        elif "repo" not in table:
            problems.append(
                Problem(f"{prefix}.repo", "missing; a Hub id, a folder or a .gguf file")
            )
        else:
            tables[name] = with_source(table, workspace.root)
    experts: dict[str, ExpertSpec] = {}
    for name, table in tables.items():
        spec, found = make_spec(workspace, name, table)
        if spec is not None:
            experts[name] = spec
        problems += found
    if problems:
        raise UsageError(problems_text(problems, str(workspace.user_config)))
    return experts


def make_spec(
    workspace: Workspace, name: str, table: dict[str, Any]
) -> tuple[ExpertSpec | None, list[Problem]]:
    """An expert from its table, which names its source, and every problem found."""
    prefix = f"experts.{_printable(name)}"
    spec, problems = convert(ExpertSpec, {"title": name, **table, "name": name}, prefix)
    if spec is not None:
        problems += _check(workspace, spec, prefix)
    return spec, problems


def _printable(name: str) -> str:
    return name if name.isprintable() else ascii(name)


def shipped_names() -> list[str]:
    """The names of the experts that ship."""
    with open(assets_dir() / "experts.toml", "rb") as file:
        return list(tomllib.load(file))


def _user_tables(workspace: Workspace) -> dict[str, Any]:
    try:
        with open(workspace.user_config, "rb") as file:
            experts = tomllib.load(file).get("experts", {})
    except FileNotFoundError:
        return {}
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{workspace.user_config}: {error}") from error
    if not isinstance(experts, dict):
        raise UsageError(f"{workspace.user_config}: experts must be tables, [experts.NAME]")
    return experts


def with_source(table: dict[str, Any], root: Path) -> dict[str, Any]:
    """A user's table with its source (found from `repo`) and, for a path, that path absolute."""
    repo = str(table["repo"])
    source = table.get("source")
    if source is None:
        path = root / Path(repo).expanduser()
        if repo.endswith(".gguf"):
            source = "gguf"
        elif repo.startswith((".", "/", "~")) or path.is_dir():
            source = "folder"
        else:
            source = "hub"
    if source in ("folder", "gguf"):
        repo = str(root / Path(repo).expanduser())
    return {**table, "source": source, "repo": repo}


def _check(workspace: Workspace, spec: ExpertSpec, prefix: str) -> list[Problem]:
    problems = [
        Problem(f"{prefix}.capabilities", f"{word!r} is unknown; {nearest(word, CAPABILITIES)}")
        for word in spec.capabilities
        if word not in CAPABILITIES
    ]
    if not spec.capabilities:
        problems.append(Problem(f"{prefix}.capabilities", "empty; at least one is needed"))
    if spec.source == "hub" and not is_hub_id(spec.repo):
        problems.append(Problem(f"{prefix}.repo", f"{spec.repo!r} is no Hub id; write org/model"))
    if not _REVISION.fullmatch(spec.revision) or ".." in spec.revision:
        problems.append(
            Problem(f"{prefix}.revision", f"{spec.revision!r} is no branch, tag or commit")
        )
    try:
        workspace.expert_dir(spec.name)
    except UsageError as error:
        problems.append(Problem(prefix, str(error)))
    return problems


def is_hub_id(text: str) -> bool:
    """Whether the text is written as the Hub writes ids: `org/model`, or `model`."""
    return bool(_HUB_ID.fullmatch(text)) and not re.search(r"--|\.\.|\.git$", text)


def expert_path(workspace: Workspace, spec: ExpertSpec) -> Path:
    """Where it is loaded from: tmp/models/NAME, or the user's own folder or .gguf file."""
    if spec.source in ("folder", "gguf"):
        return Path(spec.repo)
    return workspace.expert_dir(spec.name)


def expert_status(workspace: Workspace, spec: ExpertSpec) -> ExpertStatus:
    """What of it is here, from names, sizes, times and headers only (nothing is hashed).

    Ready means that sizes and sha256 of every file were verified, and that the files have not
    changed since by size and time; for the user's own folder or file, that its form is whole.
    """
    path = expert_path(workspace, spec)
    present = tree_bytes(path) if path.exists() else 0
    expected = spec.size_bytes
    revision = ""
    if spec.source == "gguf":
        lacking = None if _is_gguf(path) else "no GGUF file there"
    elif path.is_dir():
        manifest = read_manifest(path)
        if manifest is not None:
            expected = sum(file.size for file in manifest.files.values())
            revision = manifest.revision
            lacking = _lacking_of_manifest(path, manifest)
        else:
            lacking = folders.lacking(path)
            if lacking is None and spec.source in ("hub", "wheel"):
                lacking = f"not verified yet; {_CHECK}"
    else:
        lacking = "not downloaded" if spec.source in ("hub", "wheel") else "no such folder"
    if lacking is None:
        state = "ready"
    else:
        downloads = workspace.downloads_dir / spec.name
        coming = tree_bytes(downloads) if downloads.exists() else 0
        if coming and not present:
            share = f"{min(coming / expected, 0.99):.0%}" if expected else size(coming)
            lacking = f"{share} downloaded"
        present += coming
        state = "partial" if present else "missing"
    return ExpertStatus(
        name=spec.name,
        state=state,
        present_bytes=present,
        expected_bytes=expected or present,
        detail=lacking or str(path),
        revision=revision,
    )


def _is_gguf(path: Path) -> bool:
    if not path.is_file():
        return False
    try:
        with open(path, "rb") as file:
            return file.read(4) == b"GGUF"
    except OSError:
        return False


def read_manifest(folder: Path) -> Manifest | None:
    """The folder's manifest; None where there is none that can be read."""
    if not (folder / MANIFEST).is_file():
        return None
    try:
        return msgspec.json.decode((folder / MANIFEST).read_bytes(), type=Manifest)
    except (OSError, msgspec.MsgspecError):
        return None


def _lacking_of_manifest(folder: Path, manifest: Manifest) -> str | None:
    """What is no longer as it was verified, by names, sizes and times."""
    changed = None
    for name, file in manifest.files.items():
        try:
            found = (folder / name).stat()
        except OSError:
            return f"{name} is missing"
        if found.st_size != file.size:
            return f"{name} has {found.st_size:,} of {file.size:,} bytes"
        if file.mtime_ns and found.st_mtime_ns != file.mtime_ns:
            changed = changed or f"{name} was changed since it was verified; {_CHECK}"
    return manifest.damage or changed
