"""`infra/setup/audit.sh` fails on advisories and on errors, and passes where uv reached nobody."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from headrace.settings import PROJECT

SCRIPT = PROJECT / "infra" / "setup" / "audit.sh"
UNREACHED = "error: Request failed after 3 retries\n  cause: error sending request for url"
STAND_IN = """#!/usr/bin/env bash
[ "$2" = --help ] && exit {has_audit}
printf '%s\\n' '{said}' >&2
exit {code}
"""


def audit(folder: Path, said: str, code: int, has_audit: bool = True) -> tuple[int, str]:
    """Exit code and words of the script where uv says this and ends so."""
    uv = folder / "uv"
    uv.write_text(STAND_IN.format(said=said, code=code, has_audit=int(not has_audit)))
    uv.chmod(0o755)
    environ = os.environ | {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", str(SCRIPT)], env=environ, capture_output=True, text=True, check=False, timeout=60
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("said", "code", "ends", "told"),
    [
        ("Found no known vulnerabilities", 0, 0, "Found no known"),
        ("starlette 1.10.0 has 1 known vulnerability", 1, 1, "starlette 1.10.0"),
        (UNREACHED, 2, 0, "audit: not done: the advisories could not be reached"),
        ("error: failed to parse uv.lock", 2, 2, "failed to parse"),
    ],
)
def test_the_audit_ends_as_uv_did_unless_nobody_was_reached(tmp_path, said, code, ends, told):
    found = audit(tmp_path, said, code)
    assert found[0] == ends
    assert told in found[1]


def test_a_uv_without_audit_is_named_with_the_remedy(tmp_path):
    assert audit(tmp_path, "", 0, has_audit=False) == (
        0,
        "audit: not done: this uv has no audit; `uv self update`, or pip install -U uv\n",
    )
