"""A running job in a few fields, as the top bar shows it."""

from __future__ import annotations

import pytest

from engine.events import Progress
from gladius_tui.app.model.job_info import JobInfo
from gladius_tui.app.model.job_status import job_content


@pytest.mark.parametrize(
    ("task", "label", "done", "shown"),
    [
        ("download:x", "Mine", 50, "downloading  50%"),
        ("download:x", "Mine", 100, "verifying"),
        ("download:x", "Mine: verifying", 20, "verifying  20%"),
        ("download:x", "Mine: converting", 20, "converting  20%"),
        ("verify:x", "Mine: verifying", 20, "verifying  20%"),
    ],
)
def test_the_top_bar_names_what_a_download_does(task, label, done, shown):
    info = JobInfo(job="download", run_id="r", pid=7)
    info = info.after(Progress(task=task, label=label, done=done, total=100, unit="B"))
    assert job_content(info, len(shown) + 3).plain == f"● {shown}"
