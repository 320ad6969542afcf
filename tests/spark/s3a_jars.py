"""The jars of infra/setup/s3a.sh, as tests that read S3 with Spark need them."""

from __future__ import annotations

import shutil

import pytest

from headrace.settings import PROJECT

JARS = PROJECT / "out" / "s3a"


def installed() -> None:
    """Skip without Maven; fail without the jars."""
    if not JARS.is_dir():
        if shutil.which("mvn") is None:
            pytest.skip("no S3A: needs Maven (apt-get install maven), then infra/setup/s3a.sh")
        pytest.fail(f"{JARS} is missing: run infra/setup/s3a.sh")
