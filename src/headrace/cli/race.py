"""`headrace race`: challengers beside the champion, changed while the line serves."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from headrace.cli.options import AsJson, LineName, open_line, out, show, until_signal
from headrace.errors import DeclarationError, GateRejected, InputError

if TYPE_CHECKING:
    from headrace.contest import Contest, Look
    from headrace.line.races import Raced
    from headrace.race.arms import Arm, Rules

race_app = typer.Typer(no_args_is_help=True, help="Champion and challengers on live traffic.")

ArmName = Annotated[str, typer.Option("--arm", help="Name of the challenger.")]


@race_app.command("start")
def race_start(
    *,
    arm: ArmName,
    version: Annotated[
        str | None, typer.Option(help="Its version; default is a full training, as --set says.")
    ] = None,
    mode: Annotated[str, typer.Option(help="split, shadow or thompson.")] = "shadow",
    share: Annotated[float, typer.Option(help="Share of the entities, for a split.")] = 0.0,
    follow: Annotated[
        bool, typer.Option("--follow", help="Keep it as fresh as the champion.")
    ] = False,
    declared: Annotated[
        list[str] | None, typer.Option("--set", help="A key of the model, as ftrl_alpha=0.2.")
    ] = None,
    entity: Annotated[str | None, typer.Option(help="Column whose values keep their arm.")] = None,
    rules: Annotated[
        list[str] | None, typer.Option("--rule", help="A rule of the race, as alpha=0.01.")
    ] = None,
    reason: str = "by hand",
    line: LineName = "coupons",
    as_json: AsJson = False,
) -> None:
    """Let a challenger race; on a line that races, add it or change the arm of that name."""
    from headrace import contest, train

    settings, spec = open_line(line)
    model = _pairs("--set", declared)
    given = {"name": arm, "mode": mode, "share": share, "follow": follow, "model": model}
    challenger = contest.make_arm(**given, version=version or "v000000")
    if version is None:
        own = contest.variant(spec, challenger)
        challenger = challenger.model_copy(update={"version": train.full(settings, own)})
    found = contest.Contest(settings, spec).start(
        [challenger], entity, _rules(_pairs("--rule", rules)), reason
    )
    _told(line, found, as_json)


@race_app.command("stop")
def race_stop(
    arm: Annotated[str | None, typer.Option(help="One arm; default is the whole race.")] = None,
    reason: str = "by hand",
    line: LineName = "coupons",
    as_json: AsJson = False,
) -> None:
    """Take an arm out of the race, or end it; its traffic goes back to the champion."""
    _told(line, _contest(line).leave(arm, "stop" if arm is None else "drop", reason), as_json)


@race_app.command("promote")
def race_promote(
    arm: ArmName,
    force: Annotated[
        bool, typer.Option("--force", help="Promote it although the race is not decided.")
    ] = False,
    reason: str = "by hand",
    line: LineName = "coupons",
    as_json: AsJson = False,
) -> None:
    """Make a challenger the champion; refused unless the race's test says that it is better."""
    contest = _contest(line)
    look = contest.look()
    for decision in look.decisions:
        if decision.arm == arm and decision.action != "promote" and not force:
            raise GateRejected(f"arm {arm}: {decision.reason}; give --force to promote it anyway")
    champion = contest.promote(arm, reason)
    if as_json:
        show(champion)
    else:
        out.print(f"{line}: champion is {champion.version} (generation {champion.generation})")


@race_app.command("status")
def race_status(line: LineName = "coupons", as_json: AsJson = False) -> None:
    """Say who races, how they stand on the same rows, and what is decided."""
    from headrace.line import LineStore
    from headrace.line.races import Races

    settings, spec = open_line(line)
    races = Races(LineStore(settings.line_store_url(spec.line), spec.line))
    newest = races.newest()
    if newest is None or newest.race is None:
        if as_json:
            show({"line": line, "race": None, "last": newest and dataclasses.asdict(newest)})
        else:
            last = f"; the last one ended by {newest.action}: {newest.reason}" if newest else ""
            out.print(f"{line}: nothing races{last}", highlight=False, markup=False)
        return
    look = _contest(line).look()
    if as_json:
        show({"line": line, **_json(look)})
    else:
        _print(line, look)


@race_app.command("run")
def race_run(
    once: Annotated[bool, typer.Option("--once", help="Do what is due and end.")] = False,
    line: LineName = "coupons",
) -> None:
    """Keep following arms fresh, judge the race, promote and drop by its rules."""
    from headrace import contest

    settings, spec = open_line(line)
    if not once:
        until_signal(lambda stop: contest.run(settings, spec, stop))
        return
    look = contest.Contest(settings, spec).once()
    show({"line": line, **(_json(look) if look else {"race": None})})


def _contest(line: str) -> Contest:
    from headrace.contest import Contest

    return Contest(*open_line(line))


def _rules(given: dict[str, Any]) -> Rules | None:
    from pydantic import ValidationError

    from headrace.race.arms import Rules

    if not given:
        return None
    try:
        return Rules.model_validate(given)
    except ValidationError as problem:
        error = problem.errors()[0]
        known = ", ".join(Rules.model_fields)
        raise InputError(f"--rule {error['loc'][0]}: {error['msg']}; rules are {known}") from None


def _pairs(option: str, given: list[str] | None) -> dict[str, Any]:
    """`key=value` texts, values read as JSON where they are some."""
    found: dict[str, Any] = {}
    for text in given or []:
        key, equals, value = text.partition("=")
        if not (key and equals):
            raise DeclarationError(f"{option} {text!r} is not key=value; write ftrl_alpha=0.2")
        try:
            found[key] = json.loads(value)
        except ValueError:
            found[key] = value
    return found


def _told(line: str, raced: Raced, as_json: bool) -> None:
    if as_json:
        race = None if raced.race is None else raced.race.model_dump(mode="json")
        show({**dataclasses.asdict(raced), "race": race})
    elif raced.race is None:
        out.print(f"{line}: the race is over ({raced.reason})", highlight=False, markup=False)
    else:
        arms = ", ".join(_arm(arm) for arm in raced.race.arms)
        out.print(f"{line}: racing {arms} (generation {raced.generation})", highlight=False)


def _arm(arm: Arm) -> str:
    share = f" {arm.share:.0%}" if arm.mode == "split" else ""
    return f"{arm.name} = {arm.version} ({arm.mode}{share})"


def _json(look: Look) -> dict[str, Any]:
    body = dataclasses.asdict(dataclasses.replace(look, race=None))  # type: ignore[arg-type]
    return {**body, "race": look.race.model_dump(mode="json")}


def _print(line: str, look: Look) -> None:
    title = f"{line}: {look.rows} rows judged, {look.open_rows} wait for their labels"
    table = Table("arm", "log loss", "champion", "gain", "from", "to", "requests", title=title)
    for arm in look.race.arms:
        standing = look.standings[arm.name]
        gain = standing.gain
        figures = (standing.logloss, standing.champion_logloss, gain.mean, gain.low, gain.high)
        known = ("-" if math.isnan(figure) else f"{figure:.5f}" for figure in figures)
        table.add_row(_arm(arm), *known, str(gain.n))
    out.print(table)
    for name, earned in look.earned.items():
        if earned.snips.effective_rows:
            ways = {"SNIPS": earned.snips, "IPS": earned.ips, "doubly robust": earned.doubly_robust}
            told = ", ".join(
                f"{way} {one.value:.4f} ({one.low:.4f} to {one.high:.4f})"
                for way, one in ways.items()
            )
            out.print(f"{name}: click rate by {told}", highlight=False, markup=False)
    for decision in look.decisions:
        told = f"{decision.arm}: {decision.action}: {decision.reason}"
        out.print(told, highlight=False, markup=False)
