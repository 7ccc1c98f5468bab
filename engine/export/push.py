"""Owns the way to the Hub: who may write there, what goes, and one line for whatever it answers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import disable_progress_bars

from engine.errors import GladiusError, MissingError, UsageError
from engine.experts.hub_errors import hub_token

_MODEL_FILES = (
    "README.md",
    "config.json",
    "generation_config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "gladius.json",
)
"""Not validation.json: it names folders of this machine, and the card tells its rows."""


@dataclass(frozen=True)
class Push:
    """Where to."""

    repo: str
    private: bool = False


def check_access(repo: str) -> None:
    """Make sure, before minutes of work, that somebody is signed in and the name is a name."""
    if repo.count("/") != 1 or not all(repo.split("/")):
        raise UsageError(f"--push {repo}: give an owner and a name, such as me/my-student")
    hub_token()  # one that can't be sent is told of here: the transport would print it
    with _told(repo):
        HfApi().whoami()


def push_files(folder: Path, extra: Sequence[Path]) -> dict[str, Path]:
    """What goes to the Hub, by its path there: the model's own files and `extra`."""
    files = {path.name: path for pattern in _MODEL_FILES for path in sorted(folder.glob(pattern))}
    # A card that the user wrote goes too; ours then lies beside it under another name.
    files.update({path.name: path for path in extra})
    return files


def push(where: Push, folder: Path, extra: Sequence[Path], tick: Callable[[str], None]) -> str:
    """Upload the model and what was made of it in one commit; the repository's page.

    Makes the repository where there is none. Raises GladiusError in one line, and what `tick` does.
    """
    api = HfApi()
    files = push_files(folder, extra)
    disable_progress_bars()
    url = _ticking(
        where.repo,
        lambda: api.create_repo(where.repo, private=where.private, exist_ok=True),
        lambda: tick("asking the Hub"),
    )
    operations = [
        CommitOperationAdd(path_in_repo=name, path_or_fileobj=path) for name, path in files.items()
    ]
    _ticking(
        where.repo,
        lambda: api.create_commit(
            where.repo, operations, commit_message="A student distilled with GLADIUS"
        ),
        lambda: tick(f"uploading {len(files)} files"),
    )
    return str(url)


def _ticking(repo: str, work: Callable[[], Any], tick: Callable[[], None]) -> Any:
    """The result of `work`, done in a thread, while `tick` is called twice a second.

    When `tick` raises, the thread is left behind: it ends with the process.
    """
    outcome: dict[str, Any] = {}

    def run() -> None:
        try:
            with _told(repo):
                outcome["result"] = work()
        except BaseException as error:
            outcome["error"] = error

    thread = threading.Thread(target=run, name="upload", daemon=True)
    thread.start()
    while thread.is_alive():
        tick()
        thread.join(0.5)
    if "error" in outcome:
        raise outcome["error"]
    return outcome["result"]


@contextmanager
def _told(repo: str) -> Iterator[None]:
    """Turn what the Hub's client raises into one line with the remedy (never with the token)."""
    try:
        yield
    except GladiusError:
        raise
    except Exception as error:
        # Its own, its transport's and the disk's: they have no common base.
        raise _complaint(repo, error) from error


def _complaint(repo: str, error: Exception) -> GladiusError:
    sign_in = "sign in with `hf auth login`, or give a token that may write in HF_TOKEN"
    if isinstance(error, LocalTokenNotFoundError):
        return MissingError(f"nobody is signed in to the Hub: {sign_in}")
    if isinstance(error, HFValidationError):
        return UsageError(f"{repo!r} is no name for a repository; such as me/my-student")
    if isinstance(error, OfflineModeIsEnabled):
        return GladiusError("the Hub is switched off here (HF_HUB_OFFLINE); unset it")
    if isinstance(error, HfHubHTTPError):
        code = error.response.status_code
        if code in (401, 403) or isinstance(error, RepositoryNotFoundError):
            return MissingError(
                f"the Hub lets nobody write {repo} with this token ({code}): {sign_in}"
            )
        return GladiusError(f"the Hub answered {code} for {repo}; try again later")
    if isinstance(error, ValueError) and "README.md" in str(error):
        why = " ".join(str(error).split())[:200]
        return GladiusError(f"the Hub refuses the model card ({why}); correct its header")
    why = " ".join(f"{type(error).__name__}: {error}".split()).partition("?")[0][:200]
    return GladiusError(f"the Hub can't be reached ({why}); check the network, then try again")
