"""One line that lived, for all tests that ask what was served to whom."""

from __future__ import annotations

import pyarrow as pa
import pytest

from headrace.declaration import LineSpec
from headrace.settings import Settings
from tests.parity.lived_line import declared, live


@pytest.fixture(scope="session")
def spec() -> LineSpec:
    return declared()


@pytest.fixture(scope="session")
def lived(spec: LineSpec, tmp_path_factory: pytest.TempPathFactory) -> tuple[Settings, pa.Table]:
    """Every test leaves it as it was, or takes a copy."""
    return live(spec, tmp_path_factory.mktemp("lived"))
