"""A checkpoint's manifest, and the check of every byte that it speaks of."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.checkpoint.manifest import Broken, encode_manifest, read_manifest, verify
from engine.checkpoint.store import CheckpointStore
from tests.support.checkpoint_faults import CONFIG, make_state


def nothing() -> None:
    """A beat."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = CheckpointStore(tmp_path_factory.mktemp("checkpoints"))
    return store.save(make_state(3), **CONFIG).path


def test_a_manifest_is_plain_json_and_reads_back(folder: Path) -> None:
    manifest = read_manifest(folder)
    plain = msgspec.json.decode((folder / "manifest.json").read_bytes())
    assert plain["step"] == 3 and len(plain["sha256"]) == 64
    assert plain["files"]["model.safetensors"]["bytes"] == manifest.files["model.safetensors"].bytes
    assert verify(folder, nothing, step=3) == manifest


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_every_single_flipped_bit_is_found(folder: Path, data: st.DataObject) -> None:
    path = folder / data.draw(st.sampled_from(sorted(p.name for p in folder.iterdir())))
    whole = path.read_bytes()
    place = data.draw(st.integers(0, len(whole) - 1))
    flipped = bytearray(whole)
    flipped[place] ^= 1 << data.draw(st.integers(0, 7))
    try:
        path.write_bytes(flipped)
        with pytest.raises(Broken, match=path.name):
            verify(folder, nothing)
    finally:
        path.write_bytes(whole)
    verify(folder, nothing)


@pytest.mark.parametrize("length", [0, 1, 20, 76, 77, 78, 200])
def test_a_manifest_cut_short_is_found(folder: Path, tmp_path: Path, length: int) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "manifest.json").write_bytes((folder / "manifest.json").read_bytes()[:length])
    with pytest.raises(Broken):
        read_manifest(copy)


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "pytorch_model.bin"])
def test_a_manifest_that_names_other_files_is_refused(
    folder: Path, tmp_path: Path, name: str
) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    manifest = read_manifest(folder)
    files = {**manifest.files, name: manifest.files["model.safetensors"]}
    other = msgspec.structs.replace(manifest, files=files)
    (copy / "manifest.json").write_bytes(encode_manifest(other))
    with pytest.raises(Broken, match="another version"):
        verify(copy, nothing)


def test_a_manifest_of_a_later_format_is_refused(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    later = msgspec.structs.replace(read_manifest(folder), format=2)
    (copy / "manifest.json").write_bytes(encode_manifest(later))
    with pytest.raises(Broken, match="another version"):
        read_manifest(copy)
