"""Check that the model loads, with every tensor in its place."""

from __future__ import annotations

from engine.events import CheckDone
from engine.validate.check import Check, one_line, one_per_line, structural_row
from engine.validate.context import CheckContext
from engine.validate.loading import LoadResult, load_folder, load_gguf, set_threads

_NAME, _TITLE = "loads", "loads in transformers"


def check_loads(context: CheckContext) -> CheckDone:
    """Plain transformers loads model and tokenizer completely; sets context.loaded.

    A model with weights that are not finite is loaded but not used: its output would be NaN.
    """
    set_threads(context.survey.parameters)
    with context.job.busy("loading the model"):
        try:
            if context.gguf is None:
                result = load_folder(context.folder)
            else:
                result = load_gguf(context.gguf)
        except Exception as error:  # a broken file can make the libraries raise anything
            result = LoadResult(None, one_line(error))
    if not context.survey.non_finite:
        context.loaded = result.loaded
    return structural_row(
        _NAME,
        _TITLE,
        passed=result.loaded is not None,
        value=result.value,
        meaning="Plain transformers loads model and tokenizer, without code from the model or from "
        "GLADIUS.",
        bound="every tensor in its place",
        detail=one_per_line(result.findings) if len(result.findings) > 1 else "",
    )


CHECK = Check(group="structural", name=_NAME, title=_TITLE, run=check_loads, needs="files")
