"""Model FLOPs utilisation (MFU) of a run."""

from __future__ import annotations

from engine.run.view import RunView

_PEAK_BF16 = (
    # Dense bf16 FLOP/s by the device name that the driver reports: manufacturers' data sheets.
    ("H200", 989e12),
    ("H100 PCIe", 756e12),
    ("H100", 989e12),
    ("A100", 312e12),
    ("L40S", 362e12),
    ("L4", 121e12),
    ("RTX 4090", 165e12),
    ("RTX 3090", 71e12),
    ("A10", 125e12),
)


def mfu(run: RunView) -> float | None:
    """6 N tokens/s over the first GPU's peak FLOP/s (PaLM, arXiv 2204.02311), 0 to 1.

    None unless the run trains in bf16 on devices whose peak is known.
    """
    now, last = run.hardware, run.last
    if now is None or last is None or run.device != "cuda" or run.precision != "bf16":
        return None
    peaks = [
        next((peak for name, peak in _PEAK_BF16 if name in gpu.name), None) for gpu in now.gpus
    ]
    known = [peak for peak in peaks if peak is not None]
    if not known or len(known) != len(peaks) or not run.current_params:
        return None
    return 6 * run.current_params * last.tokens_per_sec / known[0]
