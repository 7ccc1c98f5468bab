"""Make old_checkpoint.tar.gz: the root of a small, stopped run, without paths of the machine.

The archive was made with the program of commit aedfcc2, before its modules moved and fields of its
config were renamed. It shows that checkpoints of that version are still resumed exactly. Do not
make it with a later version: check that commit out and copy this folder into it. The numbers of
the steps after the stop must be recorded there too (see test_golden.py).

    python tests/golden/make_old_checkpoint.py
"""

from __future__ import annotations

import gzip
import io
import json
import shutil
import sqlite3
import tarfile
import tempfile
from pathlib import Path

from golden_run import Run, make_inputs

ARCHIVE = Path(__file__).with_name("old_checkpoint.tar.gz")
STEPS, STOP_AT = 30, 11
SMALL = (
    "student.num_hidden_layers=1",
    "targets.source=cached",
    "targets.top_k=8",
    "targets.draws=2",
    "targets.draw_epochs=1",
    "schedule.eval_interval=20",  # none near the stop: the run must stop within a phase
)
LEFT_OUT = (
    "tmp/logs/*.log",
    "tmp/logs/runner.out",
    "tmp/checkpoints/best-*",
    "tmp/experts_cache/*/*/probes.safetensors",  # 90 KB each; the resumed run computes them again
    "out-*",
    "err-*",
)
KEPT_TIME = 1_700_000_000


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="g-") as folder:
        root, runtime = Path(folder, "root"), Path(folder, "run")
        root.mkdir()
        runtime.mkdir()
        make_inputs(root, examples=16, words=12)
        run = Run(root, runtime)
        run.train(STEPS, *SMALL, stop_at=STOP_AT)
        checkpoints = sorted(root.glob("tmp/checkpoints/step-*"))
        for path in (*checkpoints[:-1], *(p for what in LEFT_OUT for p in root.glob(what))):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        about = {
            "stopped_at": run.steps()[-1],
            "steps": STEPS,
            "last_event": max(event["seq"] for event in run.events),
        }
        (root / "about.json").write_text(json.dumps(about) + "\n")
        remove_paths(root)
        pack(root)
    print(about, ARCHIVE.stat().st_size, "bytes")


def remove_paths(root: Path) -> None:
    """Replace the root's path, which only reports contain, with `.`."""
    state = root / "tmp/checkpoints/training_state.json"
    state.write_text(state.read_text().replace(str(root), "."))
    history = root / "tmp/logs/history.sqlite"
    database = sqlite3.connect(history)
    database.execute("UPDATE events SET body = replace(body, ?, '.')", (str(root),))
    # All but the first are as large as the rest of the archive.
    probes = "FROM events WHERE type = 'ProbeRead'"
    database.execute(f"DELETE {probes} AND seq > (SELECT min(seq) {probes})")
    database.commit()
    database.execute("PRAGMA journal_mode = DELETE")
    database.execute("VACUUM")
    database.close()
    for path in root.rglob("*"):
        if path.is_file():
            assert str(root.parent).encode() not in path.read_bytes(), path


def pack(root: Path) -> None:
    """Pack the root with fixed modification times: the program compares those of experts."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for path in sorted(root.rglob("*")):
            entry = archive.gettarinfo(path, path.relative_to(root).as_posix())
            entry.uid = entry.gid = 0
            entry.uname = entry.gname = ""
            entry.mtime = KEPT_TIME
            with open(path, "rb") if path.is_file() else io.BytesIO() as content:
                archive.addfile(entry, content)
    ARCHIVE.write_bytes(gzip.compress(packed.getvalue(), 9, mtime=0))


if __name__ == "__main__":
    main()
