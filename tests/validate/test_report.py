"""The rules of the verdict, and the comparison with the previous report."""

from __future__ import annotations

import pytest

from engine.events import CheckDone
from engine.validate.report import (
    Machine,
    ModelFacts,
    Report,
    Row,
    compare,
    quality_of,
    read_report,
    structure_of,
    verdict_text,
    write_report,
)


def row(group="quality", verdict="pass", bound="at most 1", name="x", number=None, value="v"):
    return Row(
        group=group,
        name=name,
        title=f"the {name}",
        value=value,
        bound=bound,
        verdict=verdict,
        meaning="It means something.",
        number=number,
    )


def report(*rows, weights="a") -> Report:
    return Report(
        created=1_700_000_000.0,
        seconds=1.0,
        structure=structure_of(rows),
        quality=quality_of(rows),
        verdict=verdict_text(rows),
        model=ModelFacts(path="m", title="the model", kind="model", step=7, weights=weights),
        machine=Machine(),
        checks=tuple(rows),
    )


@pytest.mark.parametrize(
    ("verdicts", "quality"),
    [
        ((), "unknown"),
        (("skip", "skip"), "unknown"),
        (("pass",), "good"),
        (("pass", "skip", "pass"), "good"),
        (("pass", "warn"), "fair"),
        (("pass", "pass", "warn"), "fair"),
        (("pass", "warn", "warn"), "low"),
        (("warn",), "low"),
    ],
)
def test_quality_follows_from_the_rows_with_a_bound(verdicts, quality):
    rows = [row(verdict=v) for v in verdicts]
    ignored = [row(bound="", verdict="pass"), row(group="structural", verdict="fail")]
    assert quality_of([*rows, *ignored]) == quality


def test_structure_and_quality_are_independent():
    broken = [row("structural", "fail", name="files"), row()]
    assert structure_of(broken) == "broken" and quality_of(broken) == "good"
    assert verdict_text(broken) == (
        "structurally broken (the files), quality good (1 of 1 metrics within bounds)"
    )
    low = [row("structural", "pass"), row("structural", "warn"), row(verdict="warn")]
    assert verdict_text(low) == ("structurally sound, quality low (0 of 1 metrics within bounds)")
    assert verdict_text([row("structural")]) == "structurally sound, quality not measured"


def test_a_report_is_read_as_it_was_written(tmp_path):
    path = tmp_path / "validation.json"
    made = report(row(number=1.5), row("structural", "fail"))
    write_report(path, made)
    assert read_report(path) == made
    assert [p.name for p in tmp_path.iterdir()] == ["validation.json"]
    path.write_text("{}")
    assert read_report(path) is None and read_report(tmp_path / "none") is None


def test_changes_are_better_or_worse_by_the_direction_of_the_metric():
    def rows(bits, json_share, kl, files="pass"):
        return [
            row("structural", files, name="files"),
            row(name="bits_per_byte", number=bits, value=f"{bits}"),
            row(name="valid_json", number=json_share, value=f"{json_share}"),
            row(name="kl:tiny", number=kl, value=f"{kl}", verdict="skip" if kl < 0 else "pass"),
            row(name="generation_speed", number=bits, bound=""),
        ]

    before = report(*rows(2.0, 0.5, 1.0))
    summary, made = compare(before, rows(1.5, 0.6, 2.0), "a")
    assert summary.same_weights and summary.step == 7
    assert {c.name: c.change for c in summary.changes} == {
        "bits_per_byte": "better",
        "valid_json": "better",
        "kl:tiny": "worse",
    }
    assert isinstance(made, CheckDone) and made.verdict == "pass"
    assert made.value == "2 better, 1 worse, 0 unchanged"
    assert "the bits_per_byte: 2.0 → 1.5 (better)" in made.detail

    summary, made = compare(before, rows(2.005, 0.51, -1.0), "b")
    assert {c.change for c in summary.changes} == {"same"} and len(summary.changes) == 2
    assert not summary.same_weights and "different weights (step 7)" in made.meaning

    _, made = compare(before, rows(2.0, 0.1, 1.0, files="fail"), "a")
    assert made.verdict == "warn" and "newly failed: the files" in made.value
