"""Pipelines in a cluster's own list: each package once, a changed one as a new version."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from headrace.cli import app
from headrace.errors import EnvironmentFault
from headrace.launch.package import COMPILED
from headrace.launch.upload import upload
from headrace.settings import load_settings
from tests import kfp_server
from tests.kfp_server import API, TOKEN, at

PIPELINES = {path.stem for path in COMPILED.glob("*.yaml")}


remote, settings = kfp_server.remote, kfp_server.settings


def sent(body: bytes) -> bytes:
    """The package in a form that was posted."""
    return body.partition(b"\r\n\r\n")[2].rpartition(b"\r\n--")[0]


def test_every_pipeline_of_a_line_is_uploaded_as_it_was_compiled(remote, settings, capsys):
    found = upload(settings, "coupons")
    assert {one.pipeline for one in found} == PIPELINES
    assert all(one.fresh for one in found)
    assert set(remote.pipelines) == {f"coupons-{name.replace('_', '-')}" for name in PIPELINES}
    for one in found:
        package = sent(remote.versions[one.pipeline_id, one.version])
        assert package == (COMPILED / f"{one.pipeline}.yaml").read_bytes()
    assert capsys.readouterr().out == ""


def test_a_search_is_for_the_lines_that_declare_one(settings):
    assert {one.pipeline for one in upload(settings, "flights")} == PIPELINES - {"tune"}


def test_what_is_there_stays_and_what_changed_is_a_new_version(remote, settings):
    first = upload(settings, "coupons")
    again = upload(settings, "coupons")
    assert again == [replace(one, fresh=False) for one in first]
    assert len(remote.versions) == len(PIPELINES)
    changed = upload(replace(settings, kfp_volume="line-line-0"), "coupons")
    assert [one.pipeline_id for one in changed] == [one.pipeline_id for one in first]
    assert all(one.fresh and one.version_id.endswith("-v-2") for one in changed)
    package = sent(remote.versions[changed[0].pipeline_id, changed[0].version])
    assert b"pvcMount" in package.partition(b"\n---\n")[2]


def test_the_verb_tells_what_it_did(remote, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HEADRACE_HOME", str(tmp_path))
    monkeypatch.setenv("HEADRACE_KFP_ENDPOINT", remote.url)
    monkeypatch.setenv("HEADRACE_KFP_TOKEN", TOKEN)
    assert app(["pipelines", "upload", "--json"], standalone_mode=False) is None
    told = json.loads(capsys.readouterr().out)
    assert {one["name"] for one in told} == set(remote.pipelines)
    assert app(["pipelines", "upload"], standalone_mode=False) is None
    assert capsys.readouterr().out.count("there already") == len(PIPELINES)


def test_without_an_endpoint_the_setting_is_named(tmp_path):
    with pytest.raises(EnvironmentFault, match="HEADRACE_KFP_ENDPOINT is not set"):
        upload(load_settings({"HEADRACE_HOME": str(tmp_path)}), "coupons")


def test_a_refusal_is_told_without_the_token(remote, settings, tmp_path):
    with pytest.raises(EnvironmentFault, match=r"401.*HEADRACE_KFP_TOKEN") as refused:
        upload(at(remote.url, tmp_path, token="wrong-1984"), "coupons")
    assert "wrong-1984" not in str(refused.value)
    remote.status[f"{API}/pipelines/upload_version"] = 503
    with pytest.raises(EnvironmentFault, match=r"503 .*upstream is away"):
        upload(settings, "coupons")
