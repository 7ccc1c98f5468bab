"""What the Hub, the network and the repository refuse: one line with the remedy, and no harm."""

from __future__ import annotations

import errno
import json
import os
import pickle
from pathlib import Path

import pytest
from huggingface_hub import close_session, constants

from engine.errors import UsageError
from engine.experts.refusals import disk_error, told
from engine.experts.registry import ExpertSpec
from tests.support.downloading import CONFIG, model_files, safetensors
from tests.support.hub_server import Fault

SPEC = ExpertSpec(name="x", title="X", source="hub", repo="me/x")
TOKEN = "hf_averysecrettokenindeed"


def one_line(link) -> str:
    reason = link.ended.reason
    assert link.ended.status == "failed" and "\n" not in reason
    assert TOKEN not in " ".join(link.lines) + reason
    return reason


def test_a_gated_model_without_a_token_names_the_page_and_the_login_and_ends_with_3(
    hub, ws, download
):
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


def test_the_others_still_come_and_the_summary_says_who_failed(hub, repo, ws, download):
    hub.add("me/gated", model_files(), gated=True)
    ws.user_config.write_text(
        '[experts.x]\nrepo = "me/x"\n[experts.g]\nrepo = "me/gated"\n[experts.n]\nrepo = "me/no"\n'
    )
    link = download("g", "x")
    assert link.ended.exit_code == 3
    assert one_line(link).startswith("1 of 2 failed (g): g is gated")
    assert (ws.experts_dir / "x").is_dir()
    link = download("n", "g", "x")
    assert link.ended.exit_code == 1, "not all of it can be put right with a token"
    assert one_line(link).startswith("2 of 3 failed (n, g): n: me/no is not on the Hub")


def test_the_token_comes_from_the_environment_else_from_the_file_and_not_to_the_store(
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
def test_a_token_that_can_not_be_sent_is_refused_without_being_printed(
    hub, repo, ws, download, monkeypatch, tmp_path, token
):
    (tmp_path / "token").write_text(token)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    link = download()
    if "\n" in token:  # the client takes newlines out by itself, and the Hub knows no such token
        assert "refuses the token (401)" in one_line(link)
    else:
        assert "holds signs that no token has" in one_line(link)
        assert not hub.requests
    assert token not in one_line(link) and link.ended.exit_code == 3


def test_an_invalid_token_is_said_with_the_page_where_to_make_one(
    hub, repo, ws, download, monkeypatch
):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    link = download()
    assert link.ended.exit_code == 3
    assert "refuses the token (401)" in one_line(link) and "settings/tokens" in one_line(link)


@pytest.mark.parametrize(
    ("table", "fault", "said"),
    [
        ('repo = "me/none"', None, "me/none is not on the Hub (401); correct the name"),
        ('repo = "me/x"\nrevision = "v9"', None, "has no revision 'v9'; correct it in"),
        ('repo = "me/x"', Fault(status=403), "forbids me/x (403)"),
        ('repo = "me/x"', Fault(status=418), "answers 418 for me/x"),
        ('repo = "me/x"', Fault(status=200), "answers as no Hub does (JSONDecodeError)"),
        ('repo = "me/x"', Fault(status=503, times=9), "answers 503; try again later"),
        ('repo = "me/x"', Fault(status=429, times=9), "asks for fewer requests (429)"),
    ],
)
def test_a_refusal_is_one_line_with_the_remedy(hub, repo, ws, download, table, fault, said):
    ws.user_config.write_text(f"[experts.x]\n{table}\n")
    hub.faults = [fault] if fault else []
    assert said in one_line(download())


def test_without_a_network_the_reason_says_so(hub, ws, download, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "the Hub can't be reached" in one_line(download())


def test_without_a_network_not_every_expert_is_waited_for(hub, ws, download, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    link = download("qwen", "phi", "x")
    reason = one_line(link)
    assert reason.startswith("3 of 3 failed (qwen, phi, x): the Hub can't be reached at http")
    assert reason.count("can't be reached") == 1
    assert sum("again in" in line for line in link.lines) == 2


@pytest.mark.parametrize("endpoint", ["nonsense", "http://", "ftp://x"])
def test_an_endpoint_that_is_no_address_is_named(hub, ws, download, monkeypatch, endpoint):
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    assert "is no address of a Hub; correct HF_ENDPOINT" in one_line(download())


def through_proxy(monkeypatch, proxy: str) -> None:
    for name in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(name, proxy)
    monkeypatch.setattr(constants, "ENDPOINT", "https://hub.invalid")
    close_session()


def test_a_proxy_that_refuses_is_named(hub, ws, download, monkeypatch):
    through_proxy(monkeypatch, hub.url)  # our Hub knows no CONNECT
    reason = one_line(download())
    assert "the proxy refuses" in reason and "HTTPS_PROXY" in reason and "NO_PROXY" in reason


def test_a_proxy_that_is_not_there_is_named(hub, ws, download, monkeypatch):
    through_proxy(monkeypatch, "http://127.0.0.1:9")
    assert "check the network and HTTPS_PROXY" in one_line(download())


def test_offline_mode_is_named(hub, repo, ws, download, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in one_line(download())


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EROFS, "can't be written (Read-only file system); choose another --root"),
        (errno.EACCES, "can't be written"),
        (errno.ELOOP, "is a link; remove it"),
        (errno.EIO, "mend it, try again"),
    ],
)
def test_what_the_disk_refuses_is_one_line(number, said):
    text = str(disk_error(SPEC, OSError(number, os.strerror(number), "/somewhere/part")))
    assert text.startswith("x: ") and said in text and "\n" not in text


def test_a_full_disk_without_a_name_makes_no_claim_about_another_disk():
    text = str(disk_error(SPEC, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))))
    assert text == "x: the disk is full; make room, then the same command goes on"


def test_a_signed_address_is_never_told():
    text = str(told(SPEC, RuntimeError("bad answer of https://store/x?signature=secret of it")))
    assert "https://store/x" in text and "secret" not in text


# Pickles and damaged models


class _Payload:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_a_repository_with_pickles_alone_is_refused_before_a_byte(hub, ws, download):
    files = model_files()
    del files["model.safetensors"]
    hub.add("me/x", files)
    assert "only pickled weights (.bin, .pt)" in one_line(download())
    assert not hub.file_requests()


@pytest.mark.parametrize("kind", ["pickle", "zip"])
def test_a_pickle_named_safetensors_is_refused_and_its_payload_not_run(
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


def test_a_shard_that_the_index_names_and_the_hub_lacks_is_told(hub, ws, download):
    index = {"weight_map": {"w": "model-00001-of-00002.safetensors", "v": "model-00002-of-00002"}}
    files = model_files() | {
        "model.safetensors.index.json": json.dumps(index).encode(),
        "model-00001-of-00002.safetensors": safetensors(100),
    }
    hub.add("me/x", files)
    assert "model-00002-of-00002 is missing" in one_line(download())
    assert not (ws.experts_dir / "x").exists()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("config.json", b'{"model_type": "nobodys"}', "can't read its config"),
        ("config.json", b'{"model_type": "vit"}', "no language model of type 'vit'"),
        ("config.json", b"[]", "config.json can't be read"),
        ("tokenizer.json", b'{"model": {}}', "its tokenizer can't be loaded"),
        ("model.safetensors", safetensors(100)[:-1], "model.safetensors has 171 of 172 bytes"),
    ],
    ids=["unknown config", "another kind", "no config", "tokenizer", "weights"],
)
def test_a_model_that_can_not_be_loaded_is_not_published(hub, ws, download, name, content, said):
    hub.add("me/x", model_files(100) | {name: content})
    assert said in one_line(download())
    assert not (ws.experts_dir / "x").exists()


def test_a_model_with_code_of_its_own_is_refused_and_the_code_not_fetched(hub, ws, download):
    config = json.loads(CONFIG) | {"model_type": "own", "auto_map": {"AutoConfig": "evil.Config"}}
    hub.add("me/x", model_files() | {"config.json": json.dumps(config).encode()})
    assert "can't read its config" in one_line(download())
    assert not any("evil.py" in path for _, path, _ in hub.requests)


def test_an_unknown_name_is_a_usage_error(ws, download):
    with pytest.raises(UsageError, match="no expert is called y; there are: qwen"):
        download("y")
