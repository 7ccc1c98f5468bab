"""The table of faults names tests that exist."""

from __future__ import annotations

import re

from tests.support.paths import TESTS


def test_every_test_named_in_the_table_exists():
    named = re.findall(r"`([\w/]+\.py)::(test_\w+)`", (TESTS / "faults/README.md").read_text())
    assert len(named) > 40
    for file, test in named:
        assert re.search(rf"^def {test}\(", (TESTS / file).read_text(), re.MULTILINE), test
