"""A local server that speaks the published KFP v2beta1 API, as far as runs need it.

Its answers are made from the models of `kfp_server_api`. It proves the client, not a cluster.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import kfp_server_api as api
import pytest

from headrace.settings import Settings, load_settings
from tests.loopback import Answering, serving_on

TOKEN = "sesame-0451"
RUN_ID = "5f0c9a52-0000-4000-8000-000000000001"
API = "/apis/v2beta1"
JSON = api.ApiClient()


@dataclass
class Cluster:
    """What the server answers and what it was asked. `states` are told in turn, the last stays."""

    url: str = ""
    states: list[str] = field(default_factory=lambda: ["PENDING", "RUNNING", "SUCCEEDED"])
    token: str = TOKEN
    error: api.GoogleRpcStatus | None = None
    details: api.V2beta1RunDetails | None = None
    drop: int = 0  # so many further questions for the run end without an answer
    status: dict[str, int] = field(default_factory=dict)  # refusals by path
    page: str | None = None  # a sign-in page instead of every answer
    at_end: Callable[[api.V2beta1Run], None] = lambda _run: None
    experiments: list[api.V2beta1Experiment] = field(default_factory=list)
    run: api.V2beta1Run | None = None
    requests: list[tuple[str, str]] = field(default_factory=list)
    terminated: list[str] = field(default_factory=list)
    created: list[str] = field(default_factory=list)  # display names of the runs submitted
    uploaded: bytes = b""
    pipelines: dict[str, str] = field(default_factory=dict)  # ids by display name
    versions: dict[tuple[str, str], bytes] = field(default_factory=dict)  # by id and name

    def answer(self, method: str, path: str, query: dict[str, list[str]], body: Any) -> Any:
        """A model of the API for one request."""
        routes: dict[tuple[str, str], Callable[[], Any]] = {
            ("GET", f"{API}/healthz"): lambda: api.V2beta1GetHealthzResponse(multi_user=False),
            ("GET", f"{API}/experiments"): lambda: self._list(query),
            ("POST", f"{API}/experiments"): lambda: self._create_experiment(body),
            ("POST", f"{API}/runs"): lambda: self._create_run(body),
            ("GET", f"{API}/runs"): lambda: self._list_runs(query),
            ("POST", f"{API}/pipelines/upload"): lambda: self._upload(query, body),
            ("GET", f"{API}/pipelines"): lambda: self._list_pipelines(query),
            ("POST", f"{API}/pipelines"): lambda: self._create_pipeline(body),
            ("POST", f"{API}/pipelines/upload_version"): lambda: self._upload_version(query, body),
            ("GET", f"{API}/runs/{RUN_ID}"): self._get_run,
            ("POST", f"{API}/runs/{RUN_ID}:terminate"): self._terminate,
        }
        listed = re.fullmatch(rf"{API}/pipelines/(p-\d+)/versions", path)
        if method == "GET" and listed:
            return self._list_versions(listed[1], query)
        return routes[method, path]()

    def _list(self, query: dict[str, list[str]]) -> api.V2beta1ListExperimentsResponse:
        (wanted,) = json.loads(query["filter"][0])["predicates"]
        found = [e for e in self.experiments if e.display_name == wanted["stringValue"]]
        return api.V2beta1ListExperimentsResponse(experiments=found, total_size=len(found))

    def _create_experiment(self, body: Any) -> api.V2beta1Experiment:
        for known in self.experiments:  # names are unique, also for two who ask at once
            if known.display_name == body["display_name"]:
                return known
        made = api.V2beta1Experiment(experiment_id="e-1", display_name=body["display_name"])
        self.experiments.append(made)
        return made

    def _create_run(self, body: Any) -> api.V2beta1Run:
        known = {name: body.get(name) for name in api.V2beta1Run.attribute_map.values()}
        assert set(body) <= set(known), "the client sent what the API does not have"
        self.run = api.V2beta1Run(**known | {"run_id": RUN_ID, "state": "PENDING"})
        self.created.append(self.run.display_name)
        return self.run

    def _list_runs(self, query: dict[str, list[str]]) -> api.V2beta1ListRunsResponse:
        (wanted,) = json.loads(query["filter"][0])["predicates"]
        known = [self.run] if self.run is not None else []
        found = [run for run in known if run.display_name == wanted["stringValue"]]
        return api.V2beta1ListRunsResponse(runs=found, total_size=len(found))

    def _upload(self, query: dict[str, list[str]], body: bytes) -> api.V2beta1Pipeline:
        self.uploaded = body
        (name,) = query["name"]
        return api.V2beta1Pipeline(pipeline_id="p-1", display_name=name, created_at="2026-11-20")

    def _list_pipelines(self, query: dict[str, list[str]]) -> api.V2beta1ListPipelinesResponse:
        (wanted,) = json.loads(query["filter"][0])["predicates"]
        found = [
            api.V2beta1Pipeline(pipeline_id=one, display_name=name)
            for name, one in self.pipelines.items()
            if name == wanted["stringValue"]
        ]
        return api.V2beta1ListPipelinesResponse(pipelines=found or None, total_size=len(found))

    def _create_pipeline(self, body: Any) -> api.V2beta1Pipeline:
        assert set(body) <= set(api.V2beta1Pipeline.attribute_map.values())
        made = self.pipelines[body["display_name"]] = f"p-{len(self.pipelines) + 1}"
        return api.V2beta1Pipeline(pipeline_id=made, display_name=body["display_name"])

    def _list_versions(
        self, pipeline: str, query: dict[str, list[str]]
    ) -> api.V2beta1ListPipelineVersionsResponse:
        (wanted,) = json.loads(query["filter"][0])["predicates"]
        known = self.versions.keys() & {(pipeline, wanted["stringValue"])}
        found = [self._version(*one) for one in known]
        return api.V2beta1ListPipelineVersionsResponse(pipeline_versions=found or None)

    def _upload_version(
        self, query: dict[str, list[str]], body: bytes
    ) -> api.V2beta1PipelineVersion:
        (pipeline,), (name,) = query["pipelineid"], query["name"]
        assert (pipeline, name) not in self.versions, "a name is given once"
        self.versions[pipeline, name] = body
        return self._version(pipeline, name)

    def _version(self, pipeline: str, name: str) -> api.V2beta1PipelineVersion:
        there = [known for known in self.versions if known[0] == pipeline]
        number = f"{pipeline}-v-{there.index((pipeline, name)) + 1}"
        return api.V2beta1PipelineVersion(
            pipeline_id=pipeline, pipeline_version_id=number, display_name=name
        )

    def _get_run(self) -> api.V2beta1Run:
        assert self.run is not None
        self.run.state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        if self.run.state in ("SUCCEEDED", "FAILED", "CANCELED"):
            self.run.error, self.run.run_details = self.error, self.details
            self.at_end(self.run)
        return self.run

    def _terminate(self) -> dict[str, Any]:
        self.terminated.append(RUN_ID)
        return {}


def handler(cluster: Cluster) -> type[BaseHTTPRequestHandler]:
    class Handler(Answering):
        def _do(self) -> None:
            url = urlsplit(self.path)
            raw = self._body()
            cluster.requests.append((self.command, url.path))
            if url.path == f"{API}/runs/{RUN_ID}" and cluster.drop > 0:
                cluster.drop -= 1
                self.close_connection = True  # no byte of an answer: the connection is lost
                return
            if cluster.page is not None:
                self._send(200, cluster.page.encode(), "text/html")
            elif self.headers.get("authorization") != f"Bearer {cluster.token}":
                # as a careless proxy would: the answer repeats what it was sent
                said = f"bad credentials: {self.headers.get('authorization')}"
                self._json(401, {"error": said, "code": 16, "message": said})
            elif (status := cluster.status.get(url.path)) is not None:
                self._json(status, {"error": "upstream", "message": "upstream is away"})
            else:
                is_json = self.headers.get("content-type") == "application/json"
                body = json.loads(raw) if raw and is_json else raw
                answer = cluster.answer(self.command, url.path, parse_qs(url.query), body)
                self._json(200, JSON.sanitize_for_serialization(answer))

        do_GET = do_POST = _do

    return Handler


@contextmanager
def serving() -> Iterator[Cluster]:
    """A server on a free port of the loopback, as long as the block runs."""
    made = Cluster()
    with serving_on(handler(made)) as address:
        made.url = f"http://{address}"
        yield made


@pytest.fixture
def remote() -> Iterator[Cluster]:
    """A server of the test's own."""
    with serving() as made:
        yield made


@pytest.fixture
def settings(remote: Cluster, tmp_path: Path) -> Settings:
    """Settings of an empty home whose pipelines run on `remote`."""
    return at(remote.url, tmp_path)


def at(url: str, home: Path, token: str = TOKEN) -> Settings:
    """Settings of a home whose pipelines run on the cluster there."""
    return load_settings(
        {"HEADRACE_HOME": str(home), "HEADRACE_KFP_ENDPOINT": url, "HEADRACE_KFP_TOKEN": token}
    )
