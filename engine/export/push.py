"""Upload a model to the Hugging Face Hub: check access, choose the files, explain errors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

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
from engine.run.job import JobContext

_Result = TypeVar("_Result")
_COMMIT_MESSAGE = "A student distilled with GLADIUS"

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
"""Not validation.json: it contains local paths, and the model card has its results."""


@dataclass(frozen=True)
class PushTarget:
    """The repository to upload to."""

    repo: str
    private: bool = False
    """Whether a repository that does not exist yet is created as private."""


def check_access(repo: str) -> None:
    """Check the repository's name and the token before minutes of work.

    Raises UsageError for a bad name, MissingError without a valid token, GladiusError when the Hub
    cannot be reached.
    """
    if repo.count("/") != 1 or not all(repo.split("/")):
        raise UsageError(f"--push {repo}: give an owner and a name, such as me/my-student")
    hub_token()  # rejects a malformed token, which the HTTP client would print
    with _explained(repo):
        HfApi().whoami()


def push_files(folder: Path, extra: Sequence[Path]) -> dict[str, Path]:
    """The files to upload by their path in the repository: the model's own files and `extra`."""
    files = {path.name: path for pattern in _MODEL_FILES for path in sorted(folder.glob(pattern))}
    # A model card written by the user is uploaded too; ours then has another name.
    files.update({path.name: path for path in extra})
    return files


def push(ctx: JobContext, target: PushTarget, folder: Path, extra: Sequence[Path]) -> str:
    """Upload the model and the `extra` files in one commit; returns the repository's URL.

    Creates the repository if needed. Raises GladiusError with a one-line message, and JobStopped.
    """
    api = HfApi()
    files = push_files(folder, extra)
    operations = [
        CommitOperationAdd(path_in_repo=name, path_or_fileobj=path) for name, path in files.items()
    ]

    def create_repo() -> str:
        with _explained(target.repo):
            return str(api.create_repo(target.repo, private=target.private, exist_ok=True))

    def create_commit() -> None:
        with _explained(target.repo):
            api.create_commit(target.repo, operations, commit_message=_COMMIT_MESSAGE)

    disable_progress_bars()
    url = _run(ctx, create_repo, "contacting the Hub")
    _run(ctx, create_commit, f"uploading {len(files)} files")
    return url


def _run(ctx: JobContext, work: Callable[[], _Result], label: str) -> _Result:
    """Run `work` in a thread and report it; stopping the job abandons the thread."""
    ctx.progress(f"export:{label}", label, 0)
    return ctx.run_in_thread(work, label)


@contextmanager
def _explained(repo: str) -> Iterator[None]:
    """Turn any exception of the Hub's client into a one-line GladiusError without the token."""
    try:
        yield
    except GladiusError:
        raise
    except Exception as error:
        # Exceptions of the client, of its HTTP library and of the disk have no common base.
        raise _explain(repo, error) from error


def _explain(repo: str, error: Exception) -> GladiusError:
    sign_in = "sign in with `hf auth login`, or set HF_TOKEN to a token with write access"
    if isinstance(error, LocalTokenNotFoundError):
        return MissingError(f"not signed in to the Hub: {sign_in}")
    if isinstance(error, HFValidationError):
        return UsageError(f"{repo!r} is not a valid repository name; use one such as me/my-student")
    if isinstance(error, OfflineModeIsEnabled):
        return GladiusError("HF_HUB_OFFLINE is set, so the Hub cannot be reached; unset it")
    if isinstance(error, HfHubHTTPError):
        code = error.response.status_code
        if code in (401, 403) or isinstance(error, RepositoryNotFoundError):
            return MissingError(
                f"this token has no write access to {repo} (HTTP {code}): {sign_in}"
            )
        return GladiusError(f"the Hub answered HTTP {code} for {repo}; try again later")
    if isinstance(error, ValueError) and "README.md" in str(error):
        reason = " ".join(str(error).split())[:200]
        return GladiusError(
            f"the Hub rejected the model card ({reason}); correct the metadata in README.md"
        )
    reason = " ".join(f"{type(error).__name__}: {error}".split()).partition("?")[0][:200]
    return GladiusError(f"the Hub cannot be reached ({reason}); check the network, then try again")
