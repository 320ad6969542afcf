"""`headrace line` and `headrace quarantine`: versions, the champion, refused windows."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from headrace.cli.options import AsJson, LineName, open_line, out, show, until_signal
from headrace.errors import DeclarationError, GateRejected, IntegrityError
from headrace.settings import Settings

if TYPE_CHECKING:
    from headrace.line import Champion, LineStore
    from headrace.sample import Quarantine

line_app = typer.Typer(no_args_is_help=True, help="Versions of a line and its champion.")
quarantine_app = typer.Typer(no_args_is_help=True, help="Windows that a gate refused.")


@line_app.command("list")
def line_list(line: LineName = "coupons", as_json: AsJson = False) -> None:
    """List the versions of a line, the champion marked."""
    _, store = lines_store(line)
    champion = store.champion()
    versions = store.versions()
    gone = {version.version for version in versions if store.pruned_at(version.version)}
    if as_json:
        show({"champion": champion and dataclasses.asdict(champion),
              "versions": [{**dataclasses.asdict(version), "pruned": version.version in gone}
                           for version in versions]})  # fmt: skip
        return
    table = Table("", "version", "parent", "kind", "ticks", "rows", "bytes", "created")
    for version in versions:
        mark = "*" if champion and version.version == champion.version else ""
        table.add_row(
            mark, version.version, version.parent or "", version.kind,
            f"{version.from_tick}-{version.to_tick}", str(version.rows),
            "pruned" if version.version in gone else str(version.size), version.created_at,
        )  # fmt: skip
    out.print(table)


@line_app.command("show")
def lineshow(version: str, line: LineName = "coupons") -> None:
    """Show one version with its evidence, its verdict and where MLflow has it (JSON)."""
    from headrace import tracking

    _, store = lines_store(line)
    status = tracking.status(store)
    show({
        "version": dataclasses.asdict(store.get(version)),
        "evidence": store.evidence(version),
        "verdict": store.verdict(version),
        "pruned_at": store.pruned_at(version),
        "mlflow": tracking.tracked(store, version),
        "mlflow_status": status and dataclasses.asdict(status),
    })  # fmt: skip


@line_app.command("diff")
def line_diff(left: str, right: str, line: LineName = "coupons", as_json: AsJson = False) -> None:
    """Compare two versions: interval, figures, gates, and the rows that differ."""
    from headrace.line.compare import compare

    _, store = lines_store(line)
    told = compare(store, left, right)
    if as_json:
        show(told)
        return
    table = Table("", left, right)
    for name, pair in ({**told["fields"], **told["metrics"], **told["evidence"]}).items():
        if pair[0] != pair[1]:
            table.add_row(name, *(_short(value) for value in pair))
    for verdict, index in (("passed", 0), ("reasons", 1)):
        pair = [(each or {}).get(verdict) for each in told["verdicts"]]
        table.add_row(("verdict", "reasons")[index], *(_short(value) for value in pair))
    out.print(table)
    if told["same_state"]:
        out.print("the states are equal, bit for bit")
    for name, array in told["arrays"].items():
        out.print(f"{name}: {array['rows']} of {array['of']} rows differ")


@line_app.command("verify")
def line_verify(line: LineName = "coupons", as_json: AsJson = False) -> None:
    """Check every stored byte, and that bases equal their deltas; exit 6 when something differs."""
    from headrace.line.verify import verify

    _, store = lines_store(line)
    found = list(verify(store))
    if as_json:
        show([dataclasses.asdict(each) for each in found])
    counts = Counter(each.outcome for each in found)
    damaged = [each for each in found if each.outcome == "damaged"]
    if damaged:
        raise IntegrityError(
            f"{line}: {len(damaged)} of {len(found)} versions are damaged: "
            + "; ".join(f"{each.version} ({each.reason})" for each in damaged[:3])
        )
    if not as_json:
        out.print(f"{line}: {counts['sound']} versions hold, {counts['pruned']} are pruned")


@line_app.command("promote")
def line_promote(
    version: str,
    reason: str = "by hand",
    force: Annotated[
        bool, typer.Option("--force", help="Promote it although no gate passed it.")
    ] = False,
    line: LineName = "coupons",
    as_json: AsJson = False,
) -> None:
    """Make a version that passed its gate the champion; without a passed verdict it is refused."""
    _, store = lines_store(line)
    store.get(version)
    verdict = store.verdict(version)
    if not force and (verdict is None or not verdict.get("passed")):
        raise GateRejected(f"{version} has no passed verdict; run its pipeline, or roll back to it")
    action = "force" if force else "promote"
    _moved(line, store.advance(store.champion(), version, action=action, reason=reason), as_json)


@line_app.command("rollback")
def line_rollback(
    to: Annotated[str | None, typer.Option(help="A version; default is the previous one.")] = None,
    reason: str = "by hand",
    learn_again: Annotated[
        bool, typer.Option("--learn-again", help="Let the next cycle learn the same ticks again.")
    ] = False,
    line: LineName = "coupons",
    as_json: AsJson = False,
) -> None:
    """Point the line back at an earlier version; servers follow within a second.

    What was learned since goes to quarantine.
    """
    from headrace.promote import roll_back

    settings, spec = open_line(line)
    _moved(line, roll_back(settings, spec, to, reason, learn_again), as_json)


@line_app.command("pin")
def line_pin(version: str, reason: str = "by hand", line: LineName = "coupons") -> None:
    """Keep a version's files whatever its age."""
    from headrace.line.retention import pin

    _, store = lines_store(line)
    pin(store, version, reason)


@line_app.command("unpin")
def line_unpin(version: str, line: LineName = "coupons") -> None:
    """Let retention decide about a version again."""
    from headrace.line.retention import unpin

    _, store = lines_store(line)
    unpin(store, version)


@line_app.command("upkeep")
def line_upkeep(
    once: Annotated[bool, typer.Option("--once", help="Do what is due and end.")] = False,
    line: LineName = "coupons",
) -> None:
    """Write bases behind long chains and remove what no rollback needs, beside the cycles."""
    from headrace import upkeep

    settings, spec = open_line(line)
    if once:
        show(upkeep.once(settings, spec))
    else:
        until_signal(lambda stop: upkeep.run(settings, spec, stop))


@quarantine_app.command("list")
def quarantine_list(line: LineName = "coupons") -> None:
    """List refused windows with their reasons (JSON)."""
    show(_quarantine(line).intervals())


@quarantine_app.command("show")
def quarantine_show(interval: str, line: LineName = "coupons") -> None:
    """Show a refused window (`FROM-TO`, in ticks) with rows that broke a rule (JSON)."""
    show(_quarantine(line).show(*_interval(interval)))


@quarantine_app.command("release")
def quarantine_release(interval: str, line: LineName = "coupons") -> None:
    """Let a refused window (`FROM-TO`, in ticks) be learned after all."""
    _quarantine(line).release(*_interval(interval))


@quarantine_app.command("drop")
def quarantine_drop(interval: str, line: LineName = "coupons") -> None:
    """Give a refused window (`FROM-TO`, in ticks) up for good."""
    _quarantine(line).drop(*_interval(interval))


def _quarantine(line: str) -> Quarantine:
    from headrace.sample import Quarantine

    settings, spec = open_line(line)
    return Quarantine(settings.line_home(spec.line))


def _interval(text: str) -> tuple[int, int]:
    first, dash, last = text.partition("-")
    if not (dash and first.isdecimal() and last.isdecimal()):
        raise DeclarationError(f"{text!r} is not an interval; write FROM-TO, such as 120-151")
    return int(first), int(last)


def lines_store(line: str) -> tuple[Settings, LineStore]:
    """The settings and the versions of the declared line of that name."""
    from headrace.line import LineStore

    settings, spec = open_line(line)
    return settings, LineStore(settings.line_store_url(spec.line), spec.line)


def _moved(line: str, champion: Champion, as_json: bool) -> None:
    if as_json:
        show(champion)
    else:
        out.print(f"{line}: champion is {champion.version} (generation {champion.generation})")


def _short(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else "" if value is None else str(value)
