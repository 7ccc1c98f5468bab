"""How much a student forgets of the first expert's text during the second expert's phase, with and
without replay: `python -m benchmarks.forgetting ROOT`.

One expert (SmolLM2, downloaded in ROOT) is registered under two names: the first teaches
conversations, the second source code, so that the phases differ in subject. Prints the held-out
bits per byte of both after each phase, one line for each value of schedule.replay.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from engine.events import EvalDone, decode_event
from engine.workspace import assets_dir

REPO = Path(__file__).resolve().parents[1]
REPLAY = (0.0, 0.2, 0.4)
STEPS = 160
TEXT_BYTES = 300_000


def write_text(path: Path) -> None:
    """Write the demo's conversations for `talk` and about as much source code for `code`."""
    talks = (assets_dir() / "conversations" / "demo.jsonl").read_text("utf-8").splitlines()
    lines = [{**json.loads(line), "expert": "talk"} for line in talks]
    size = 0
    for file in sorted(REPO.glob("engine/**/*.py")) + sorted(REPO.glob("tests/**/*.py")):
        text = file.read_text("utf-8")
        pieces = [text[n : n + 1500] for n in range(0, len(text), 1500)]
        lines += [{"text": p, "expert": "code", "complete": False} for p in pieces if p.strip()]
        size += len(text)
        if size > TEXT_BYTES:
            break
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")


def run(root: Path, replay: float) -> list[dict[str, float]]:
    """Held-out bits per byte by expert: at the start, after each expert's phase and at the end."""
    fields = {
        "data.generate": "false",
        "schedule.replay": replay,
        "schedule.max_steps": STEPS,
        "schedule.expert_share": 0.85,
        "schedule.eval_interval": 10 * STEPS,
        "schedule.sample_tokens": 1,
    }
    command = [str(REPO / "gladius_train"), "--root", str(root), "--no-ui", "--json", "train"]
    command += ["--preset", "nano", "--experts", "talk,code", "--data", str(root / "text.jsonl")]
    command += ["--fresh"] + [w for n, v in fields.items() for w in ("--set", f"{n}={v}")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    events = [decode_event(line) for line in done.stdout.splitlines()]
    return [
        {score.expert: score.bits_per_byte for score in event.scores}
        for event in events
        if isinstance(event, EvalDone)
    ]


def main() -> None:
    root = Path(sys.argv[1]).resolve()
    table = 'repo = "./tmp/models/smollm2"\nend_tokens = ["<|im_end|>", "<|endoftext|>"]\n'
    (root / "gladius.toml").write_text(
        f'[experts.talk]\ntitle = "Talk"\n{table}[experts.code]\ntitle = "Code"\n{table}'
    )
    write_text(root / "text.jsonl")
    print(
        "replay  talk after its phase  talk after code's  forgotten  code after its phase  both",
        flush=True,
    )
    for replay in REPLAY:
        _, first, second, last = run(root, replay)
        print(
            f"{replay:6.1f}  {first['talk']:20.3f}  {second['talk']:17.3f}"
            f"  {second['talk'] - first['talk']:+9.3f}  {second['code']:20.3f}"
            f"  {last['talk']:.3f} {last['code']:.3f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
