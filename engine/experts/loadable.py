"""Check that transformers has the architecture of an expert.

Imports torch, so only worker processes import this module.
"""

from __future__ import annotations

from typing import Any

import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from engine.errors import GladiusError
from engine.experts.registry import ExpertSpec


def check_architecture(spec: ExpertSpec, model_type: Any) -> None:
    """Raise GladiusError unless transformers has a causal language model of this type."""
    if model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise GladiusError(
            f"{spec.name}: transformers {transformers.__version__} has no language model of type "
            f"{model_type!r}, and code from a repository is never run; choose another model, or: "
            "pip install -U transformers"
        )
