"""List the files of a Hub repository at a commit and choose those that are downloaded.

Uses `huggingface_hub` for metadata, URLs, session and token.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Any

import msgspec
from huggingface_hub import HfApi, constants, get_hf_file_metadata, get_session, hf_hub_url
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

from engine.errors import GladiusError, UsageError
from engine.experts.folder import INDEX, PICKLES
from engine.experts.hub_errors import TransientError, hub_token, translate_error
from engine.experts.model_checks import ADAPTER, QUANTISED_FILES, adapter_problem, quantised
from engine.experts.registry import ExpertSpec

# Files that are downloaded in addition to weights: configs, tokenizers, chat templates. Weights are
# downloaded only as safetensors (.bin, .pt and .pth are pickles); code is never downloaded.
_TEXTS = frozenset(
    {
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "tokenizer.model",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.json",
        "merges.txt",
        "chat_template.jinja",
        "chat_template.json",
        INDEX,
    }
)
_SHARD = re.compile(r".+-\d+-of-\d+\.safetensors")
_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,199}")
_MAX_CONFIG_BYTES = 1 << 20


class RemoteFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file of a Hub repository."""

    name: str
    size: int
    sha256: str = ""
    """Set for a large file (LFS)."""
    blob_id: str = ""
    """Git's blob id, set for a small file."""

    @property
    def key(self) -> str:
        """The hash that identifies its content: the sha256, else git's blob id."""
        return self.sha256 or self.blob_id


class Listing(msgspec.Struct, frozen=True, kw_only=True):
    """The files to download from a repository, at one commit."""

    repo: str
    commit: str
    files: tuple[RemoteFile, ...]

    @property
    def total(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)


def list_files(spec: ExpertSpec) -> Listing:
    """The files to download for the expert, each with its size and hash.

    Raises TransientError if a retry may help, else GladiusError.
    """
    try:
        info = HfApi().model_info(
            spec.repo,
            revision=spec.revision,
            files_metadata=True,
            token=hub_token() or False,
            timeout=constants.HF_HUB_ETAG_TIMEOUT,
        )
        commit = info.sha or ""
        if not re.fullmatch(r"[0-9a-f]{40,64}", commit):
            raise GladiusError(
                f"{spec.name}: {constants.ENDPOINT} returns no commit of {spec.repo}, as a Hub "
                "would; check HF_ENDPOINT"
            )
        siblings = {s.rfilename: s for s in info.siblings or ()}
        if info.gated or spec.gated:
            # The listing of a gated repository is public, its files are not: check access first.
            get_hf_file_metadata(
                hf_hub_url(spec.repo, "config.json", revision=commit), token=hub_token() or False
            )
        files = []
        for name in chosen_files(spec, siblings):
            found = siblings[name]
            sha256 = found.lfs.sha256 if found.lfs else ""
            blob_id, size = found.blob_id or "", found.size
            if size is None or not (sha256 or blob_id):
                # A mirror may omit them in the listing; the headers of the file contain them.
                head = get_hf_file_metadata(
                    hf_hub_url(spec.repo, name, revision=commit), token=hub_token() or False
                )
                size, etag = head.size, head.etag or ""
                sha256, blob_id = (etag, "") if len(etag) == 64 else ("", etag)
            _check_identity(spec, name, size, sha256 or blob_id)
            files.append(RemoteFile(name=name, size=size or 0, sha256=sha256, blob_id=blob_id))
    except (GladiusError, TransientError):
        raise
    except Exception as error:
        raise translate_error(spec, error) from error
    return Listing(repo=spec.repo, commit=commit, files=tuple(files))


def _check_identity(spec: ExpertSpec, name: str, size: int | None, key: str) -> None:
    # The key becomes the name of the part file, so it must be hexadecimal.
    if size is None or size < 0 or not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", key):
        raise GladiusError(
            f"{spec.name}: the Hub gives no size or hash for {name}, so it can't be verified; "
            "check HF_ENDPOINT"
        )
    if size > constants.MAX_HTTP_DOWNLOAD_SIZE:
        raise GladiusError(
            f"{spec.name}: {name} has {size / (1 << 30):.0f} GiB, more than the Hub serves in one "
            "file over HTTP; download it with the hf command and add the folder with: "
            "gladius_train models add"
        )


def chosen_files(spec: ExpertSpec, names: Iterable[str]) -> list[str]:
    """The file names to download from a repository, small files first.

    Raises:
        UsageError: a name is a path out of the folder.
        GladiusError: weights, config or tokenizer are missing in a supported format, or the
            repository holds an adapter or quantised weights.
    """
    names = list(names)
    texts = sorted(name for name in names if is_downloaded(name) and name in _TEXTS)
    weights = sorted(name for name in names if is_downloaded(name) and name not in _TEXTS)
    if ADAPTER in names and "config.json" not in texts:
        raise GladiusError(f"{spec.name}: {spec.repo}: {adapter_problem({})}")
    for name in QUANTISED_FILES:
        if name in names:
            raise GladiusError(f"{spec.name}: {spec.repo}: {quantised(name)}")
    if INDEX in texts:
        weights = [name for name in weights if _SHARD.fullmatch(name)] or weights
    else:
        weights = [name for name in weights if name == "model.safetensors"]
    if not weights:
        pickles = any(PurePosixPath(name).suffix in PICKLES for name in names)
        has = "only pickled weights (.bin, .pt)" if pickles else "no model.safetensors"
        raise GladiusError(
            f"{spec.name}: {spec.repo} has {has}; only safetensors are loaded, choose a "
            "repository that has them"
        )
    for needed in ("config.json", "tokenizer.json"):
        if needed not in texts:
            raise GladiusError(
                f"{spec.name}: {spec.repo} has no {needed}; choose a repository that has one"
            )
    return texts + weights


def is_downloaded(name: str) -> bool:
    """Whether a file of a repository is downloaded: top-level safetensors, configs, tokenizers and
    templates. Raises UsageError for a name that is a path out of the folder."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name:
        raise UsageError(
            f"the repository has a file named {name!r}, which is no safe file name; choose "
            "another repository"
        )
    if not _PLAIN.fullmatch(name):
        return False
    return name in _TEXTS or name.endswith(".safetensors")


def file_url(listing: Listing, file: RemoteFile) -> str:
    """The URL of the file at the listing's commit."""
    return hf_hub_url(listing.repo, file.name, revision=listing.commit)


def fetch_config(spec: ExpertSpec, listing: Listing) -> dict[str, Any]:
    """The repository's config.json, parsed. Raises as `list_files` does."""
    file = next(file for file in listing.files if file.name == "config.json")
    try:
        if file.size > _MAX_CONFIG_BYTES:
            raise GladiusError(
                f"{spec.name}: config.json of {spec.repo} has {file.size:,} bytes, too many for a "
                "config; choose another repository"
            )
        response = get_session().get(
            file_url(listing, file),
            headers=request_headers(),
            timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
        )
        hf_raise_for_status(response)
        config = response.json()
    except (GladiusError, TransientError):
        raise
    except Exception as error:
        raise translate_error(spec, error, file.name) from error
    return config if isinstance(config, dict) else {}


def request_headers() -> dict[str, str]:
    """HTTP headers of a request, with the token if there is one. Compression is off: byte
    ranges and sizes must be those of the file."""
    headers = build_hf_headers(token=hub_token() or False, library_name="gladius")
    return {**headers, "Accept-Encoding": "identity"}
