"""What can be validated: a file that is no model is refused before anything is written."""

from __future__ import annotations

import pytest

from engine.errors import MissingError, UsageError
from engine.validate.choice import ValidateConfig, choose_model
from engine.workspace import Workspace
from gladius_tui.cli import main


def choose(ws: Workspace, **fields: str) -> None:
    with choose_model(ws, ValidateConfig(**fields), lambda: None):
        pass


def test_a_file_that_is_no_gguf_file_is_refused(tmp_path):
    ws = Workspace.find(tmp_path)
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.1 localhost\n")
    with pytest.raises(UsageError, match="is not a GGUF file"):
        choose(ws, gguf=str(hosts))


def test_the_command_refuses_it_before_a_job_runs(tmp_path, capsys):
    root, hosts = tmp_path / "root", tmp_path / "hosts"
    hosts.write_text("127.0.0.1 localhost\n")
    assert main(["--root", str(root), "--no-ui", "validate", "--gguf", str(hosts)]) == 2
    assert "is not a GGUF file" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["hosts"]


def test_a_folder_with_a_config_of_another_program_is_no_model(tmp_path):
    ws = Workspace.find(tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"editor": "vi"}')
    with pytest.raises(MissingError, match="contains no model"):
        choose(ws, model=str(tmp_path / "other"))
    (tmp_path / "other" / "config.json").write_text('{"model_type": "llama"}')
    choose(ws, model=str(tmp_path / "other"))
