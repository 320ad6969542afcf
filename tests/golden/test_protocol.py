"""The compiled gRPC service is what its source says.

`make golden` (or `HEADRACE_GOLDEN=write pytest tests/golden/test_protocol.py`) compiles it anew.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from headrace.settings import PROJECT

SOURCE = PROJECT / "src" / "headrace" / "serving" / "oip" / "grpc_service.proto"


def test_the_compiled_service_is_the_golden_file(tmp_path: Path):
    subprocess.run(  # not in this process: the compiler brings a Protocol Buffers of its own
        [
            *(sys.executable, "-m", "grpc_tools.protoc", f"-I{PROJECT / 'src'}"),
            *(f"--python_out={tmp_path}", str(SOURCE)),
        ],
        check=True,
    )
    compiled = next(tmp_path.rglob("*_pb2.py")).read_text(encoding="utf-8")
    golden = SOURCE.with_name("grpc_service_pb2.py")
    if os.environ.get("HEADRACE_GOLDEN"):
        golden.write_text(compiled, encoding="utf-8")
    assert compiled == golden.read_text(encoding="utf-8"), "the protocol changed: make golden"
