"""Owns the Hub's token, and what a refusal means, of the Hub, of the way to it or of the disk: one
line with the remedy, or a hiccup after which another try may help.
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
_PATIENCE = 3600.0
"""The longest Retry-After that is waited for, in seconds."""


class Hiccup(Exception):
    """The Hub, or the way to it, fails for the moment; the same may go well a little later."""

    def __init__(self, why: str, wait: float | None = None, *, unreachable: bool = False) -> None:
        super().__init__(why)
        self.wait = wait
        """Seconds that the Hub asks to wait (Retry-After); None: it doesn't say."""
        self.unreachable = unreachable
        """Whether there was no connection at all: then other questions have none either."""


def hub_token() -> str | None:
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
        why = f"the Hub can't be reached at {constants.ENDPOINT} ({why}); check the network{way}"
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
    if code in (401, 403) and urlsplit(str(error.response.url)).netloc != _hub_host():
        # Where large files lie it is the address that permits, and each try gets a new one.
        return Hiccup(f"the store of the Hub's large files answers {code}")
    page = f"https://huggingface.co/{spec.repo}"
    known = hub_token() is not None
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


def _hub_host() -> str:
    return urlsplit(constants.ENDPOINT).netloc


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
    free = _free(place) if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return GladiusError(
            f"{spec.name}: the disk is full{free}; make room, then the same command goes on"
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
        return f" ({size(shutil.disk_usage(Path(place).parent).free)} free)"
    except OSError:
        return ""


def _plain(error: Exception) -> str:
    """The error's first line, without what follows a question mark in an address."""
    text = " ".join(str(error).split()) or type(error).__name__
    return re.sub(r"(https?://[^\s?'\"]*)\?[^\s'\"]*", r"\1", text)[:160]
