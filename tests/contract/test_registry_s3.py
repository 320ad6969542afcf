"""Feast's registry as an object of S3: by settings, for our store and for Feast's own SDK."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import fsspec
import pyarrow as pa
import pytest

from headrace.declaration import LineSpec
from headrace.errors import DeclarationError, EnvironmentFault
from headrace.events import TIME
from headrace.settings import Settings, find_line, load_settings
from headrace.store import Store
from tests.campaign import free_port

VIEW, AT_US = "shop_by_user_id", 1_750_000_000_000_000


@pytest.fixture(scope="module")
def applied(
    tmp_path_factory: pytest.TempPathFactory, apply_lines: Callable[..., Settings], bucket: str
) -> Settings:
    """A home whose registry lies in a bucket."""
    url = f"{bucket}/feast/registry.db"
    return apply_lines(tmp_path_factory.mktemp("s3_home"), HEADRACE_REGISTRY=url)


@pytest.fixture(scope="module")
def shop(applied: Settings) -> LineSpec:
    return find_line(applied, "shop")


def row(spec: LineSpec) -> pa.Table:
    features = {feature.name: [7] for feature in spec.views[VIEW]}
    at = pa.array([AT_US]).cast(TIME)
    return pa.table({"user_id": ["ann"], "event_timestamp": at} | features)


def asked(spec: LineSpec) -> pa.Table:
    columns = {name: [None] for name in spec.columns} | {"user_id": ["ann"]}
    return pa.table(columns | {"request_at": [AT_US + 1]})


def test_it_lies_in_the_bucket_and_serves_our_store_and_feasts_own(
    applied: Settings, shop: LineSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    from feast import FeatureStore

    assert not (applied.home / "feast" / "registry.db").exists()
    assert applied.registry is not None
    assert fsspec.filesystem("s3").info(applied.registry)["size"] > 1000
    store = Store(applied)
    store.push(shop, VIEW, row(shop))
    assert store.read_online(shop, asked(shop))["user_views_count_1h"].to_pylist() == [7]
    assert store.read_history(shop, asked(shop))["user_views_count_1h"].to_pylist() == [0]
    monkeypatch.setenv("HEADRACE_REGISTRY", applied.registry)
    plain = FeatureStore(repo_path=str(applied.home / "feast"))
    assert shop.feature_service in {service.name for service in plain.list_feature_services()}


def test_a_home_elsewhere_shares_it(
    applied: Settings, shop: LineSpec, tmp_path: Path, apply_lines: Callable[..., Settings]
) -> None:
    assert applied.registry is not None
    other = apply_lines(tmp_path, HEADRACE_REGISTRY=applied.registry)
    Store(other).push(shop, VIEW, row(shop))  # its declarations are those that are registered
    assert Store(other).mark_us(VIEW) == AT_US


def test_where_it_cannot_be_reached_the_setting_is_named(
    applied: Settings, shop: LineSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere = replace(applied, registry="s3://no-such-bucket/registry.db")
    for call in (Store(nowhere).apply, lambda: Store(nowhere).transform(shop, asked(shop))):
        with pytest.raises(EnvironmentFault, match=r"registry s3://no-such.*HEADRACE_REGISTRY"):
            call()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(EnvironmentFault, match="Could not connect to the endpoint"):
        Store(applied).read_history(shop, asked(shop))
    away = f"postgresql+psycopg://me:hunter2@127.0.0.1:{free_port()}/feast"
    with pytest.raises(EnvironmentFault, match=r"registry postgresql.*HEADRACE_REGISTRY") as told:
        Store(replace(applied, registry=away)).apply()
    assert "hunter2" not in str(told.value)


def test_settings_that_ask_for_another_registry_are_refused(
    applied: Settings, shop: LineSpec
) -> None:
    Store(applied).apply()
    with pytest.raises(EnvironmentFault, match=r"s3 registry, but the settings ask for .* file"):
        Store(replace(applied, registry=None)).read_history(shop, asked(shop))


@pytest.mark.parametrize("url", ["s3://", "s3://bucket", "s3://b/", "s3://me:hunter2@b/k", "s3:k"])
def test_what_names_no_object_is_refused(url: str) -> None:
    with pytest.raises(DeclarationError, match=r"HEADRACE_REGISTRY=.*s3://BUCKET/KEY") as refused:
        load_settings({"HEADRACE_REGISTRY": url})
    assert "hunter2" not in str(refused.value)
