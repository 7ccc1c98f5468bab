"""A run's seal: versions, settings and text of a resumed run are compared with it."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from engine.checkpoint.seal import Seal, decode_seal, read_seal
from engine.config import RunConfig
from engine.distill.jobs.sealing import Sealing
from engine.errors import GladiusError, UsageError
from engine.events import LogLine
from engine.experts.registry import Manifest, ManifestFile
from engine.run.job import JobContext
from engine.workspace import Workspace
from tests.support.small_run import KeepingLink, experts_of, make_config, make_root


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    workspace = make_root(tmp_path_factory.mktemp("root"))
    tokenizer = workspace.checkpoints_dir / "tokenizer"
    tokenizer.mkdir()
    (tokenizer / "tokenizer.json").write_text("{}")
    return workspace


@pytest.fixture(scope="module")
def config(root: Workspace) -> RunConfig:
    return make_config(root)


def sealing(root: Workspace, config: RunConfig, sealed: Seal | None) -> tuple[Sealing, KeepingLink]:
    link = KeepingLink()
    ctx = JobContext(link)
    return Sealing(root, config, experts_of(root, config), ctx, "run", sealed), link


@pytest.fixture(scope="module")
def sealed(root: Workspace, config: RunConfig) -> Seal:
    new, _ = sealing(root, config, None)
    new.begin()
    seal = decode_seal(new.complete("vocabulary", {}))
    assert read_seal(root.checkpoints_dir / "seal.json") == seal
    return seal


def test_the_seal_names_what_later_steps_depend_on(root: Workspace, sealed: Seal) -> None:
    assert list(sealed.text) == [str(root.root / "text.jsonl")]
    assert set(sealed.experts["tiny"].files) >= {"model.safetensors", "tokenizer.json"}
    assert sealed.experts["tiny"].settings["end_tokens"] == ["<|im_end|>"]
    assert list(sealed.tokenizer) == ["tokenizer.json"]
    assert {"torch", "transformers", "tokenizers"} <= set(sealed.versions)


def test_an_unchanged_run_agrees_with_its_seal(root, config, sealed) -> None:
    resumed, link = sealing(root, config, sealed)
    resumed.begin()
    assert decode_seal(resumed.complete("vocabulary", {})) == sealed
    assert link.of(LogLine) == []


def test_other_versions_of_libraries_are_a_warning(root, config, sealed) -> None:
    other = msgspec.structs.replace(sealed, versions={**sealed.versions, "torch": "1.0"})
    resumed, link = sealing(root, config, other)
    resumed.begin()
    (line,) = link.of(LogLine)
    assert line.level == "warning" and "the run began with torch 1.0" in line.text


def test_an_added_file_of_text_is_named(root, config, sealed, tmp_path: Path) -> None:
    files = [*config.data.files, str(tmp_path / "more.jsonl")]
    (tmp_path / "more.jsonl").write_text('{"text": "more"}\n')
    data = msgspec.structs.replace(config.data, files=files)
    resumed, _ = sealing(root, msgspec.structs.replace(config, data=data), sealed)
    resumed.begin()
    with pytest.raises(UsageError, match=r"more\.jsonl was added.*--fresh"):
        resumed.check_text()


def test_what_comes_out_differently_is_refused(root, config, sealed) -> None:
    other = msgspec.structs.replace(sealed, probes={"tiny": "another digest"})
    resumed, _ = sealing(root, config, other)
    resumed.begin()
    with pytest.raises(UsageError, match="the probes of expert tiny can't be restored"):
        resumed.compare("probes", "tiny", "a digest", "the probes of expert tiny")


def test_a_downloaded_expert_is_compared_with_its_download(root, config) -> None:
    """The size and time of a file with a flipped bit are those that were verified."""
    folder = root.root / "tiny"
    files = {
        path.name: ManifestFile(size=path.stat().st_size, sha256="0" * 64)
        for path in folder.glob("*.safetensors")
    }
    (folder / "manifest.json").write_bytes(msgspec.json.encode(Manifest(files=files)))
    try:
        new, _ = sealing(root, config, None)
        new.begin()
        with pytest.raises(GladiusError, match="is damaged"):
            new.check_expert(experts_of(root, config)[0])
    finally:
        (folder / "manifest.json").unlink()
