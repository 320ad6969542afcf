"""What browser tests need: Debian's Chromium, and playwright-core from npm, kept in out/."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from headrace.settings import PROJECT

PLAYWRIGHT = "playwright-core@1.65.1"


@pytest.fixture(scope="session")
def playwright() -> Path:
    """Folder with `node_modules/playwright-core`, kept in out/ between runs."""
    for program in ("node", "npm", "chromium"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is missing; apt-get install {program}")
    folder = PROJECT / "out" / "playwright"
    if not (folder / "node_modules" / "playwright-core").exists():
        folder.mkdir(parents=True, exist_ok=True)
        command = ["npm", "install", "--no-save", "--prefix", str(folder), PLAYWRIGHT]
        result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
        if result.returncode != 0:
            pytest.skip(f"npm cannot install {PLAYWRIGHT}: {result.stderr[-300:]}")
    return folder
