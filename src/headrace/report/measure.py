"""What a run of the loop achieved, measured from its artifacts alone, and the two report files.

Nothing is remembered by the demo: staleness, log loss, parity and the fate of every event are
computed from logs, ticks, versions, champion history, cycle records and the simulator's truth.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from headrace import parts
from headrace.account import account
from headrace.cycle import Cycle, records
from headrace.declaration import LineSpec
from headrace.events import (
    CHAMPION_ARM,
    IMPRESSION,
    PINNED_ARM,
    event_schema,
    offset_columns,
    served_schema,
)
from headrace.line import Champion, LineStore, Version
from headrace.log.files import FileLog
from headrace.report.freshness import (
    covered,
    first_responses,
    first_to_answer,
    micros,
    served_staleness,
    staleness,
    ticks_of_events,
)
from headrace.report.ranking import (
    Scored,
    click_rates,
    log_losses,
    match_served,
    rolling,
    scored_rows,
)
from headrace.sample import Quarantine, TickManifest, ticks
from headrace.settings import Settings
from headrace.simulate.truth import read_json, read_truth

Ints = NDArray[np.int64]
PARITY_SHOWN: Final = 5
Judge = Callable[[Mapping[str, Any]], list[dict[str, Any]]]


@dataclass(frozen=True)
class Artifacts:
    """Everything that a run has left behind, read once."""

    home: Path
    store: LineStore
    spec: LineSpec
    events: pa.Table
    served: pa.Table
    manifests: list[TickManifest]
    tick_of: Ints
    versions: dict[str, Version]
    champions: list[Champion]
    cycles: list[Cycle]
    truth: pa.Table
    requests: pa.Table
    drills: dict[str, Any]
    summary: dict[str, Any]
    started_us: int


def read_artifacts(settings: Settings, spec: LineSpec) -> Artifacts:
    """Read a line's home. Live traffic begins with the simulator, or else with the first answer."""
    home = settings.line_home(spec.line)
    events = _read_log(home / "log" / "events", event_schema(spec))
    served = _read_log(home / "log" / "served", served_schema(spec))
    served = served.filter(pc.not_equal(served["version"], "bootstrap"))
    served = served.filter(pc.not_equal(pc.fill_null(served["arm"], CHAMPION_ARM), PINNED_ARM))
    store = LineStore(settings.line_store_url(spec.line), spec.line)
    manifests = ticks(home)
    summary = read_json(home / "truth" / "summary.json")
    first = pc.min(served["served_at"].cast(pa.int64())).as_py()
    return Artifacts(
        home=home,
        store=store,
        spec=spec,
        events=events,
        served=served,
        manifests=manifests,
        tick_of=ticks_of_events(_samples(spec, home, manifests), events.num_rows),
        versions={version.version: version for version in store.versions()},
        champions=store.history(),
        cycles=records(settings, spec),
        truth=read_truth(home, "candidates"),
        requests=read_truth(home, "requests"),
        drills=read_json(home / "truth" / "drills.json"),
        summary=summary,
        started_us=int(summary.get("started_us") or first or 0),
    )


def measure(settings: Settings, spec: LineSpec) -> dict[str, Any]:
    """The figures of `report.json`; a figure that the artifacts cannot give is null.

    Times of staleness in seconds, latencies in milliseconds, losses in nats.
    """
    return figures(settings, read_artifacts(settings, spec))[0]


def figures(settings: Settings, found: Artifacts) -> tuple[dict[str, Any], Scored]:
    """`measure` of artifacts already read, with the rows that the plots need."""
    from headrace.parity import check

    spec = found.spec
    rows = _scored(found)
    parity = check(settings, spec, shown=PARITY_SHOWN)
    clicks = click_rates(rows, spec.seed)
    return {
        "line": spec.line,
        "started_us": found.started_us,
        "staleness_s": _staleness(found),
        "cycles": count_cycles(found.cycles),
        "logloss": log_losses(rows),
        "click_rate": clicks,
        "uplift": clicks["uplift"],
        "parity": parity.to_dict(),
        "serving": _serving(found.requests),
        "rollback_ms": found.drills.get("rollback", {}).get("ms"),
        "poison": _poison(found),
        "events": count_events(account(settings, spec), read_truth(found.home, "sent"), found),
        "versions": len(found.versions),
        "champion": found.champions[-1].version if found.champions else None,
        "simulator": found.summary,
    }, rows


def count_cycles(cycles: Sequence[Cycle]) -> dict[str, Any]:
    """Incremental cycles by outcome (`skipped`: too few new rows), and a learner's steps.

    `list` has every kind; of a learner's steps, one a second, those that were not promoted.
    """
    counts = Counter(cycle.outcome for cycle in cycles if cycle.kind == "incremental")
    steps = Counter(cycle.outcome for cycle in cycles if cycle.kind == "learner")
    listed = [one for one in cycles if (one.kind, one.outcome) != ("learner", "promoted")]
    return {
        "run": counts.total() - counts["idle"],
        "promoted": counts["promoted"],
        "rejected": counts["rejected"],
        "failed": counts["failed"],
        "skipped": counts["idle"],
        "learner": {"promoted": steps["promoted"], "rejected": steps["rejected"]},
        "list": [asdict(cycle) for cycle in listed],
    }


def count_events(accounted: Mapping[str, Any], sent: pa.Table, found: Artifacts) -> dict[str, Any]:
    """The line's account, and what was acknowledged to the simulator but is not in the log.

    Such events count as lost too: an acknowledgement is a promise.
    """
    good = sent.filter(pc.invert(sent["malformed"]))
    missing = (_named(good) - _named(found.events)).total()
    return {
        **accounted,
        "acknowledged": good.num_rows,
        "acknowledged_not_in_log": missing,
        "lost": int(accounted["lost"]) + missing,
    }


def _named(events: pa.Table) -> Counter[tuple[str, str]]:
    pairs = zip(events["event"].to_pylist(), events["impression_id"].to_pylist(), strict=True)
    return Counter(pairs)


def _staleness(found: Artifacts) -> dict[str, Any]:
    arrival_us = micros(found.events["arrival_at"])
    live = arrival_us >= found.started_us
    live &= np.asarray(pc.not_equal(found.events["event"], "mark"), dtype=bool)
    at_us = np.array([manifest.at_us for manifest in found.manifests], dtype=np.int64)
    learned = first_to_answer(found.versions, first_responses(found.served), len(at_us))
    return staleness(
        arrival_us[live],
        found.tick_of[live],
        at_us,
        learned,
        cycles=found.cycles,
        champions=found.champions,
    )


def _serving(requests: pa.Table) -> dict[str, Any]:
    """Every call after the first good answer counts; before that the server was not ready."""
    status = requests["status"].to_numpy()
    good = status == 200
    if not good.any():
        return {"requests": len(status), "errors": len(status), "p50_ms": None, "p99_ms": None}
    begun = int(np.argmax(good))
    p50, p99 = np.percentile(requests["latency_ms"].to_numpy()[good], [50, 99])
    return {
        "requests": len(status),
        "errors": int((~good[begun:]).sum()),
        "before_ready": begun,
        "p50_ms": round(float(p50), 2),
        "p99_ms": round(float(p99), 2),
    }


def _poison(found: Artifacts) -> dict[str, Any] | None:
    """What became of the poisoned impressions: their windows, and how many the champion learned.

    `rejected` holds when refused windows, or the parts of windows that went to quarantine, had
    at least four fifths of those sampled, and the champion at the end has learned at most a fifth.
    """
    shown = pc.greater_equal(found.truth["position"], 0)
    ids = found.truth.filter(pc.and_(found.truth["poisoned"], shown))["impression_id"]
    if not len(ids):
        return None
    shown_then = pc.is_in(found.events["impression_id"], value_set=ids.combine_chunks())
    is_impression = pc.equal(found.events["event"], IMPRESSION)
    poisoned = np.asarray(pc.and_(shown_then, is_impression), dtype=bool)
    tick = found.tick_of[poisoned]
    tick = tick[tick >= 0]
    refused = [
        (*c.interval, c.reasons)
        for c in found.cycles
        if c.outcome == "rejected" and c.interval is not None
    ]
    quarantined = Quarantine(found.home).intervals()
    refused += [(q["from"], q["to"], q["reasons"]) for q in quarantined]
    guilty = [window for window in refused if _inside(tick, [window]).any()]
    learned = 0
    if found.champions:
        name = found.champions[-1].version
        learned = int(covered(found.versions, name, len(found.manifests))[tick].sum())
    caught = bool(len(tick)) and float(_inside(tick, guilty).mean()) >= 0.8
    return {
        **found.drills.get("poison", {}),
        "impressions": len(ids),
        "learned": learned,
        "rejected": caught and learned <= 0.2 * len(ids),
        "windows": sorted({(start, stop) for start, stop, _ in guilty}),
        "reasons": list(dict.fromkeys(reason for *_, reasons in guilty for reason in reasons)),
        "quarantined": quarantined,
    }


def _inside(tick: Ints, windows: Sequence[tuple[int, int, Any]]) -> NDArray[np.bool_]:
    """Which of the ticks lie in any of the windows `(from, to, …)`."""
    inside = np.zeros(len(tick), dtype=bool)
    for start, stop, _ in windows:
        inside |= (tick >= start) & (tick < stop)
    return inside


def _scored(found: Artifacts) -> Scored:
    """Truth beside the served log, with the base (the first champion) rescoring the vectors."""
    truth, served = match_served(found.truth, found.served)
    frozen = np.full(truth.num_rows, np.nan)
    if truth.num_rows and found.champions:
        from headrace.model import Model

        model = Model(found.spec.model, found.spec.seed, conversion=found.spec.converts, blank=True)
        model.load_state(found.store.load(found.champions[0].version)[1])
        frozen = model.predict(served)
    return scored_rows(truth, served, frozen)


def _samples(
    spec: LineSpec, home: Path, manifests: Sequence[TickManifest]
) -> list[tuple[int, pa.Table]]:
    columns = list(offset_columns(spec))
    return [
        (manifest.tick, parts.read(home / path, columns))
        for manifest in manifests
        if (path := manifest.samples) is not None
    ]


def _read_log(folder: Path, schema: pa.Schema) -> pa.Table:
    log = FileLog(folder, schema)
    return log.read(0, log.head)


def write(
    settings: Settings, spec: LineSpec, folder: Path, judge: Judge | None = None
) -> dict[str, Any]:
    """Measure, then write `report.json` and `report.html` into `folder`; returns the figures.

    What `judge` says of the figures is added to them as `checks`.
    """
    from headrace.report.html import page

    found = read_artifacts(settings, spec)
    measured, rows = figures(settings, found)
    measured["checks"] = [] if judge is None else judge(measured)
    at_us, age_s = served_staleness(found.served, found.versions)
    series = {"staleness_at_us": at_us.tolist(), "staleness_s": age_s.tolist(), **rolling(rows)}
    champions = [
        {"at_us": c.at_us, "version": c.version, "action": c.action, "reason": c.reason}
        for c in found.champions
    ]
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(measured, indent=2, allow_nan=False)
    (folder / "report.json").write_text(text + "\n", encoding="utf-8")
    html = page(measured, series, champions, found.drills)
    (folder / "report.html").write_text(html, encoding="utf-8")
    return measured
