"""`headrace ingest` on a disk that is slow for a while, under traffic that does not wait for it."""

from __future__ import annotations

import shutil
import signal
import time
from pathlib import Path

import pytest

from headrace.account import account
from headrace.ingest.plan import Plan
from headrace.ingest.tick import TickState, run_tick
from headrace.log.stamp import clock_us
from headrace.sample import ticks
from headrace.settings import Settings, find_line, load_settings
from headrace.simulate.outbox import Outbox
from headrace.simulate.truth import TruthLog, read_truth
from headrace.store import Store
from tests.campaign import free_port, tree, wait_for
from tests.e2e.test_ingest_service import (
    STOP_S,
    campaign,
    key_counts,
    last_parts,
    logged,
    online,
    recovered_s,
    service,
)
from tests.faults.slow import slow_disk
from tests.faults.told import tell

pytestmark = [pytest.mark.e2e, pytest.mark.faults, pytest.mark.timeout(600)]

TIMES, DELAY_S = 4, 0.5


def same_ticks(settings: Settings, folder: Path) -> int:
    """Run every tick again over its own offsets, undisturbed: the same bytes; how many."""
    spec, home = find_line(settings, "coupons"), settings.line_home("coupons")
    again = folder / "again"
    shutil.copytree(home / "log", again / "log")
    state, manifests = TickState(spec, again), ticks(home)
    for manifest in manifests:
        run_tick(state, Plan(manifest.tick, manifest.at_us, manifest.events, manifest.served))
    ours, theirs = tree(again), tree(home)
    parts = [name for name in theirs if "/b=" in name and not name.startswith("state")]
    assert len(parts) > len(manifests)
    assert [name for name in parts if ours[name] != theirs[name]] == []
    assert [one.to_json() for one in ticks(again)] == [one.to_json() for one in manifests]
    return len(manifests)


def test_a_slow_disk_delays_what_is_acknowledged_and_changes_nothing_else(tmp_path: Path) -> None:
    environ = {"HEADRACE_HOME": str(tmp_path), "HEADRACE_COLLECTOR_PORT": str(free_port())}
    settings = load_settings(environ)
    spec = find_line(settings, "coupons")
    Store(settings).apply()
    truth = TruthLog(settings.home / "truth", "slow")
    outbox = Outbox(f"{settings.collector_url}/v1/events", truth)
    held, quick_at = 0, list[int]()
    with service(settings, environ) as process:
        events = campaign(outbox, 16.0)
        outbox.start()
        wait_for(lambda: outbox.counts["accepted"] > 0, 60)
        for _ in range(TIMES):
            with slow_disk(process.pid, DELAY_S, tmp_path) as slowness:
                time.sleep(2.5)
            held += slowness.calls
            quick_at.append(clock_us())
            time.sleep(0.5)
        wait_for(lambda: outbox.counts["accepted"] == events, 120)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=STOP_S)
        assert process.returncode == 0
    outbox.close()
    truth.flush()
    assert held > TIMES
    acknowledged = key_counts(read_truth(settings.home, "sent"))
    assert (len(acknowledged), set(acknowledged.values())) == (events, {1})
    assert acknowledged.keys() == key_counts(logged(settings, spec)).keys()
    counts = account(settings, spec)
    assert (counts["lost"], counts["duplicated"]) == (0, 0)
    assert online(settings, spec) == last_parts(settings.line_home("coupons"), spec)
    run_again = same_ticks(settings, tmp_path)
    tell(
        "slow_disk",
        "the disk of the collector slow: half a second more for each fsync",
        "tests/faults/test_slow_disk.py",
        {"under traffic": TIMES},
        f"every event acknowledged once; {held} fsyncs were held up, and the files of "
        f"{run_again} ticks as in an undisturbed run",
        {name: counts[name] for name in ("lost", "duplicated")},
        list(recovered_s(settings, quick_at)),
        [counts["duplicate_impression"] + counts["duplicate_engagement"]],
        "events sent again",
    )
