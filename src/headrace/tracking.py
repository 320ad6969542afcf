"""MLflow as a mirror of a line: a run and a registered version for each version, and aliases.

The line store is the only truth; what MLflow shows is copied from its manifests, evidence,
verdicts and champions, by the upkeep process. A version is mirrored with what is known of it, and
again once it is judged. Whatever fails waits for the next pass: nothing in a promotion asks for
MLflow. Aliases: `champion`; `previous`, to which a rollback would return; `challenger`, the newest
version that was not refused and does not serve yet.

MLflow costs 1.7 CPU seconds and 200 MB to import, and up to 10 s to create a database: only this
module imports it, when it is called. Its telemetry is off.
"""

from __future__ import annotations

import logging
import math
import os
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import takewhile
from typing import Any, Final
from urllib.parse import urlsplit

from headrace.declaration import LineSpec
from headrace.errors import InputError
from headrace.line import LineStore, Version
from headrace.line.version import CYCLE
from headrace.sealed import sealed

LOG = logging.getLogger(__name__)

_STATUS: Final = "tracking.json"
_TAG: Final = "headrace.version"


@dataclass(frozen=True)
class Tracking:
    """How the mirror stands: when it last succeeded, or since when and why it fails.

    `waiting`: versions that MLflow does not have as they are now; `failures`: passes in a row.
    """

    at: str
    waiting: int
    failures: int = 0
    failing_since: str | None = None
    problem: str | None = None


def status(store: LineStore) -> Tracking | None:
    """How the mirror of a line stands, None when there never was one."""
    body = store.files.read_json(_STATUS)
    return None if body is None else Tracking(**body)


def tracked(store: LineStore, version: str) -> dict[str, Any] | None:
    """`run_id` and `model_version` of a version in MLflow, None when it was not mirrored."""
    return store.files.read_json(f"versions/{version}/tracked.json")


def mirror(store: LineStore, spec: LineSpec, url: str, known: set[str] | None = None) -> Tracking:
    """Bring MLflow up to date with the line. Never raises for MLflow: a failure is returned.

    Safe to repeat and to interrupt: a run or version that is there already is taken over. Of a
    learner's versions, one a second, only those are mirrored that bear an alias at this moment.
    `known`: names that an earlier pass of this process has found done; it is added to.
    """
    known = set() if known is None else known
    before = status(store)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    wanted = _aliases(store)
    waiting = _waiting(store, set(wanted.values()), known)
    done = 0
    try:
        registry = _Registry(url, spec)
        for name in waiting:
            registry.put(store, store.get(name))
            done += 1
        registry.alias(wanted)
    except Exception as problem:  # noqa: BLE001 - of MLflow, a database, a network: none may block
        since = before.failing_since if before and before.failing_since else now
        failures = 1 + (before.failures if before else 0)
        why = _without_password(f"{type(problem).__name__}: {problem}".splitlines()[0], url)
        found = Tracking(now, len(waiting) - done, failures, since, why)
        LOG.warning("%s: MLflow not updated (%d in a row): %s", spec.line, failures, why)
    else:
        found = Tracking(now, 0)
    if before is None or found.problem or before.problem or waiting:
        store.files.replace(_STATUS, sealed(asdict(found)))
    return found


class _Registry:
    """MLflow's client, with the line's experiment and registered model at hand."""

    def __init__(self, url: str, spec: LineSpec) -> None:
        self._client = _client(url)
        self._spec = spec
        found = self._client.get_experiment_by_name(spec.line)
        self._experiment = (
            self._client.create_experiment(spec.line) if found is None else found.experiment_id
        )
        if not self._client.search_registered_models(f"name = '{spec.line}'"):
            self._client.create_registered_model(spec.line, description=spec.description)

    def put(self, store: LineStore, version: Version) -> None:
        """Write a version as a run and a registered version, and note both in the store."""
        evidence, verdict = store.evidence(version.version), store.verdict(version.version)
        run_id = self._run(version)
        self._log(run_id, version, evidence or {}, verdict)
        model_version = self._model_version(store, version, run_id)
        body = {"run_id": run_id, "model_version": model_version, "judged": verdict is not None}
        store.files.replace(f"versions/{version.version}/tracked.json", sealed(body))

    def alias(self, wanted: dict[str, str]) -> None:
        """Point the aliases at these versions of ours, and take the others away."""
        model = self._client.get_registered_model(self._spec.line)
        numbers = {version: self._number(version) for version in set(wanted.values())}
        for name in ("champion", "previous", "challenger"):
            number = numbers.get(wanted.get(name, ""))
            if number is None and name in model.aliases:
                self._client.delete_registered_model_alias(self._spec.line, name)
            elif number is not None and str(model.aliases.get(name)) != number:
                self._client.set_registered_model_alias(self._spec.line, name, number)

    def _run(self, version: Version) -> str:
        wanted = f"tags.`{_TAG}` = '{version.version}'"
        found = self._client.search_runs([self._experiment], wanted, max_results=1)
        if found:
            return str(found[0].info.run_id)
        began = int(datetime.fromisoformat(version.created_at).timestamp() * 1000)
        tags = {_TAG: version.version, "headrace.line": version.line}
        run = self._client.create_run(self._experiment, began, tags, version.version)
        return str(run.info.run_id)

    def _log(
        self,
        run_id: str,
        version: Version,
        evidence: dict[str, Any],
        verdict: dict[str, Any] | None,
    ) -> None:
        from mlflow.entities import Metric, Param, RunTag

        at = datetime.fromisoformat(version.created_at).timestamp()
        staleness_s = at - version.watermark_us / 1e6
        figures = {**version.metrics, "rows": version.rows, "size": version.size}
        figures |= {"staleness_s": staleness_s, **{f"gate.{k}": v for k, v in evidence.items()}}
        metrics = [
            Metric(name, float(value), int(at * 1000), 0)
            for name, value in figures.items()
            if isinstance(value, bool | int | float) and math.isfinite(value)
        ]
        params = [Param(name, str(value)) for name, value in _params(self._spec, version).items()]
        passed = "unjudged" if verdict is None else str(bool(verdict.get("passed"))).lower()
        reasons = "; ".join((verdict or {}).get("reasons", ()))[:5000]
        tags = [RunTag("headrace.passed", passed), RunTag("headrace.reasons", reasons)]
        self._client.log_batch(run_id, metrics, params, tags)
        self._client.set_terminated(run_id)

    def _model_version(self, store: LineStore, version: Version, run_id: str) -> str:
        number = self._number(version.version)
        if number is not None:
            return number
        remote = urlsplit(store.files.root).scheme not in ("", "file")
        top = store.files.root if remote else f"headrace://{version.line}"
        made = self._client.create_model_version(
            version.line, f"{top}/versions/{version.version}", run_id, {_TAG: version.version}
        )
        return str(made.version)

    def _number(self, version: str) -> str | None:
        wanted = f"name = '{self._spec.line}' and tags.`{_TAG}` = '{version}'"
        found = self._client.search_model_versions(wanted, max_results=1)
        return str(found[0].version) if found else None


def _client(url: str) -> Any:
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # the next pass tries again
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return MlflowClient(tracking_uri=url, registry_uri=url)


def _params(spec: LineSpec, version: Version) -> dict[str, Any]:
    return {
        "line": version.line,
        "family": spec.model.family,
        "feature_service": version.feature_service,
        "code": version.code,
        "parent": version.parent,
        "kind": version.kind,
        "from_tick": version.from_tick,
        "to_tick": version.to_tick,
        "excluded": version.excluded,
        "fingerprint": version.fingerprint,
    }


def _aliases(store: LineStore) -> dict[str, str]:
    champion = store.champion()
    wanted = {} if champion is None else {"champion": champion.version}
    try:
        wanted["previous"] = store.rollback_target()[1]
    except InputError:  # there is none yet, or its files are gone
        wanted.pop("previous", None)
    newest = store.newest()
    if newest is not None and newest != wanted.get("champion"):
        verdict = store.verdict(newest)
        if (verdict is None or verdict.get("passed")) and not _served(store, newest):
            wanted["challenger"] = newest
    return wanted


def _served(store: LineStore, version: str) -> bool:
    made_us = datetime.fromisoformat(store.get(version).created_at).timestamp() * 1e6
    since = takewhile(lambda champion: champion.at_us >= made_us, store.champions())
    return any(champion.version == version for champion in since)


def _waiting(store: LineStore, wanted: set[str], known: set[str]) -> list[str]:
    """Versions to write to MLflow; adds to `known` what will never have to be looked at again."""
    waiting = []
    for name in store.files.names("versions"):
        if name in known and name not in wanted:
            continue
        try:
            by_cycle = store.get(name).publisher == CYCLE
        except InputError:  # claimed, and not published yet
            continue
        done = _is_done(store, name)
        if (by_cycle or name in wanted) and not done:
            waiting.append(name)
        if not by_cycle or (done and store.verdict(name) is not None):
            known.add(name)
    return waiting


def _is_done(store: LineStore, version: str) -> bool:
    body = tracked(store, version)
    return body is not None and (body["judged"] or store.verdict(version) is None)


def _without_password(text: str, url: str) -> str:
    password = urlsplit(url).password
    return text.replace(password, "***") if password else text
