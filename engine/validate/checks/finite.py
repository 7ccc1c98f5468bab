"""Check that every weight is finite."""

from __future__ import annotations

from engine.events import CheckDone
from engine.experts.gguf_source import GGUFExpert
from engine.validate.check import Check, one_per_line, structural_row
from engine.validate.context import CheckContext
from engine.validate.model_files import stored_tensors, survey_tensors

_NAME, _TITLE = "tensors_finite", "finite weights"


def check_finite(context: CheckContext) -> CheckDone:
    """No tensor has a NaN or an infinity; sets context.survey."""
    if context.gguf is None:
        tensors = stored_tensors(context.folder)
    else:
        tensors = GGUFExpert(context.gguf).tensors()
    survey = context.survey = survey_tensors(tensors, context.heartbeat)
    value = f"{survey.tensors} tensors"
    if survey.error:
        value = f"cannot be read after {survey.tensors} tensors: {survey.error}"
    elif survey.non_finite:
        value = f"not finite: {survey.non_finite[0]}"
    elif not survey.tensors:
        value = "no tensors"
    return structural_row(
        _NAME,
        _TITLE,
        passed=bool(survey.tensors) and not survey.non_finite and not survey.error,
        value=value,
        meaning="Every weight is finite; a single NaN would make all output NaN.",
        bound="no NaN, no infinity",
        detail=one_per_line(survey.non_finite) if len(survey.non_finite) > 1 else "",
        number=float(len(survey.non_finite)),
    )


CHECK = Check(group="structural", name=_NAME, title=_TITLE, run=check_finite, needs="files")
