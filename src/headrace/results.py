"""docs/results.md, from the JSON files that demo, replay, bench and tests leave in `out/`.

Nothing in it is typed by hand. Each section stands between two marks; a section whose files are
absent is left as it is, so that one machine may renew the demo and another the replay.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from headrace.atomic import write_text
from headrace.errors import InputError
from headrace.replay import results as replay_results

_TITLE: Final = "# Results\n\nReprinted from files by `make results`, not remembered.\n"


def write(document: Path, out: Path) -> list[str]:
    """Renew every section whose files lie below `out`; returns the names of those sections.

    The plots of benchmarks, `out/bench/*.svg`, are copied beside the document; what one core does
    goes into `scale.md` there, where that has its marks.
    """
    sources: dict[str, tuple[list[Path], Callable[[Sequence[Path]], str]]] = {
        "demo": (sorted(out.glob("demo*/report.json")), _demos),
        "replay": (sorted(out.glob("replay/*.json")), _replay),
        "drills": (sorted(out.glob("drills/*.json")), _drills),
        "bench": (sorted(out.glob("bench/*.json")), _bench),
        "faults": (sorted(out.glob("faults/*.json")), _faults),
    }
    text = document.read_text(encoding="utf-8") if document.exists() else _TITLE
    renewed = []
    for name, (files, render) in sources.items():
        if files:
            text = put(text, name, render(files))
            renewed.append(name)
    for plot in out.glob("bench/*.svg"):
        if f"({plot.name})" in text:
            shutil.copyfile(plot, document.with_name(plot.name))
    write_text(document, text)
    return [*renewed, *_scaled(document.with_name("scale.md"), out / "bench")]


def _scaled(document: Path, bench: Path) -> list[str]:
    """Renew the figures of one core in the document on scale, once all of them were measured."""
    files = {name: bench / f"{name}.json" for name in ("microbatch", "push", "trainer", "serving")}
    if not document.exists() or not all(path.exists() for path in files.values()):
        return []
    table = _units({name: _read(path) for name, path in files.items()})
    write_text(document, put(document.read_text(encoding="utf-8"), "units", table))
    return ["units"]


def put(text: str, name: str, section: str) -> str:
    """The document with that section between its marks, replaced or appended.

    Raises `InputError` where a begin mark has lost its end.
    """
    begin, end = f"<!-- {name} begins -->\n", f"<!-- {name} ends -->\n"
    head, found, rest = text.partition(begin)
    _, ended, tail = rest.partition(end)
    if found and not ended:
        raise InputError(f"the mark {end.strip()!r} is missing after {begin.strip()!r}; restore it")
    if not found:
        head, tail = head.rstrip("\n") + "\n\n", ""
    return f"{head}{begin}{section.strip()}\n{end}{tail}"


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as problem:
        raise InputError(f"{path}: not JSON ({problem}); write it anew") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: not a result; write it anew")
    return value


def _replay(files: Sequence[Path]) -> str:
    return replay_results.render([replay_results.read(path) for path in files])


def _demos(files: Sequence[Path]) -> str:
    """The demo on each profile, a column each: `demo` is local, `demo-<profile>` another."""
    names = [path.parent.name.removeprefix("demo").removeprefix("-") or "local" for path in files]
    reports = [_read(path) for path in files]
    checks: dict[str, list[str]] = {}
    for report in reports:
        for check in report["checks"]:
            found = f"{check['found']}: {'holds' if check['holds'] else 'does not hold'}"
            checks.setdefault(check["name"], []).append(found)
    figures = [_figures(report) for report in reports]
    rows = [[name, *(told[name] for told in figures)] for name in figures[0]]
    others = [f"`make demo PROFILE={name}`" for name in names if name != "local"]
    commands = " and ".join(["`make demo`", *others])
    parts = ["## Demo", "", f"{commands}, one run each on two shared cores.", ""]
    claims = [[name, *told] for name, told in checks.items()]
    parts += replay_results.table(["claim", *names], claims)
    parts += ["", *replay_results.table(["figure", *names], rows)]
    return "\n".join(parts)


def _figures(report: dict[str, Any]) -> dict[str, str]:
    stale, loss, clicks = report["staleness_s"], report["logloss"], report["click_rate"]
    cycles, serving, events = report["cycles"], report["serving"], report["events"]
    return dict([
        ("staleness, event appended to first response that learned it (p50, p95, max)",
         f"{stale['p50']:.1f}, {stale['p95']:.1f}, {stale['max']:.1f} s"),
        *((f"of it {name.replace('_', ' ')} (p50, p95)", f"{part['p50']:.1f}, {part['p95']:.1f} s")
          for name, part in stale["stages"].items()),
        ("cycles run, promoted, rejected",
         f"{cycles['run']}, {cycles['promoted']}, {cycles['rejected']}"),
        ("log loss served, frozen base, oracle",
         f"{loss['served']:.4f}, {loss['frozen_base']:.4f}, {loss['oracle']:.4f}"),
        ("click rate served, frozen base (estimate), oracle",
         f"{clicks['served']:.4f}, {clicks['frozen_base_estimate']:.4f}, {clicks['oracle']:.4f}"),
        ("served rows recomputed from the log and from Feast's history, mismatches",
         f"{report['parity']['rows']:,}, {report['parity']['mismatches']}"),
        ("scoring requests, errors, p50, p99",
         f"{serving['requests']:,}, {serving['errors']}, {serving['p50_ms']:.1f} ms, "
         f"{serving['p99_ms']:.1f} ms"),
        ("rollback, call to first answer by the earlier version",
         "none" if report["rollback_ms"] is None else f"{report['rollback_ms']:.0f} ms"),
        ("events appended, learned, pending, quarantined, malformed, lost",
         ", ".join(f"{events[name]:,}" for name in
                   ("appended", "learned", "pending", "quarantined", "malformed", "lost"))),
    ])  # fmt: skip


def _bench(files: Sequence[Path]) -> str:
    rows, tables = [], []
    for path in files:
        result = _read(path)
        if result.get("table"):
            shown = replay_results.table(result["table"]["heads"], result["table"]["rows"])
            tables += ["", f"### {result['what']}", "", *shown]
        if "plot" in result:
            tables += ["", f"![{result['what']}]({result['plot']})"]
        rows += [
            [result["what"], claim["name"], f"{claim['value']:.3g} {claim['unit']}".strip(),
             str(claim["goal"]), "yes" if claim["holds"] else "no"]
            for claim in result["claims"]
        ]  # fmt: skip
    heads = ["benchmark", "claim", "value", "goal", "holds"]
    claims = replay_results.table(heads, rows)
    return "\n".join(["## Benchmarks", "", "`make bench`", "", *claims, *tables])


def _units(bench: dict[str, dict[str, Any]]) -> str:
    """What one core does of each kind of work, from benchmarks."""
    claims = {each["name"]: each["value"] for result in bench.values() for each in result["claims"]}
    pushed = {row[0]: row[2] for row in bench["push"]["table"]["rows"]}
    served = dict(bench["serving"]["table"]["rows"])["most requests a second, headrace"]
    rows = []
    for size in ("10,000 over 2,000,000", "100,000 over 2,000,000", "100,000 over 10,000,000"):
        took_us = claims[f"CPU per event, {size}"]
        what = f"window state and features of a tick, with fsync: six windows, three keys, {size}"
        rows.append([what, f"{took_us:.1f} µs of CPU an event", f"{_about(1e6 / took_us)} events"])
    for store in ("SQLite", "Redis"):
        took_us = float(pushed[f"{store}, headrace"])
        what, took = f"push into the online store, {store}", f"{took_us:.1f} µs of CPU a row"
        rows.append([what, took, f"{_about(1e6 / took_us)} rows"])
    took_us = claims["CPU per sample, ftrl_deep"]
    took = f"{took_us:.1f} µs of CPU a sample"
    rows.append(["training, FTRL + deep", took, f"{_about(1e6 / took_us)} samples"])
    for name, work in (("written, CPU", "writes"), ("read and applied, CPU", "swaps")):
        delta, took_ms = next((each, value) for each, value in claims.items() if name in each)
        what, took = delta.removesuffix(", CPU"), f"{took_ms:.0f} ms of CPU"
        rows.append([what, took, f"{_about(1e3 / took_ms)} {work}"])
    what = "scoring requests of 50 candidates, the server alone on a core"
    rows.append([what, f"{1e3 / float(served):.1f} ms at the full rate", f"{served} requests"])
    return "\n".join(replay_results.table(["unit", "measured", "one core a second"], rows))


def _about(value: float) -> str:
    """Two digits of a number, the others nought."""
    return f"{int(float(f'{value:.2g}')):,}"


def _drills(files: Sequence[Path]) -> str:
    parts = [
        "## Poison drills",
        "",
        "`headrace drill`, on each line's own time; [gates](gates.md).",
    ]
    for told in map(_read, files):
        parts += ["", *_drilled(told)]
        if "clean" in told:
            parts += ["", *_undisturbed(told["clean"])]
    return "\n".join(parts)


def _undisturbed(clean: dict[str, Any]) -> list[str]:
    """What was said of clean windows; where they were recorded, each alarm with its day."""
    alarms = ", ".join(f"{gate} {count}" for gate, count in clean["false_alarms"].items())
    told = (
        f"Clean traffic: {clean['windows']} windows, {clean['windows_with_alarm']} of them with an "
        f"alarm ({clean['false_alarm_share']:.1%}; {alarms}), {clean['promoted_share']:.1%} of "
        f"{clean['judged']} candidates promoted."
    )
    return [told, *(["", *(f"- {reason}" for reason in clean["reasons"])] * bool(clean["reasons"]))]


def _drilled(told: dict[str, Any]) -> list[str]:
    """The table of one line's drills: how each was met, and what it does without gates."""
    found = {(each["drill"], each["defence"]): each for each in told["drills"]}
    usual = told["clean_minutes"]
    ranks = usual["none"]["click_rate"] is not None
    rows = []
    for name, what in told["what"].items():
        full, half, none = (found[name, each] for each in ("all", "no data gate", "none"))
        caught = full["caught_by"] or "nobody"
        after = ""
        if full["seconds"] is not None:
            after = f"{replay_results.duration(full['seconds'])}, {full['rows']:,} rows"
        harm = [_harm(each, usual[way]) for way, each in (("all", full), ("none", none))]
        learned = full["through"] - full["undone"]
        alone = half["caught_by"] or "nobody"
        rows.append([f"{name}: {what}", caught, after, str(learned), alone, *harm])
    heads = ["drill", "caught by", "after", "windows learned", "without the data gate by"]
    figures = "log loss and click rate" if ranks else "log loss"
    heads += [f"{figures}, gates on", "gates off"]
    return [_conditions(told, figures), "", *replay_results.table(heads, rows)]


def _conditions(told: dict[str, Any], figures: str) -> str:
    window, poisoned = told["window_s"], told["poisoned_windows"] * told["window_s"]
    spans = [replay_results.duration(seconds) for seconds in (poisoned, window)]
    since = f" from {told['from']}" if "from" in told else ""
    is_are = (
        "are of both together, over what people did"
        if " and " in figures
        else ("is of both together, over what happened")
    )
    return (
        f"Line `{told['line']}`, seed {told['seed']}: {spans[0]} of poison{since} in windows of "
        f"{spans[1]}, then {told['after_windows']} clean windows. {figures.capitalize()} {is_are}, "
        "against the same time without poison."
    )


def _harm(poisoned: dict[str, Any], usual: dict[str, Any]) -> str:
    """What a poison added to log loss and, where there is one, click rate."""
    names = [name for name in ("logloss", "click_rate") if usual[name] is not None]
    return ", ".join(f"{poisoned[name] - usual[name]:+.4f}" for name in names)


def _faults(files: Sequence[Path]) -> str:
    rows, kills = [], 0
    for told in map(_read, files):
        kills += told["kills"] if "SIGKILL" in told["what"] else 0
        stages = ", ".join(f"{name} {count}" for name, count in told["stages"].items())
        took = told.get("recovered_s")
        rows.append(
            [
                f"{told['what']} (`{told['command']}`)",
                str(told["kills"]),
                stages,
                "-" if took is None else f"{took['median']:.1f}, {took['max']:.1f} s",
                _repeated(told),
                *(str(told.get(name, "-")) for name in ("lost", "duplicated")),
                told["end"],
            ]
        )
    heads = ["fault", "times", "where they fell", "recovered in (median, most)"]
    heads += ["work repeated (all, most after one)", "lost", "duplicated", "how it ended"]
    table = replay_results.table(heads, rows)
    note = (
        "Recovered (RTO): from the end of the fault to the next piece of work done; processes that "
        "a test kills are forked again at once, `headrace chaos` has the supervisor and their "
        "start in it. Lost and work repeated (RPO): what was acknowledged and is gone, and what "
        f"was computed a second time for the same bytes. Kills by SIGKILL in all: {kills}."
    )
    return "\n".join(["## Faults", "", f"`make test`, the newest run. {note}", "", *table])


def _repeated(told: dict[str, Any]) -> str:
    """What was done again after faults, in its unit."""
    again = told.get("repeated")
    return "-" if again is None else f"{again['all']}, {again['most']} {again['unit']}"
