"""Look up known vulnerabilities of the installed packages with pip-audit: `make audit`.

Skipped, with a line that says why, where pip-audit is missing or the network can't be reached: a
check must not fail because a machine is offline.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import urllib.error
import urllib.request

_SERVICE = "https://pypi.org/pypi/pip/json"
_PROBE_SECONDS = 3.0
_AUDIT_SECONDS = 120


def reachable(url: str = _SERVICE) -> bool:
    """Whether the package index answers within a few seconds."""
    try:
        with urllib.request.urlopen(url, timeout=_PROBE_SECONDS) as response:
            return response.status == 200
    except (OSError, urllib.error.URLError, ValueError):
        return False


def main() -> int:
    """Run pip-audit; returns the exit code of `make audit`."""
    if importlib.util.find_spec("pip_audit") is None:
        print("pip-audit skipped: it is not installed (pip install pip-audit)")
        return 0
    if not reachable():
        print("pip-audit skipped: the package index can't be reached")
        return 0
    command = [sys.executable, "-m", "pip_audit", "--skip-editable", "--progress-spinner", "off"]
    try:
        result = subprocess.run(
            [*command, "--timeout", "15"], timeout=_AUDIT_SECONDS, capture_output=True, text=True
        )
    except subprocess.TimeoutExpired:
        print("pip-audit skipped: the service of vulnerabilities does not answer")
        return 0
    output = (result.stdout + result.stderr).strip()
    if result.returncode and "vulnerabilit" not in output:
        print(f"pip-audit skipped: {output.splitlines()[-1] if output else 'it failed'}")
        return 0
    if result.returncode:
        print(output)
    else:
        unknown = output.count("could not be audited")
        print("no known vulnerabilities" + (f"; {unknown} packages unknown" if unknown else ""))
    return result.returncode


if __name__ == "__main__":
    sys.exit(main())
