"""Delete what a killed process leaves behind: temporary files of the state, locks and others."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

from engine.run.lock import identity_of
from engine.workspace import Workspace

_PARTIAL = re.compile(r"\.probe-(\d+)|\.\S+\.(\d+)-\d+\.tmp")
"""Files of Workspace.create and of write_bytes, with the pid of their writer."""


def remove_leftovers(ws: Workspace) -> None:
    """Delete temporary files in tmp/ and in the checkpoints' folder whose process has ended."""
    for folder in (ws.tmp, ws.checkpoints_dir):
        with contextlib.suppress(OSError):
            for name in os.listdir(folder):
                found = _PARTIAL.fullmatch(name)
                if found is not None and identity_of(int(found[1] or found[2])) is None:
                    Path(folder, name).unlink(missing_ok=True)
