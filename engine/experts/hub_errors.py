"""Read the Hub token, and translate errors of the Hub, the network and the disk to one line with a
remedy.
"""

from __future__ import annotations

import errno
import re
import shutil
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

from huggingface_hub import constants, get_token
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

from engine.errors import GladiusError, MissingError, UsageError
from engine.experts.registry import ExpertSpec
from engine.units import size

_TOKEN = re.compile(r"[!-~]+")
_LOGIN = "hf auth login, or set HF_TOKEN"
_MAX_RETRY_AFTER = 3600.0
"""Seconds: with a longer Retry-After the download fails at once."""


class TransientError(Exception):
    """The Hub or the network failed temporarily; a retry may succeed."""

    def __init__(
        self, reason: str, wait: float | None = None, *, unreachable: bool = False
    ) -> None:
        super().__init__(reason)
        self.wait = wait
        """Seconds to wait before the retry, from the Hub (Retry-After); None if not given."""
        self.unreachable = unreachable
        """Whether no connection could be made: other requests will fail too."""


def hub_token() -> str | None:
    """HF_TOKEN, else the content of the token file; None if there is neither.

    Raises MissingError for a token that is no valid header value: the HTTP client would print it
    in its error message.
    """
    try:
        token = get_token()
    except Exception as error:  # an unreadable file, or a broken single sign-on
        raise MissingError(
            f"the Hub token can't be read ({type(error).__name__}); log in again: hf auth login"
        ) from None
    if token is not None and not _TOKEN.fullmatch(token):
        raise MissingError(
            "the Hub token has invalid characters; set HF_TOKEN again, or: hf auth login"
        )
    return token


def translate_error(spec: ExpertSpec, error: Exception, what: str = "") -> Exception:
    """An error of the Hub client, its HTTP transport or the disk as one line with the remedy.

    Returns a TransientError if a retry may help, else a GladiusError. `what` is the requested
    file. The text never contains the token or the query of a URL (it may be a signature).
    """
    if isinstance(error, GladiusError | TransientError):
        return error
    place = f"{spec.repo}/{what}" if what else spec.repo
    if isinstance(error, HfHubHTTPError):
        return _http_error(spec, error, place)
    if isinstance(error, HFValidationError):
        return UsageError(f"{spec.name}: {spec.repo!r} is not a Hub id; write it as org/model")
    if isinstance(error, OfflineModeIsEnabled):
        return GladiusError(
            f"{spec.name}: HF_HUB_OFFLINE is set, so nothing is downloaded; unset it and try again"
        )
    # httpx and its successors are recognised by class names, without importing them.
    transport = {kind.__name__ for kind in type(error).__mro__}
    why = _without_query(error)
    if "ProxyError" in transport:
        return GladiusError(
            f"{spec.name}: the proxy refuses the connection ({why}); correct HTTPS_PROXY, or "
            "bypass it with NO_PROXY=huggingface.co"
        )
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return GladiusError(
            f"{spec.name}: the Hub's certificate is not trusted (is there a TLS-inspecting "
            "proxy?); set SSL_CERT_FILE to its CA file"
        )
    if "TimeoutException" in transport:
        return TransientError(f"no answer in time ({type(error).__name__})")
    if transport & {"UnsupportedProtocol", "LocalProtocolError", "InvalidURL"}:
        return GladiusError(
            f"{spec.name}: {constants.ENDPOINT!r} is not a valid URL of a Hub; correct HF_ENDPOINT "
            "or unset it"
        )
    if "ConnectError" in transport:
        proxy = " and HTTPS_PROXY" if getproxies() else ""
        why = f"the Hub can't be reached at {constants.ENDPOINT} ({why}); check the network{proxy}"
        return TransientError(why, unreachable=True)
    if "TransportError" in transport:
        return TransientError("the connection was lost")
    if isinstance(error, OSError):
        return disk_error(spec, error)
    if isinstance(error, ValueError | TypeError | KeyError):
        return GladiusError(
            f"{spec.name}: {constants.ENDPOINT} does not answer like a Hub "
            f"({type(error).__name__}); check HF_ENDPOINT, and for a login page of the network"
        )
    return GladiusError(f"{spec.name}: {type(error).__name__} at {place}: {why}; try again later")


def _http_error(spec: ExpertSpec, error: HfHubHTTPError, place: str) -> Exception:
    """The error for an HTTP status of the Hub; `place` names the repository or file."""
    code = error.response.status_code
    if code in (401, 403) and urlsplit(str(error.response.url)).netloc != _hub_host():
        # Large files are stored on another host with signed URLs; a retry gets a new signature.
        return TransientError(f"the Hub's storage of large files answers {code}")
    has_token = hub_token() is not None
    not_found = isinstance(error, RepositoryNotFoundError) and not isinstance(error, GatedRepoError)
    if isinstance(error, GatedRepoError) or (not_found and spec.gated and not has_token):
        return _gated_error(spec, code, has_token)
    if isinstance(error, RevisionNotFoundError):
        return GladiusError(
            f"{spec.name}: {spec.repo} has no revision {spec.revision!r}; "
            "correct it in gladius.toml"
        )
    if isinstance(error, EntryNotFoundError):
        return GladiusError(f"{spec.name}: the Hub has no {place} (404); download again")
    if isinstance(error, DisabledRepoError):
        return GladiusError(f"{spec.name}: the Hub has disabled {spec.repo}; choose another one")
    if code == 401 and not not_found:
        return MissingError(
            f"{spec.name}: the Hub rejects the token (401); create a new one at "
            f"https://huggingface.co/settings/tokens, then: {_LOGIN}"
        )
    if not_found or code == 404:
        hint = "correct the name"
        if not has_token:
            hint += f", or log in for a private repository: {_LOGIN}"
        return GladiusError(f"{spec.name}: {spec.repo} is not on the Hub ({code}); {hint}")
    if code == 403:
        return MissingError(
            f"{spec.name}: the Hub forbids access to {place} (403); use a token that may read it: "
            f"{_LOGIN}"
        )
    if code == 429:
        wait = _retry_after(error)
        if wait is not None and wait > _MAX_RETRY_AFTER:
            return GladiusError(
                f"{spec.name}: the Hub's rate limit is reached (429); try again in "
                f"{wait / 60:.0f} minutes"
            )
        return TransientError("the Hub's rate limit is reached (429); a token raises it", wait)
    if code in (408, 416) or code >= 500:
        return TransientError(f"the Hub answers {code}", _retry_after(error))
    return GladiusError(f"{spec.name}: the Hub answers {code} for {place}; try again later")


def _gated_error(spec: ExpertSpec, code: int, has_token: bool) -> MissingError:
    page = f"https://huggingface.co/{spec.repo}"
    if has_token:
        return MissingError(
            f"{spec.name} is gated and your token may not read it ({code}): accept its licence at "
            f"{page} with the token's account, and allow the token to read gated repositories"
        )
    return MissingError(
        f"{spec.name} is gated ({code}): accept its licence at {page}, then log in: {_LOGIN}"
    )


def _hub_host() -> str:
    return urlsplit(constants.ENDPOINT).netloc


def _retry_after(error: HfHubHTTPError) -> float | None:
    """Seconds to wait, from the header Retry-After (seconds or a date) or the Hub's
    `RateLimit: "api";r=0;t=55`; None if there is neither."""
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
    """An error of the file system as one line with the remedy."""
    place = str(error.filename or "the root")
    free = _free(place) if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return GladiusError(
            f"{spec.name}: the disk is full{free}; free space, then run the same command to resume"
        )
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return GladiusError(
            f"{spec.name}: {place} can't be written ({error.strerror}); choose another --root"
        )
    if error.errno == errno.ELOOP:
        return GladiusError(
            f"{spec.name}: {place} is a symbolic link; remove it, then download again"
        )
    return GladiusError(
        f"{spec.name}: {error.strerror or error} at {place}; fix the disk, then try again"
    )


def _free(place: str) -> str:
    try:
        return f" ({size(shutil.disk_usage(Path(place).parent).free)} free)"
    except OSError:
        return ""


def _without_query(error: Exception) -> str:
    """The error's message on one line, without the query part of URLs."""
    text = " ".join(str(error).split()) or type(error).__name__
    return re.sub(r"(https?://[^\s?'\"]*)\?[^\s'\"]*", r"\1", text)[:160]
