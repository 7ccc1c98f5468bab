"""The real program on roots of its own: the fixtures of tests/e2e."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

E2E = Path(__file__).parents[1] / "e2e"
sys.path.insert(0, str(E2E))

_spec = importlib.util.spec_from_file_location("e2e_fixtures", E2E / "conftest.py")
assert _spec is not None and _spec.loader is not None
_fixtures = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_fixtures)

_environment = _fixtures._environment
expert = _fixtures.expert
text = _fixtures.text
make_root = _fixtures.make_root
root = _fixtures.root
