"""Owns how a board is written: each pane of the Dashboard as text of a given width.

Pure: a board, a width and a time in, styled text out. A value that nobody told is `-`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from textual.content import Content

from engine.events import STUDENT, CapabilityScore, GpuReading, HardwareRead
from engine.run.view import ExpertRow, RunView
from gladius_tui.format import (
    MILESTONES,
    NONE,
    bar,
    duration,
    number,
    percent,
    short_size,
    sparkline,
    time_ago,
)

MUTED = "$foreground 60%"
STRONG = "bold"

STATUS = {
    "preparing": ("◌", "preparing", "$accent"),
    "training": ("●", "training", "$text-success"),
    "paused": ("‖", "paused", "$text-warning"),
    "stalled": ("!", "stalled", "$text-error"),
    "stopped": ("!", "stopped by a signal", "$text-error"),
    "completed": ("✓", "completed", "$text-success"),
    "ended": ("■", "ended, can be resumed", "$text-warning"),
    "failed": ("✗", "failed", "$text-error"),
}

Part = str | tuple[str, str] | Content


def _lines(lines: Sequence[Content | str | Sequence[Part]]) -> Content:
    made = []
    for line in lines:
        if isinstance(line, str):
            made.append(Content(line))
        elif isinstance(line, Content):
            made.append(line)
        else:
            made.append(Content.assemble(*line))
    return Content("\n").join(made)


def _pair(left: Sequence[Part], right: Sequence[Part], width: int) -> Content:
    """Both on one line, the right one at its end; left out where there is no room for it."""
    a, b = Content.assemble(*left), Content.assemble(*right)
    room = width - a.cell_length - b.cell_length
    return Content.assemble(a, " " * room, b) if room > 0 else a


def status_part(board: RunView) -> tuple[str, str]:
    """The status with its sign, and its style."""
    sign, word, style = STATUS.get(board.status or "", ("◌", "starting", "$accent"))
    return f"{sign} {word}", style


# Run


def run_pane(board: RunView, width: int, now: float, mfu: float | None = None) -> Content:
    """Phase, step, progress, loss, speed, what is left, checkpoint; in two columns where wide."""
    status, style = status_part(board)
    phase = NONE if board.phase is None else f"{board.phase}/{board.phases}"
    lines: list[Content | str | Sequence[Part]] = [
        _pair([(status, f"{style} bold")], [(board.preset, MUTED)], width)
    ]
    if board.status is None:
        lines.append([("the worker loads its libraries"[:width], MUTED)])
    if board.status in ("failed", "ended"):
        reason = board.ended.reason if board.ended else "its runner is gone; resume goes on"
        lines.append(Content.styled(reason, "$text-error" if board.status == "failed" else MUTED))
    room = max(0, width - 8 - len(phase))
    lines.append([("phase ", MUTED), (phase, STRONG), f"  {board.phase_name[:room]}"])
    work = next(iter(board.work.values()), None)
    if work is not None and board.status in ("preparing", "paused"):
        lines += _work_lines(work, width)
    else:
        total = f" of {board.max_steps:,}" if board.max_steps else ""
        step = [("step ", MUTED), (number(board.step), STRONG), (total, MUTED)]
        lines.append(_pair(step, [(percent(board.phase_progress), MUTED)], width))
        lines.append(progress_bar(board.phase_progress, width))
    facts = _facts(board, now, mfu)
    if board.status in ("completed", "ended", "failed"):
        del facts[3]  # nothing is left
    if width < 64:
        return _lines([*lines, *(_pair(left, right, width) for left, right in facts)])
    half = width // 2 - 2
    for n in range(0, len(facts), 2):
        pair = [_pair(left, right, half) for left, right in facts[n : n + 2]]
        lines.append(Content("    ").join(pair))
    return _lines(lines)


def _facts(
    board: RunView, now: float, mfu: float | None
) -> list[tuple[Sequence[Part], Sequence[Part]]]:
    """Figures two by two, the most wanted first."""
    last, saved = board.last, board.checkpoint
    rate = number(last.lr if last else None, "{:.1e}").replace("e-0", "e-")
    left = last if board.alive else None
    age = "" if saved is None else time_ago(max(0.0, now - saved.time))
    return [
        (
            [("loss ", MUTED), (number(last.loss if last else None, "{:.3f}"), STRONG)],
            [("lr ", MUTED), rate],
        ),
        (
            [("held-out ", MUTED), (number(board.bits_per_byte, "{:.3f}"), STRONG)],
            [("best ", MUTED), number(board.best_bits, "{:.3f}")],
        ),
        (
            [(number(last.tokens_per_sec if last else None), STRONG), (" tok/s", MUTED)],
            # Utilisation is known of few devices; how long a step takes, of all.
            [("MFU ", MUTED), percent(mfu)]
            if mfu is not None or last is None
            else [f"{last.step_seconds:.3g}", (" s/step", MUTED)],
        ),
        (
            [("ETA phase ", MUTED), duration(left.phase_eta if left else None)],
            [("all ", MUTED), duration(left.run_eta if left else None)],
        ),
        (
            [("checkpoint ", MUTED), number(saved.step if saved else None)],
            [(age, MUTED)],
        ),
        (
            [("tokens ", MUTED), number(last.tokens_seen if last else None)],
            [("time ", MUTED), duration(last.training_seconds if last else None)],
        ),
    ]


def _work_lines(work, width: int) -> list[Content | str | Sequence[Part]]:
    share = work.done / work.total if work.total else None
    left = percent(share) + (f"  {duration(work.eta)}" if work.eta is not None else "")
    return [work.label[:width], progress_bar(share, width - len(left) - 1, left)]


def progress_bar(share: float | None, width: int, after: str = "") -> Content:
    """A bar; empty where the share is not known."""
    width = max(width, 4)
    full = round(min(max(share or 0.0, 0.0), 1.0) * width)
    return Content.assemble(
        ("▇" * full, "$accent"), ("▁" * (width - full), MUTED), f" {after}" if after else ""
    )


# Hardware


def hardware_pane(board: RunView, width: int, height: int) -> Content:
    """The machine: now, and the last minutes as sparklines."""
    now = board.hardware
    if now is None:
        return Content.styled("no reading yet", MUTED)
    lines: list[Content | str | Sequence[Part]] = []
    past = list(board.readings)
    for gpu in now.gpus:
        lines += _gpu_lines(gpu, past, width)
    line = _spark_line
    lines.append(line("CPU", f"{now.cpu_percent:.0f}%", [r.cpu_percent for r in past], 100, width))
    ram = _of(now.ram_used, now.ram_total)
    lines.append(line("RAM", ram, [r.ram_used for r in past], now.ram_total, width))
    if now.worker_rss:
        lines.append(_item("worker", short_size(now.worker_rss)))
    lines.append(_item("disk", f"{short_size(now.disk_free)} free"))
    for name, value, series in (
        ("read", now.disk_read_per_sec, [r.disk_read_per_sec for r in past]),
        ("write", now.disk_write_per_sec, [r.disk_write_per_sec for r in past]),
    ):
        lines.append(line(name, f"{short_size(value)}/s", series, max(1e6, *series), width))
    return _lines(lines[: max(height, 1)])


def _gpu_lines(gpu: GpuReading, past: Sequence[HardwareRead], width: int) -> list[Content]:
    same = [next((g for g in r.gpus if g.index == gpu.index), None) for r in past]
    used = "-" if gpu.percent is None else f"{gpu.percent:.0f}%"
    memory = _of(gpu.used_bytes, gpu.total_bytes)
    heat = "-" if gpu.temperature is None else f"{gpu.temperature:.0f} °C"
    limit = "" if gpu.power_limit is None else f"/{gpu.power_limit:.0f}"
    power = "-" if gpu.power is None else f"{gpu.power:.0f}{limit} W"
    percents = [g.percent if g else None for g in same]
    bytes_ = [g.used_bytes if g else None for g in same]
    return [
        _spark_line(f"GPU{gpu.index}", used, percents, 100, width),
        _spark_line("VRAM", memory, bytes_, gpu.total_bytes, width),
        _item("", f"{heat}  {power}"),
    ]


def _of(used: float, total: float) -> str:
    unit = short_size(total)
    return f"{used / 2**30:.0f}/{unit}" if unit.endswith("GiB") else f"{short_size(used)}/{unit}"


def _item(name: str, text: str) -> Content:
    return Content.assemble((f"{name:<7}", MUTED), text)


def _spark_line(
    name: str, text: str, values: Sequence[float | None], top: float, width: int
) -> Content:
    room = width - 7 - max(len(text), 9) - 1
    drawn = f" {sparkline(list(values)[-room:], 0, top).rjust(room)}" if room >= 4 else ""
    return Content.assemble((f"{name:<7}", MUTED), f"{text:<9}", (drawn, "$accent"))


# Parameters


def parameters_pane(board: RunView, width: int) -> Content:
    """How large the student is, and of what parts."""
    student = board.config.get("student", {})
    share = board.current_params / board.target_params if board.target_params else None
    target = number(board.target_params or None)
    lines: list[Content | str | Sequence[Part]] = [
        [(number(board.current_params or None), STRONG), (f" of {target}", MUTED)],
        _pair([progress_bar(share, width - 6)], [percent(share)], width),
    ]
    embeddings = _embeddings(student)
    layers, hidden = student.get("num_hidden_layers"), student.get("hidden_size")
    lines.append(
        _pair(
            [("layers ", MUTED), number(layers, "{}")],
            [("embeddings ", MUTED), _short(embeddings)],
            width,
        )
    )
    reached = [f"{name} {'✓' if board.current_params >= n else '○'}" for n, name in MILESTONES]
    if width < 34:
        reached = [*reached[1:3], reached[-1]]
    called = "milestones " if width < 34 or width >= 46 else ""
    lines.append([(called, MUTED), " ".join(reached)])
    heads, shared = student.get("num_attention_heads"), student.get("num_key_value_heads")
    lines.append(
        _pair(
            [("hidden ", MUTED), number(hidden, "{:,}")],
            [("heads ", MUTED), f"{number(heads, '{}')}/{number(shared, '{}')}"],
            width,
        )
    )
    rows, context = student.get("vocab_size"), student.get("max_position_embeddings")
    lines.append(
        _pair([("tokens ", MUTED), number(rows)], [("context ", MUTED), number(context)], width)
    )
    where = " ".join(word for word in (board.device, board.precision) if word) or NONE
    lines.append([("on ", MUTED), where])
    return _lines(lines)


def _embeddings(student: dict) -> int | None:
    rows, hidden = student.get("vocab_size"), student.get("hidden_size")
    if rows is None or hidden is None:
        return None
    return rows * hidden * (1 if student.get("tie_word_embeddings", True) else 2)


def _short(count: float | None) -> str:
    if count is None:
        return NONE
    return f"{count / 1e9:.2f} B" if count >= 1e9 else f"{count / 1e6:.1f} M"


# Experts

_HEAD = ("share", "progress", "KL", "agree", "forgot")


def experts_pane(board: RunView, width: int, height: int) -> Content:
    """A line an expert: its share, how far its phase is, and how the student matches it; where
    there is room a second one, of how well it is heard."""
    rows = list(board.experts.values())
    if not rows:
        return Content.styled("the experts are told when the run begins", MUTED)
    forgot = width >= 48
    numbers = 6 + 6 + (8 if forgot else 0)
    names = max(6, min(max(len(row.title) for row in rows), width - 2 - 6 - numbers - 12))
    room = width - 2 - names - 6 - numbers - 6
    gauge = max(0, min(room, 24))
    head = f"{'':{2 + names}} {'share':>5} {'progress'[: gauge + 4]:<{gauge + 5}}"
    head += f"{'KL':>6}{'agree':>6}" + (f"{'forgot':>8}" if forgot else "")
    lines: list[Content | str | Sequence[Part]] = [Content.styled(head, MUTED)]
    heard = height > 2 * len(rows)
    for row in rows:
        lines.append(_expert_line(board, row, names, gauge, forgot))
        if heard:
            lines.append(Content.styled(_heard(board, row.name, width - 2), MUTED))
    return _lines(lines)


def _heard(board: RunView, name: str, width: int) -> str:
    """How well the expert is heard, in as many words as fit."""
    data = board.data.get(name)
    if data is None:
        return "  its text is not prepared yet" if board.status == "preparing" else ""
    said = [
        f"  {data.aligned:.0%} aligned",
        f"weight {data.mean_weight:.2f}",
        f"residual {data.mean_residual:.3f}",
        f"{data.dropped_positions:,} of {data.positions:,} positions dropped",
        f"{data.skipped_blocks:,} of {data.blocks + data.skipped_blocks:,} blocks skipped",
    ]
    while len(" · ".join(said)) > width and len(said) > 1:
        said.pop()
    return " · ".join(said)


def _expert_line(board: RunView, row: ExpertRow, names: int, gauge: int, forgot: bool) -> Content:
    done = row.phase is not None and (board.status == "completed" or (board.phase or 0) > row.phase)
    now = row.phase is not None and row.phase == board.phase and not done
    mark, style = ("✓", "$text-success") if done else ("◆", "$accent") if now else ("○", MUTED)
    parts: list[Part] = [
        (f"{mark} ", style),
        (f"{row.title[:names]:<{names}}", STRONG if now else ""),
        f" {row.share:>5.0%} ",
    ]
    if gauge >= 4:
        parts.append((bar(row.progress or 0.0, gauge), "$accent" if now else MUTED))
        parts.append(f"{percent(row.progress):>5}")
    else:
        parts.append(f"{percent(row.progress):<{gauge + 5}}")
    parts.append((f"{number(row.kl, '{:.2f}'):>6}", STRONG))
    parts.append(f"{percent(row.agreement):>6}")
    if forgot:
        lost = row.forgotten
        text = NONE if lost is None else f"{lost:.0%}"
        style = MUTED if lost is None or lost < 0.05 else "$text-warning"
        parts.append((f"{text:>8}", style))
    return Content.assemble(*parts)


# Abilities

_LEAST_NAME = 7


def abilities_pane(board: RunView, width: int, height: int) -> Content:
    """Held-out prompts answered rightly, by capability: the student now and at its best, and the
    best of the experts. What the student could do and can no more is marked (↓).

    Capabilities stand side by side where they have room, else one below the other.
    """
    scores = {who: {s.capability: s for s in row.scores} for who, row in board.capabilities.items()}
    mine = scores.pop(STUDENT, {})
    names = list(dict.fromkeys([*mine, *(n for row in scores.values() for n in row)]))
    if not names:
        return Content.styled("what it can do is measured at every evaluation", MUTED)
    columns: list[list[tuple[str, str]]] = []
    for name in names:
        best, own = board.best_capabilities.get(name), mine.get(name)
        share = None if own is None else own.right / max(1, own.asked)
        less = share is not None and best is not None and share < best
        taught = [row[name] for row in scores.values() if name in row]
        expert = max(taught, key=lambda s: s.right / max(1, s.asked), default=None)
        columns.append([
            (name.replace("_", " "), MUTED),
            ("↓" * less + _of_asked(own), "$text-warning" if less else STRONG),
            (_of_asked(expert), ""),
            (NONE if own is None or best is None else f"{best * own.asked:.0f}/{own.asked}", MUTED),
        ])  # fmt: skip
    heads = ["", "student", "expert" if len(scores) < 2 else "best expert", "student's best"]
    label = max(map(len, heads)) + 1
    widths = [max(len(text) for text, _ in column) + 2 for column in columns]
    if label + sum(widths) <= width:
        lines = [
            Content.assemble(
                (f"{head:<{label}}", MUTED),
                *(
                    (f"{column[n][0]:>{w}}", column[n][1])
                    for column, w in zip(columns, widths, strict=True)
                ),
            )
            for n, head in enumerate(heads)
        ]
    else:
        cells_of = ((8, "student"), (8, "expert"), (7, "best"))
        if width < _LEAST_NAME + 23:
            cells_of = ((6, "now"), (7, "expert"))
        taken = sum(w for w, _ in cells_of)
        room = max(_LEAST_NAME, min(max(len(c[0][0]) for c in columns), width - taken))
        heading = "".join(f"{word:>{w}}" for w, word in cells_of)
        lines = [Content.styled(f"{'':<{room}}{heading}", MUTED)]
        lines += [
            Content.assemble(
                (f"{name[0][:room]:<{room}}", MUTED),
                *(
                    (f"{cell:>{w}}", style)
                    for (cell, style), (w, _) in zip(cells, cells_of, strict=False)
                ),
            )
            for name, *cells in columns
        ]
        if len(lines) > height and 2 * (room + taken) + 2 <= width:  # in two halves
            head, rest = lines[0], lines[1:]
            half = (len(rest) + 1) // 2
            left, right = [head, *rest[:half]], [head, *rest[half:]]
            right += [Content("")] * (len(left) - len(right))
            lines = [Content.assemble(a, "  ", b) for a, b in zip(left, right, strict=True)]
    return _lines(lines[: max(height, 1)])


def _of_asked(score: CapabilityScore | None) -> str:
    return NONE if score is None else f"{score.right}/{score.asked}"


# Sample and log


def clean(text: str) -> str:
    """Without control characters: a young student writes them too."""
    return "".join(c if c.isprintable() or c == "\n" else " " for c in text)


def sample_pane(board: RunView) -> Content:
    """What the student wrote last."""
    sample = board.sample
    if sample is None:
        return Content.styled("a sample is written at every evaluation", MUTED)
    prompt = " ".join(clean(sample.prompt).split())
    text = clean(sample.text).strip()
    return Content.assemble(
        (f"> {prompt}\n", MUTED), text or ("(it wrote nothing)", MUTED), ("\n", ""),
        (f"step {sample.step:,}", MUTED),
    )  # fmt: skip


_LEVELS = {"info": "", "good": "$text-success", "warning": "$text-warning", "error": "$text-error"}
_SIGNS = {"info": "", "good": "", "warning": "! ", "error": "✗ "}


def log_pane(board: RunView, width: int, height: int) -> Content:
    """The newest lines that fit, the last at the bottom."""
    entries = list(board.log)[-max(height, 1) :]
    if not entries:
        return Content.styled("nothing yet", MUTED)
    lines = []
    for entry in entries:
        when = time.strftime("%H:%M:%S", time.localtime(entry.time))
        text = clean(_SIGNS[entry.level] + entry.text)
        room = max(width - 9, 8)
        text = text if len(text) <= room else text[: room - 1] + "…"
        lines.append(Content.assemble((f"{when} ", MUTED), (text, _LEVELS[entry.level])))
    return Content("\n").join(lines)


def summary_line(board: RunView | None) -> str:
    """The run in one line, for the smallest terminals."""
    if board is None:
        return "no run yet: press 3 to start one"
    last = board.last
    parts = [status_part(board)[0]]
    if board.phase is not None:
        parts.append(f"phase {board.phase}/{board.phases}")
    parts.append(f"step {number(board.step)}")
    parts.append(f"loss {number(last.loss if last else None, '{:.3f}')}")
    if last is not None and last.run_eta is not None and board.alive:
        parts.append(f"eta {duration(last.run_eta)}")
    return " · ".join(parts)


# MFU

_PEAK_BF16 = (
    # dense bf16 FLOP/s by what the driver calls the device: manufacturers' data sheets
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


def mfu(board: RunView) -> float | None:
    """Model FLOPs utilisation: 6 N tokens/s over the device's peak (arXiv 2204.02311).

    None unless it trains in bf16 on a device whose peak is known.
    """
    now, last = board.hardware, board.last
    if now is None or last is None or board.device != "cuda" or board.precision != "bf16":
        return None
    peaks = [next((peak for name, peak in _PEAK_BF16 if name in g.name), None) for g in now.gpus]
    known = [peak for peak in peaks if peak is not None]
    if not known or len(known) != len(peaks) or not board.current_params:
        return None
    return 6 * board.current_params * last.tokens_per_sec / known[0]
