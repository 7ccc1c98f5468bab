"""Compare GGUF files with the model folder."""

from __future__ import annotations

from collections.abc import Iterator

from msgspec.structs import replace

from engine.events import CheckDone
from engine.export.parity.checks import parity_checks
from engine.validate.check import Check, run_check
from engine.validate.context import CheckContext

_NAME, _TITLE = "gguf_parity", "GGUF parity"


def check_gguf_parity(context: CheckContext) -> Iterator[CheckDone]:
    """Compare the GGUF file under validation, or all GGUF files of the model, with the folder.

    Where there are several files, the rows' names and titles end in the file's name.
    """
    folder = context.folder
    if context.gguf is not None and not (folder / "config.json").is_file():
        reason = "There is no model folder to compare it with; give one with --model DIR."
        yield CHECK.skipped(reason)
        return
    files = [context.gguf] if context.gguf else sorted(folder.glob("*.gguf"))
    for file in files:
        # A separate check for each file: a damaged one does not affect the others.
        check = Check(
            group="structural",
            name=_NAME,
            title=_TITLE,
            run=lambda ctx, file=file: parity_checks(file, ctx.folder, ctx.progress),
        )
        for row in run_check(check, context):
            if len(files) > 1:
                row = replace(row, name=f"{row.name}:{file.name}", title=f"{row.title} {file.name}")
            yield row


CHECK = Check(group="structural", name=_NAME, title=_TITLE, run=check_gguf_parity, needs="files")
