"""The registered experts and their state on this machine; no torch, no network.

assets/experts.toml lists the built-in experts; `[experts.NAME]` tables in the root's gladius.toml
add others or change single fields. The job in `fetch` downloads them.
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
from engine.small_files import Damaged, read_json, read_toml
from engine.structs import Problem, convert, nearest, problems_text
from engine.units import size
from engine.workspace import Workspace, assets_dir, expert_dir, tree_bytes

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
VERIFIED_TIMES = "verified_times.json"
"""Modification times at the last verification, next to the manifest. They are not written into the
manifest: its bytes identify the expert's content (`expert_digest`)."""
VERIFY = "gladius_train models --verify"
_CHECK = f"check it with: {VERIFY}"
_CHANGED = "was changed since it was verified"
_HUB_NAME = r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?"
_HUB_ID = re.compile(rf"(?:{_HUB_NAME}/)?{_HUB_NAME}")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,249}")


class ExpertSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A registered expert: the fields of its table."""

    name: str
    title: str
    source: Literal["hub", "wheel", "folder", "gguf"]
    repo: str
    """Hub id, wheel requirement, or path of the folder or .gguf file."""
    revision: str = "main"
    file: str = ""
    """GGUF file inside the wheel."""
    sha256: str = ""
    """Hash of that file, in hex."""
    size_bytes: Annotated[int, Meta(ge=0)] = 0
    """Bytes to download; 0 if unknown."""
    weight: Annotated[float, Meta(gt=0)] = 1.0
    """Share of the token budget and of the mix, relative to the other experts."""
    capabilities: tuple[str, ...] = CAPABILITIES
    """Capabilities that it teaches: it answers the prompts of these."""
    required: bool = False
    """Whether `download` without names fetches it."""
    gated: bool = False
    """Whether the Hub needs an accepted licence and a token."""
    license: str = ""
    parameters: Annotated[int, Meta(ge=0)] = 0
    chat: Literal["template", "phi"] = "template"
    """Chat format: the tokenizer's template, or phi's Instruct/Output."""
    end_tokens: tuple[str, ...] = ()
    """Tokens that end its turn; empty: those of its tokenizer and generation config."""
    stop_strings: tuple[str, ...] = ()
    """Strings at which its answers are cut off."""
    trust_end: bool = True
    """False: the end of a turn is trained with cross-entropy only, not with its distribution."""


class ExpertStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The state of an expert on this machine."""

    name: str
    state: Literal["ready", "partial", "missing"]
    present_bytes: int
    expected_bytes: int
    detail: str = ""
    """The missing part, or the path of a ready expert."""
    revision: str = ""
    """The downloaded commit of the Hub repository; empty if unknown."""

    @property
    def unverified(self) -> bool:
        """Whether all files are here but must be hashed first (`models --verify`)."""
        return _CHECK in self.detail

    @property
    def only_times_differ(self) -> bool:
        """Whether it was verified, all sizes match and only a modification time differs, as after a
        copy: a job verifies it by hash before it is used."""
        return self.unverified and _CHANGED in self.detail

    @property
    def usable(self) -> bool:
        """Whether a job can use it: it is ready, or becomes so when its hashes still match."""
        return self.state == "ready" or self.only_times_differ


class ManifestFile(msgspec.Struct, frozen=True, kw_only=True):
    """One file of a downloaded expert."""

    size: int
    sha256: str
    mtime_ns: int = 0
    """Modification time at the last verification: a file with the same size and time is not hashed
    again. 0: only the size is compared."""


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """The manifest.json that the download job writes into the folder of a verified expert."""

    files: dict[str, ManifestFile]
    """By path relative to the expert's folder."""
    source: str = ""
    revision: str = ""
    """The downloaded commit; empty for an expert that is not from the Hub."""
    license: str = ""
    damage: str = ""
    """The problem that the last verification found; empty if there was none."""


def load_experts(workspace: Workspace) -> dict[str, ExpertSpec]:
    """All experts by name: the built-in ones in their order, then the user's.

    Raises UsageError that lists every problem of gladius.toml.
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
                Problem(f"{prefix}.repo", "missing; give a Hub id, a folder or a .gguf file")
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
    """An expert from its table (with `source`), and every problem found in it."""
    prefix = f"experts.{_printable(name)}"
    spec, problems = convert(ExpertSpec, {"title": name, **table, "name": name}, prefix)
    if spec is not None:
        problems += _check(workspace, spec, prefix)
    return spec, problems


def _printable(name: str) -> str:
    return name if name.isprintable() else ascii(name)


def shipped_names() -> list[str]:
    """The names of the built-in experts."""
    with open(assets_dir() / "experts.toml", "rb") as file:
        return list(tomllib.load(file))


def _user_tables(workspace: Workspace) -> dict[str, Any]:
    try:
        experts = read_toml(workspace.user_config).get("experts", {})
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UsageError(f"{workspace.user_config}: {error.strerror or error}") from error
    except Damaged as error:
        raise UsageError(f"{workspace.user_config}: {error.reason}") from error
    if not isinstance(experts, dict):
        raise UsageError(
            f"{workspace.user_config}: experts is not a table; write [experts.NAME] tables"
        )
    return experts


def with_source(table: dict[str, Any], root: Path) -> dict[str, Any]:
    """A user's table completed with its source (derived from `repo`) and, for a path, an absolute
    `repo`."""
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
        Problem(f"{prefix}.capabilities", f"{name!r} is unknown; {nearest(name, CAPABILITIES)}")
        for name in spec.capabilities
        if name not in CAPABILITIES
    ]
    if not spec.capabilities:
        problems.append(Problem(f"{prefix}.capabilities", "empty; at least one is needed"))
    if spec.source == "hub" and not is_hub_id(spec.repo):
        problems.append(Problem(f"{prefix}.repo", f"{spec.repo!r} is not a Hub id (org/model)"))
    if not _REVISION.fullmatch(spec.revision) or ".." in spec.revision:
        problems.append(
            Problem(f"{prefix}.revision", f"{spec.revision!r} is not a branch, tag or commit")
        )
    try:
        expert_dir(workspace, spec.name)
    except UsageError as error:
        problems.append(Problem(prefix, str(error)))
    return problems


def is_hub_id(text: str) -> bool:
    """Whether the text has the form of a Hub id: `org/model` or `model`."""
    return bool(_HUB_ID.fullmatch(text)) and not re.search(r"--|\.\.|\.git$", text)


def expert_path(workspace: Workspace, spec: ExpertSpec) -> Path:
    """The path that it is loaded from: tmp/models/NAME, or the user's folder or .gguf file."""
    if spec.source in ("folder", "gguf"):
        return Path(spec.repo)
    return expert_dir(workspace, spec.name)


def expert_status(workspace: Workspace, spec: ExpertSpec) -> ExpertStatus:
    """The expert's state, from file names, sizes, times and headers only (nothing is hashed).

    Ready means that the size and sha256 of every file were verified and that no size or time has
    changed since. For the user's own folder or .gguf file it means that its format is valid.
    """
    path = expert_path(workspace, spec)
    present = tree_bytes(path) if path.exists() else 0
    # The registry's size is that of the download, not of the user's own files.
    expected = present if spec.source in ("folder", "gguf") else spec.size_bytes
    revision = ""
    if spec.source == "gguf":
        problem = None if _is_gguf(path) else f"{path} is not a GGUF file"
    elif path.is_dir():
        manifest = read_manifest(path)
        if manifest is not None:
            expected = sum(file.size for file in manifest.files.values())
            revision = manifest.revision
            problem = _manifest_problem(path, manifest)
        else:
            problem = folders.find_problem(path)
            if problem is None and spec.source in ("hub", "wheel"):
                problem = f"not verified yet; {_CHECK}"
    else:
        downloadable = spec.source in ("hub", "wheel")
        problem = "not downloaded" if downloadable else f"{path} does not exist"
    if problem is None:
        state = "ready"
    else:
        downloads = workspace.downloads_dir / spec.name
        downloaded = tree_bytes(downloads) if downloads.exists() else 0
        if downloaded and not present:
            share = f"{min(downloaded / expected, 0.99):.0%}" if expected else size(downloaded)
            problem = f"{share} downloaded"
        present += downloaded
        state = "partial" if present else "missing"
    return ExpertStatus(
        name=spec.name,
        state=state,
        present_bytes=present,
        expected_bytes=expected or present,
        detail=problem or str(path),
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
    """The folder's manifest; None if it is missing or unreadable."""
    if not (folder / MANIFEST).is_file():
        return None
    try:
        return read_json(folder / MANIFEST, Manifest)
    except (OSError, Damaged):
        return None


def read_verified_times(folder: Path) -> dict[str, int]:
    """Modification time (ns) of each file at the last verification; empty if none is stored."""
    try:
        return read_json(folder / VERIFIED_TIMES, dict[str, int])
    except (OSError, Damaged):
        return {}


def _manifest_problem(folder: Path, manifest: Manifest) -> str | None:
    """The first difference to the verified files, by names, sizes and times; None: no difference.

    A missing or resized file counts before one whose time alone has changed.
    """
    changed = None
    verified_times = read_verified_times(folder)
    for name, file in manifest.files.items():
        try:
            found = (folder / name).stat()
        except OSError:
            return f"{name} is missing"
        if found.st_size != file.size:
            return f"{name} has {found.st_size:,} of {file.size:,} bytes"
        known = (file.mtime_ns, verified_times.get(name))
        if file.mtime_ns and found.st_mtime_ns not in known:
            changed = changed or f"{name} {_CHANGED}; {_CHECK}"
    return manifest.damage or changed
