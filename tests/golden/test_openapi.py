"""The public API of the scoring server is a file: a change of it is a change of that file.

`make golden` (or `HEADRACE_GOLDEN=write pytest tests/golden/test_openapi.py`) writes it anew.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from headrace.serving.app import create_app
from headrace.settings import PROJECT, load_line, load_settings

GOLDEN = Path(__file__).with_name("openapi.json")


def test_the_openapi_document_is_the_golden_file(tmp_path: Path):
    spec = load_line(PROJECT / "lines" / "coupons.yaml")
    app = create_app(load_settings({"HEADRACE_HOME": str(tmp_path)}), spec)
    document = app.openapi()
    document["info"]["version"] = "0"  # the package's version is no part of the contract
    text = json.dumps(document, indent=1, sort_keys=True) + "\n"
    if os.environ.get("HEADRACE_GOLDEN"):
        GOLDEN.write_text(text, encoding="utf-8")
    assert text == GOLDEN.read_text(encoding="utf-8"), "the API changed; if meant: make golden"


def test_building_the_app_touches_nothing(tmp_path: Path):
    spec = load_line(PROJECT / "lines" / "coupons.yaml")
    create_app(load_settings({"HEADRACE_HOME": str(tmp_path)}), spec)
    assert list(tmp_path.iterdir()) == []
