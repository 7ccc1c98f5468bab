"""Owns what is asked of the Hub, but for the bytes of files: which files a repository has at a
commit, which of them are fetched, the token, and what a refusal means in one line.

Metadata, addresses, session and token are `huggingface_hub`'s; the bytes are `ranges`'.
"""

from __future__ import annotations

import errno
import re
import shutil
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.request import getproxies

import msgspec
from huggingface_hub import (
    HfApi,
    constants,
    get_hf_file_metadata,
    get_session,
    get_token,
    hf_hub_url,
)
from huggingface_hub.errors import (
    DisabledRepoError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

from engine.errors import GladiusError, MissingError, UsageError
from engine.experts.folder import INDEX, PICKLES
from engine.experts.registry import ExpertSpec

# Everything that is fetched besides weights: configs, tokenizers, chat templates. Weights come as
# safetensors and as nothing else: .bin, .pt and .pth unpickle, and code is never fetched.
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
_TOKEN = re.compile(r"[!-~]+")
_LARGEST_CONFIG = 1 << 20
_PATIENCE = 3600.0
"""The longest Retry-After that is waited for, in seconds."""


class RemoteFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file as the Hub has it."""

    name: str
    size: int
    sha256: str = ""
    """Of a large file (LFS)."""
    blob_id: str = ""
    """Git's SHA-1 of a small one."""

    @property
    def key(self) -> str:
        """What names its content: the sha256, else git's id."""
        return self.sha256 or self.blob_id


class Listing(msgspec.Struct, frozen=True, kw_only=True):
    """The files of a repository that are fetched, at one commit."""

    repo: str
    commit: str
    files: tuple[RemoteFile, ...]

    @property
    def total(self) -> int:
        """Bytes in all."""
        return sum(file.size for file in self.files)


class Hiccup(Exception):
    """The Hub, or the way to it, fails for the moment; the same may go well a little later."""

    def __init__(self, why: str, wait: float | None = None, *, unreachable: bool = False) -> None:
        super().__init__(why)
        self.wait = wait
        """Seconds that the Hub asks to wait (Retry-After); None: it doesn't say."""
        self.unreachable = unreachable
        """Whether there was no connection at all: then other questions have none either."""


def list_files(spec: ExpertSpec) -> Listing:
    """What of the expert's repository is fetched, with size and hash of each file.

    Raises Hiccup where another try may help, else GladiusError with one line.
    """
    try:
        info = HfApi().model_info(
            spec.repo,
            revision=spec.revision,
            files_metadata=True,
            token=_token() or False,
            timeout=constants.HF_HUB_ETAG_TIMEOUT,
        )
        commit = info.sha or ""
        if not re.fullmatch(r"[0-9a-f]{40,64}", commit):
            raise GladiusError(
                f"{spec.name}: {constants.ENDPOINT} names no commit of {spec.repo}; is it a Hub? "
                "see HF_ENDPOINT"
            )
        siblings = {s.rfilename: s for s in info.siblings or ()}
        if info.gated or spec.gated:
            # A gated repository's listing is public, its files are not: ask before planning.
            get_hf_file_metadata(
                hf_hub_url(spec.repo, "config.json", revision=commit), token=_token() or False
            )
        files = []
        for name in chosen_files(spec, siblings):
            found = siblings[name]
            sha256 = found.lfs.sha256 if found.lfs else ""
            blob_id, size = found.blob_id or "", found.size
            if size is None or not (sha256 or blob_id):
                # A mirror may leave them out of the listing; the file's own headers have them.
                head = get_hf_file_metadata(
                    hf_hub_url(spec.repo, name, revision=commit), token=_token() or False
                )
                size, etag = head.size, head.etag or ""
                sha256, blob_id = (etag, "") if len(etag) == 64 else ("", etag)
            _check_identity(spec, name, size, sha256 or blob_id)
            files.append(RemoteFile(name=name, size=size or 0, sha256=sha256, blob_id=blob_id))
    except (GladiusError, Hiccup):
        raise
    except Exception as error:
        raise told(spec, error) from error
    return Listing(repo=spec.repo, commit=commit, files=tuple(files))


def _check_identity(spec: ExpertSpec, name: str, size: int | None, key: str) -> None:
    # The key becomes the name of the part file, so it is nothing but hex.
    if size is None or size < 0 or not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", key):
        raise GladiusError(
            f"{spec.name}: the Hub gives no size or no hash of {name}, so it can't be verified; "
            "see HF_ENDPOINT"
        )
    if size > constants.MAX_HTTP_DOWNLOAD_SIZE:
        raise GladiusError(
            f"{spec.name}: {name} has {size / 1e9:.0f} GB, more than the Hub serves in one file "
            "over HTTP; fetch it with the hf command and add the folder: gladius_train models add"
        )


def chosen_files(spec: ExpertSpec, names: Iterable[str]) -> list[str]:
    """Which of a repository's files are fetched, small ones first.

    Raises UsageError for a name that leads elsewhere, GladiusError where weights, config or
    tokenizer are not there in a form that is loaded.
    """
    names = list(names)
    texts = sorted(name for name in names if is_wanted(name) and name in _TEXTS)
    weights = sorted(name for name in names if is_wanted(name) and name not in _TEXTS)
    if INDEX in texts:
        weights = [name for name in weights if _SHARD.fullmatch(name)] or weights
    else:
        weights = [name for name in weights if name == "model.safetensors"]
    if not weights:
        pickles = any(PurePosixPath(name).suffix in PICKLES for name in names)
        has = "only pickled weights (.bin, .pt)" if pickles else "no model.safetensors"
        raise GladiusError(
            f"{spec.name}: {spec.repo} has {has}, and only safetensors are ever loaded; "
            "choose a repository that has them"
        )
    for needed in ("config.json", "tokenizer.json"):
        if needed not in texts:
            raise GladiusError(
                f"{spec.name}: {spec.repo} has no {needed}; choose a repository that has one"
            )
    return texts + weights


def is_wanted(name: str) -> bool:
    """Whether a file of a repository is of a kind that is fetched: top-level safetensors, configs,
    tokenizers and templates. UsageError for a name that leads out of the folder."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name:
        raise UsageError(f"the repository holds a file named {name!r}; it is not fetched")
    if not _PLAIN.fullmatch(name):
        return False
    return name in _TEXTS or name.endswith(".safetensors")


def file_url(listing: Listing, file: RemoteFile) -> str:
    """Where the file's bytes are, at the listing's commit."""
    return hf_hub_url(listing.repo, file.name, revision=listing.commit)


def fetch_config(spec: ExpertSpec, listing: Listing) -> dict[str, Any]:
    """The repository's config.json. Raises as `list_files` does."""
    file = next(file for file in listing.files if file.name == "config.json")
    try:
        if file.size > _LARGEST_CONFIG:
            raise GladiusError(f"{spec.name}: config.json of {spec.repo} is no config")
        response = get_session().get(
            file_url(listing, file),
            headers=request_headers(),
            timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
        )
        hf_raise_for_status(response)
        config = response.json()
    except (GladiusError, Hiccup):
        raise
    except Exception as error:
        raise told(spec, error, file.name) from error
    return config if isinstance(config, dict) else {}


def request_headers() -> dict[str, str]:
    """The client's headers, with the token where there is one. No compression: ranges and sizes
    must be those of the file."""
    headers = build_hf_headers(token=_token() or False, library_name="gladius")
    return {**headers, "Accept-Encoding": "identity"}


def _token() -> str | None:
    """HF_TOKEN, else the token file. MissingError for one that can't be sent: the transport would
    print it in its complaint."""
    try:
        token = get_token()
    except Exception as error:  # an unreadable file, or a broken single sign-on
        raise MissingError(
            f"the Hub's token can't be read ({type(error).__name__}); log in again: hf auth login"
        ) from None
    if token is not None and not _TOKEN.fullmatch(token):
        raise MissingError(
            "the Hub's token holds signs that no token has; set HF_TOKEN anew, or: hf auth login"
        )
    return token


def told(spec: ExpertSpec, error: Exception, what: str = "") -> Exception:
    """What the Hub's client, its transport or the disk raised, as one line with the remedy.

    A GladiusError, or a Hiccup where another try may help. The text never holds the token, nor an
    address with a query (it may be signed).
    """
    if isinstance(error, GladiusError | Hiccup):
        return error
    place = f"{spec.repo}/{what}" if what else spec.repo
    if isinstance(error, HfHubHTTPError):
        return _refusal(spec, error, place)
    if isinstance(error, HFValidationError):
        return UsageError(f"{spec.name}: {spec.repo!r} is no Hub id; it is written org/model")
    if isinstance(error, OfflineModeIsEnabled):
        return GladiusError(
            f"{spec.name}: HF_HUB_OFFLINE is set, so nothing is fetched; unset it, try again"
        )
    transport = {kind.__name__ for kind in type(error).__mro__}
    why = _plain(error)
    if "ProxyError" in transport:
        return GladiusError(
            f"{spec.name}: the proxy refuses ({why}); correct HTTPS_PROXY, or leave the Hub out "
            "with NO_PROXY=huggingface.co"
        )
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return GladiusError(
            f"{spec.name}: the Hub's certificate is not trusted (a proxy that looks inside?); name "
            "the authority's file in SSL_CERT_FILE"
        )
    if "TimeoutException" in transport:
        return Hiccup(f"no answer in time ({type(error).__name__})")
    if transport & {"UnsupportedProtocol", "LocalProtocolError", "InvalidURL"}:
        return GladiusError(
            f"{spec.name}: {constants.ENDPOINT!r} is no address of a Hub; correct HF_ENDPOINT, or "
            "unset it"
        )
    if "ConnectError" in transport:
        way = " and HTTPS_PROXY" if getproxies() else ""
        why = f"the Hub can't be reached ({why}); check the network{way}"
        return Hiccup(why, unreachable=True)
    if "TransportError" in transport:
        return Hiccup("the connection broke off")
    if isinstance(error, OSError):
        return disk_error(spec, error)
    if isinstance(error, ValueError | TypeError | KeyError):
        return GladiusError(
            f"{spec.name}: {constants.ENDPOINT} answers as no Hub does ({type(error).__name__}); "
            "is there a login page in between? see HF_ENDPOINT"
        )
    return GladiusError(f"{spec.name}: {type(error).__name__} at {place}: {why}; try again later")


def _refusal(spec: ExpertSpec, error: HfHubHTTPError, place: str) -> Exception:
    code = error.response.status_code
    page = f"https://huggingface.co/{spec.repo}"
    known = _token() is not None
    login = "hf auth login, or set HF_TOKEN"
    unseen = isinstance(error, RepositoryNotFoundError) and not isinstance(error, GatedRepoError)
    if isinstance(error, GatedRepoError) or (unseen and spec.gated and not known):
        if known:
            return MissingError(
                f"{spec.name} is gated and your token may not read it ({code}): accept its licence "
                f"at {page} with the token's account, and let the token read gated repositories"
            )
        return MissingError(
            f"{spec.name} is gated ({code}): accept its licence at {page}, then log in: {login}"
        )
    if isinstance(error, RevisionNotFoundError):
        return GladiusError(
            f"{spec.name}: {spec.repo} has no revision {spec.revision!r}; "
            "correct it in gladius.toml"
        )
    if isinstance(error, EntryNotFoundError):
        return GladiusError(f"{spec.name}: the Hub has no {place} (404); download again")
    if isinstance(error, DisabledRepoError):
        return GladiusError(f"{spec.name}: the Hub has disabled {spec.repo}; choose another one")
    if code == 401 and not unseen:
        return MissingError(
            f"{spec.name}: the Hub refuses the token (401); make a new one at "
            f"https://huggingface.co/settings/tokens, then: {login}"
        )
    if unseen or code == 404:
        hint = "correct the name" if known else f"correct the name, or for a private one: {login}"
        return GladiusError(f"{spec.name}: {spec.repo} is not on the Hub ({code}); {hint}")
    if code == 403:
        return MissingError(
            f"{spec.name}: the Hub forbids {place} (403); use a token that may read it: {login}"
        )
    if code == 429:
        wait = _retry_after(error)
        if wait is not None and wait > _PATIENCE:
            return GladiusError(
                f"{spec.name}: the Hub asks to wait {wait / 60:.0f} minutes (429); try again then"
            )
        return Hiccup("the Hub asks for fewer requests (429); a token raises the limit", wait)
    if code in (408, 416) or code >= 500:
        return Hiccup(f"the Hub answers {code}", _retry_after(error))
    return GladiusError(f"{spec.name}: the Hub answers {code} for {place}; try again later")


def _retry_after(error: HfHubHTTPError) -> float | None:
    """Seconds that the answer asks to wait: Retry-After (seconds or a date), or the Hub's own
    `RateLimit: "api";r=0;t=55`."""
    from email.utils import parsedate_to_datetime

    headers = error.response.headers
    text = (headers.get("Retry-After") or "").strip()
    if text.isdigit():
        return float(text)
    if text:
        try:
            when = parsedate_to_datetime(text)
            now = parsedate_to_datetime(headers["Date"])
            return max(0.0, (when - now).total_seconds())
        except (ValueError, TypeError, KeyError):
            return None
    limit = re.search(r"\br=0\s*;\s*t=(\d+)", headers.get("RateLimit") or "")
    return float(limit[1]) if limit else None


def disk_error(spec: ExpertSpec, error: OSError) -> GladiusError:
    """What the disk refused, as one line with the remedy."""
    place = str(error.filename or "the root")
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return GladiusError(
            f"{spec.name}: the disk is full{_free(place)}; make room, then the same command goes on"
        )
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return GladiusError(
            f"{spec.name}: {place} can't be written ({error.strerror}); choose another --root"
        )
    if error.errno == errno.ELOOP:
        return GladiusError(f"{spec.name}: {place} is a link; remove it, then download again")
    return GladiusError(f"{spec.name}: {error.strerror or error} at {place}; mend it, try again")


def _free(place: str) -> str:
    try:
        return f" ({shutil.disk_usage(Path(place).parent).free / 1e9:.2f} GB free)"
    except OSError:
        return ""


def _plain(error: Exception) -> str:
    """The error's first line, without what follows a question mark in an address."""
    text = " ".join(str(error).split()) or type(error).__name__
    return re.sub(r"(https?://[^\s?'\"]*)\?[^\s'\"]*", r"\1", text)[:160]
