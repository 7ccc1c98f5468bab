"""Does distillation help? Train the demo's student with three losses and several seeds.

    python -m benchmarks.compare [--seeds 0 1 2] [--set key=value ...]

Trains the demo (preset `demo`, same text, same steps) with cross-entropy only (alpha = 0), and with
soft targets at T = 1 and T = 2. Prints the held-out bits per byte as a table on standard error and
as JSON on standard output. Every run goes through the command line in a temporary root and takes
about two minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from engine.events import EvalDone
from engine.run.history import History
from engine.workspace import Workspace

PROJECT = Path(__file__).resolve().parent.parent
VARIANTS = {
    "cross_entropy": ["loss.alpha=0"],
    "distilled_T1": ["loss.temperature=1"],
    "distilled_T2": ["loss.temperature=2"],
}


def train(root: Path, settings: list[str]) -> float:
    """Train the demo with these settings; returns its last held-out bits per byte."""
    options = [part for setting in settings for part in ("--set", setting)]
    data = PROJECT / "assets/conversations/demo.jsonl"
    command = [str(PROJECT / "gladius_train"), "--no-ui", "--quiet", "--root", str(root), "train"]
    command += ["--preset", "demo", "--data", str(data), "--fresh", *options]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    history = History(Workspace.find(root).history_file)
    run = history.last_run("train")
    done = history.last(run.run_id, "EvalDone") if run is not None else None
    history.close()
    if not isinstance(done, EvalDone):
        raise RuntimeError("the history of the run has no evaluation")
    return done.bits_per_byte


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", action="append", default=[], dest="settings")
    arguments = parser.parse_args()
    results: dict[str, list[float]] = {name: [] for name in VARIANTS}
    with tempfile.TemporaryDirectory(prefix="gladius-compare-") as folder:
        root = Path(folder)
        (root / "tmp").mkdir()
        # use the downloaded experts without copying them
        (root / "tmp/models").symlink_to(PROJECT / "tmp/models")
        for seed in arguments.seeds:
            for name, settings in VARIANTS.items():
                extra = [f"seed={seed}", *settings, *arguments.settings]
                results[name].append(train(root, extra))
                print(f"seed {seed}  {name:<14} {results[name][-1]:.4f} bits/byte", file=sys.stderr)
    for name, values in results.items():
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        mean = statistics.fmean(values)
        print(f"{name:<14} mean {mean:.4f}  sd {spread:.4f}", file=sys.stderr)
    print(json.dumps({"held_out_bits_per_byte": results}))


if __name__ == "__main__":
    main()
