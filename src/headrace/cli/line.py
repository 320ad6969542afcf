"""`headrace line` and `headrace quarantine`: versions, the champion, refused windows."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from headrace.cli.options import AsJson, LineName, open_line, out, show
from headrace.errors import DeclarationError, GateRejected
from headrace.settings import Settings

if TYPE_CHECKING:
    from headrace.line import LineStore

line_app = typer.Typer(no_args_is_help=True, help="Versions of a line and its champion.")
quarantine_app = typer.Typer(no_args_is_help=True, help="Windows that a gate refused.")


@line_app.command("list")
def line_list(line: LineName = "coupons", as_json: AsJson = False) -> None:
    """List the versions of a line, the champion marked."""
    _, store = lines_store(line)
    champion = store.champion()
    versions = store.versions()
    if as_json:
        show({"champion": champion and dataclasses.asdict(champion),
               "versions": [dataclasses.asdict(version) for version in versions]})  # fmt: skip
        return
    table = Table("", "version", "parent", "kind", "ticks", "rows", "created")
    for version in versions:
        mark = "*" if champion and version.version == champion.version else ""
        table.add_row(
            mark, version.version, version.parent or "", version.kind,
            f"{version.from_tick}-{version.to_tick}", str(version.rows), version.created_at,
        )  # fmt: skip
    out.print(table)


@line_app.command("show")
def lineshow(version: str, line: LineName = "coupons") -> None:
    """Show one version with its evidence and verdict (JSON)."""
    _, store = lines_store(line)
    show({
        "version": dataclasses.asdict(store.get(version)),
        "evidence": store.evidence(version),
        "verdict": store.verdict(version),
    })  # fmt: skip


@line_app.command("verify")
def line_verify(line: LineName = "coupons") -> None:
    """Load every version and compare its bytes with their checksums; exit 6 when one differs."""
    _, store = lines_store(line)
    versions = store.versions()
    for version in versions:
        store.load(version.version)
    out.print(f"{line}: {len(versions)} versions hold")


@line_app.command("promote")
def line_promote(version: str, reason: str = "by hand", line: LineName = "coupons") -> None:
    """Make a version that passed its gate the champion; without a passed verdict it is refused."""
    _, store = lines_store(line)
    store.get(version)
    verdict = store.verdict(version)
    if verdict is None or not verdict.get("passed"):
        raise GateRejected(f"{version} has no passed verdict; run its pipeline, or roll back to it")
    champion = store.advance(store.champion(), version, action="promote", reason=reason)
    out.print(f"{line}: champion is {champion.version} (generation {champion.generation})")


@line_app.command("rollback")
def line_rollback(
    to: Annotated[str | None, typer.Option(help="A version; default is the previous one.")] = None,
    reason: str = "by hand",
    line: LineName = "coupons",
) -> None:
    """Point the line back at an earlier version; servers follow within a second."""
    _, store = lines_store(line)
    champion = store.rollback(to, reason=reason)
    out.print(f"{line}: champion is {champion.version} (generation {champion.generation})")


@quarantine_app.command("list")
def quarantine_list(line: LineName = "coupons") -> None:
    """List refused windows with their reasons (JSON)."""
    from headrace.sample import Quarantine

    settings, spec = open_line(line)
    show(Quarantine(settings.line_home(spec.line)).intervals())


@quarantine_app.command("release")
def quarantine_release(interval: str, line: LineName = "coupons") -> None:
    """Let a refused window (`FROM-TO`, in ticks) be learned after all."""
    from headrace.sample import Quarantine

    settings, spec = open_line(line)
    first, dash, last = interval.partition("-")
    if not (dash and first.isdecimal() and last.isdecimal()):
        raise DeclarationError(f"{interval!r} is not an interval; write FROM-TO, such as 120-151")
    Quarantine(settings.line_home(spec.line)).release(int(first), int(last))


def lines_store(line: str) -> tuple[Settings, LineStore]:
    """The settings and the versions of the declared line of that name."""
    from headrace.line import LineStore

    settings, spec = open_line(line)
    return settings, LineStore(settings.line_home(spec.line), spec.line)
