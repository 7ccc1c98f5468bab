"""Errors of the Hub, the network, the disk and a repository: one line with the remedy."""

from __future__ import annotations

import errno
import json
import os
import pickle
from pathlib import Path

import pytest
from huggingface_hub import close_session, constants

from engine.errors import UsageError
from engine.experts.hub_errors import disk_error, translate_error
from engine.experts.registry import ExpertSpec
from tests.support.downloading import CONFIG, model_files, safetensors
from tests.support.hub_repo import Fault

SPEC = ExpertSpec(name="x", title="X", source="hub", repo="me/x")
TOKEN = "hf_averysecrettokenindeed"


def one_line(link) -> str:
    reason = link.ended.reason
    assert link.ended.status == "failed" and "\n" not in reason
    assert TOKEN not in " ".join(link.lines) + reason
    return reason


def test_a_gated_model_without_a_token_names_page_and_login_and_exits_with_3(hub, ws, download):
    hub.add("me/x", model_files(), gated=True)
    link = download()
    assert link.ended.exit_code == 3
    reason = one_line(link)
    assert "accept its licence at https://huggingface.co/me/x" in reason
    assert "hf auth login" in reason and "HF_TOKEN" in reason
    assert not hub.file_requests()


def test_a_gated_model_with_a_token_that_may_not_read_it(hub, ws, download, monkeypatch):
    hub.add("me/x", model_files(), gated=True)
    hub.tokens = {TOKEN}
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    link = download()
    assert link.ended.exit_code == 3
    assert "your token may not read it (403)" in one_line(link)
    hub.licensed = {TOKEN}
    assert download().ended.status == "completed"


def test_a_failed_expert_does_not_stop_the_others_and_is_named_in_the_summary(
    hub, repo, ws, download
):
    hub.add("me/gated", model_files(), gated=True)
    ws.user_config.write_text(
        '[experts.x]\nrepo = "me/x"\n[experts.g]\nrepo = "me/gated"\n[experts.n]\nrepo = "me/no"\n'
    )
    link = download("g", "x")
    assert link.ended.exit_code == 3
    assert one_line(link).startswith("1 of 2 failed (g): g is gated")
    assert (ws.experts_dir / "x").is_dir()
    link = download("n", "g", "x")
    assert link.ended.exit_code == 1, "a token does not fix all of it"
    assert one_line(link).startswith("2 of 3 failed (n, g): n: me/no is not on the Hub")


def test_the_token_is_read_from_environment_or_file_and_not_sent_to_the_storage_host(
    hub, ws, download, monkeypatch, tmp_path
):
    hub.add("me/x", model_files(), private=True)
    hub.tokens = {TOKEN, "hf_other"}
    assert "not on the Hub (401)" in one_line(download())
    (tmp_path / "token").write_text("hf_other\n")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    assert download().ended.status == "completed"
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert download(force=True).ended.status == "completed"
    sent = [headers.get("authorization", "") for _, _, headers in hub.requests]
    sent += [headers.get("Authorization", "") for _, _, headers in hub.requests]
    assert {"Bearer hf_other", f"Bearer {TOKEN}"} <= set(sent)
    to_store = [h for _, path, h in hub.requests if "signature=" in path]
    assert to_store and not any(key.lower() == "authorization" for h in to_store for key in h)


@pytest.mark.parametrize("token", ["hf_a b", "hf_ä", "hf_a\x00b", "hf_a\nb"])
def test_an_invalid_token_is_rejected_without_being_printed(
    hub, repo, ws, download, monkeypatch, tmp_path, token
):
    (tmp_path / "token").write_text(token)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    link = download()
    if "\n" in token:  # the client removes newlines; the Hub then rejects the token
        assert "rejects the token (401)" in one_line(link)
    else:
        assert "has invalid characters" in one_line(link)
        assert not hub.requests
    assert token not in one_line(link) and link.ended.exit_code == 3


def test_a_rejected_token_names_the_page_to_create_one(hub, repo, ws, download, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    link = download()
    assert link.ended.exit_code == 3
    assert "rejects the token (401)" in one_line(link) and "settings/tokens" in one_line(link)


@pytest.mark.parametrize(
    ("table", "fault", "message"),
    [
        ('repo = "me/none"', None, "me/none is not on the Hub (401); correct the name"),
        ('repo = "me/x"\nrevision = "v9"', None, "has no revision 'v9'; correct it in"),
        ('repo = "me/x"', Fault(status=403), "forbids access to me/x (403)"),
        ('repo = "me/x"', Fault(status=418), "answers 418 for me/x"),
        ('repo = "me/x"', Fault(status=200), "does not answer like a Hub (JSONDecodeError)"),
        ('repo = "me/x"', Fault(status=503, times=9), "answers 503; try again later"),
        ('repo = "me/x"', Fault(status=429, times=9), "rate limit is reached (429)"),
    ],
)
def test_an_http_error_is_one_line_with_the_remedy(hub, repo, ws, download, table, fault, message):
    ws.user_config.write_text(f"[experts.x]\n{table}\n")
    hub.faults = [fault] if fault else []
    assert message in one_line(download())


def test_without_network_the_reason_is_the_unreachable_hub(hub, ws, download, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "the Hub can't be reached" in one_line(download())


def test_without_network_only_the_first_expert_is_retried(hub, ws, download, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    link = download("qwen", "phi", "x")
    reason = one_line(link)
    assert reason.startswith("3 of 3 failed (qwen, phi, x): the Hub can't be reached at http")
    assert reason.count("can't be reached") == 1
    assert sum("retrying in" in line for line in link.lines) == 2


@pytest.mark.parametrize("endpoint", ["nonsense", "http://", "ftp://x"])
def test_an_invalid_endpoint_is_named(hub, ws, download, monkeypatch, endpoint):
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    assert "is not a valid URL of a Hub; correct HF_ENDPOINT" in one_line(download())


def through_proxy(monkeypatch, proxy: str) -> None:
    for name in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(name, proxy)
    monkeypatch.setattr(constants, "ENDPOINT", "https://hub.invalid")
    close_session()


def test_a_proxy_that_rejects_the_connection_is_named(hub, ws, download, monkeypatch):
    through_proxy(monkeypatch, hub.url)  # the test server does not implement CONNECT
    reason = one_line(download())
    assert "the proxy refuses" in reason and "HTTPS_PROXY" in reason and "NO_PROXY" in reason


def test_an_unreachable_proxy_is_named(hub, ws, download, monkeypatch):
    through_proxy(monkeypatch, "http://127.0.0.1:9")
    assert "check the network and HTTPS_PROXY" in one_line(download())


def test_offline_mode_is_named(hub, repo, ws, download, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in one_line(download())


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EROFS, "can't be written (Read-only file system); choose another --root"),
        (errno.EACCES, "can't be written"),
        (errno.ELOOP, "is a symbolic link; remove it"),
        (errno.EIO, "fix the disk, then try again"),
    ],
)
def test_a_disk_error_is_one_line(number, message):
    text = str(disk_error(SPEC, OSError(number, os.strerror(number), "/somewhere/part")))
    assert text.startswith("x: ") and message in text and "\n" not in text


def test_a_full_disk_without_a_path_gives_no_free_space():
    text = str(disk_error(SPEC, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))))
    assert text == "x: the disk is full; free space, then run the same command to resume"


def test_the_query_of_a_url_is_never_shown():
    text = str(
        translate_error(SPEC, RuntimeError("bad answer of https://store/x?signature=secret of it"))
    )
    assert "https://store/x" in text and "secret" not in text


# Pickles and damaged models


class _Payload:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_a_repository_with_only_pickles_is_rejected_before_the_first_byte(hub, ws, download):
    files = model_files()
    del files["model.safetensors"]
    hub.add("me/x", files)
    assert "only pickled weights (.bin, .pt)" in one_line(download())
    assert not hub.file_requests()


@pytest.mark.parametrize("kind", ["pickle", "zip"])
def test_a_pickle_named_safetensors_is_rejected_without_running_it(
    hub, ws, download, tmp_path, kind
):
    ran = tmp_path / "ran"
    content = pickle.dumps(_Payload(ran))
    if kind == "zip":
        import io

        import torch

        buffer = io.BytesIO()
        torch.save({"w": torch.zeros(3)}, buffer)
        content = buffer.getvalue()
    hub.add("me/x", model_files() | {"model.safetensors": content})
    assert "model.safetensors is a pickle" in one_line(download())
    assert not ran.exists()
    assert not (ws.experts_dir / "x").exists() and not (ws.downloads_dir / "x").exists()


def test_a_shard_of_the_index_that_the_hub_lacks_is_named(hub, ws, download):
    index = {"weight_map": {"w": "model-00001-of-00002.safetensors", "v": "model-00002-of-00002"}}
    files = model_files() | {
        "model.safetensors.index.json": json.dumps(index).encode(),
        "model-00001-of-00002.safetensors": safetensors(100),
    }
    hub.add("me/x", files)
    assert "model-00002-of-00002 is missing" in one_line(download())
    assert not (ws.experts_dir / "x").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", b'{"model_type": "nobodys"}', "no language model of type 'nobodys'"),
        ("config.json", b'{"model_type": "vit"}', "no language model of type 'vit'"),
        ("config.json", b"[]", "config.json can't be read"),
        ("tokenizer.json", b'{"model": {}}', "is not a readable tokenizer"),
        ("model.safetensors", safetensors(100)[:-1], "model.safetensors has 171 of 172 bytes"),
    ],
    ids=["unknown config", "another kind", "no config", "tokenizer", "weights"],
)
def test_a_model_that_cannot_be_loaded_is_not_installed(hub, ws, download, name, content, message):
    hub.add("me/x", model_files(20_000) | {name: content})
    assert message in one_line(download())
    assert not (ws.experts_dir / "x").exists()


def test_a_model_that_needs_its_own_code_is_rejected_and_the_code_not_downloaded(hub, ws, download):
    config = json.loads(CONFIG) | {"model_type": "own", "auto_map": {"AutoConfig": "evil.Config"}}
    hub.add("me/x", model_files() | {"config.json": json.dumps(config).encode()})
    assert "has no language model of type 'own'" in one_line(download())
    assert not any("evil.py" in path for _, path, _ in hub.requests)


def test_an_unknown_name_is_a_usage_error(ws, download):
    with pytest.raises(UsageError, match="unknown expert 'y'; known: qwen"):
        download("y")
