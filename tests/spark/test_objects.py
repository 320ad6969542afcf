"""`headrace stream` from S3: the driver killed, every event once, the bytes of a folder's."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
import streaming
from streaming import MALFORMED

from tests.s3_server import s3_bucket, s3_server
from tests.spark import s3a_jars

FILES = 4
SECRET = "hunter2-hunter2"


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    s3a_jars.installed()
    with s3_server() as server, s3_bucket(server, f"headrace-{uuid.uuid4().hex}") as url:
        yield url


@pytest.mark.spark
@pytest.mark.faults
def test_objects_reach_the_log_once_through_a_kill_as_files_of_a_folder_do(
    tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)  # moto takes any
    sent, folder = streaming.events(400, 5), tmp_path / "in"
    folder.mkdir()
    files = fsspec.filesystem("s3")
    for number in range(FILES):
        lines = [json.dumps(event) for event in sent[number::FILES]] + list(MALFORMED)
        text = "".join(f"{line}\n" for line in lines)
        (folder / f"{number:03d}.jsonl").write_text(text, encoding="utf-8")
        files.pipe(f"{bucket}/in/{number:03d}.jsonl", text.encode())
    stormy, calm = tmp_path / "stormy", tmp_path / "calm"
    for home in (stormy, calm):
        streaming.prepare(home, 400)
    # in one batch: a kill while Spark plans a second one may change what it holds
    assert streaming.run_with_kills(stormy, f"files:{bucket}/in", 1, 0.3, at_once=FILES) == 1
    assert streaming.end(streaming.start(calm, f"files:{folder}", at_once=FILES)) == 0
    ours, theirs = streaming.tree(stormy), streaming.tree(calm)
    assert len(ours["malformed.jsonl"].splitlines()) == FILES * len(MALFORMED)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if ours[name] != theirs[name]] == []
    in_order = [event["impression_id"] for n in range(FILES) for event in sent[n::FILES]]
    assert [row["impression_id"] for row in streaming.log_rows(stormy)] == in_order
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any("checkpoint" in path.parts for path in written)
    assert [path for path in written if SECRET.encode() in path.read_bytes()] == []
