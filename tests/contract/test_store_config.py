"""Which online store a home has: by settings, without a password in any file or message."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from bench._redis import ABSENT, RedisServer, installed
from headrace.declaration import LineSpec
from headrace.errors import DeclarationError, EnvironmentFault
from headrace.settings import Settings, load_settings
from headrace.store import Store


@pytest.mark.slow
def test_the_feast_command_line_applies_the_repository(applied: Settings, tmp_path: Path):
    environ = os.environ | {
        "HEADRACE_HOME": str(tmp_path),
        "HEADRACE_LINES_DIR": str(applied.lines_dir),
    }
    feast = Path(sys.executable).with_name("feast")
    done = subprocess.run(
        [feast, "-c", str(applied.feature_repo), "apply"],
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Deploying infrastructure for shop_by_user_id" in done.stdout
    assert {path.name for path in (tmp_path / "feast").iterdir()} == {"online.db", "registry.db"}


def asked(spec: LineSpec) -> pa.Table:
    columns = {name: [None] for name in spec.columns} | {"user_id": ["ann"], "request_at": [1]}
    return pa.table(columns)


def test_a_store_that_was_not_applied_says_so(applied: Settings, shop: LineSpec, tmp_path: Path):
    with pytest.raises(EnvironmentFault, match="headrace up"):
        Store(replace(applied, home=tmp_path)).read_online(shop, asked(shop))


def test_a_line_changed_since_it_was_applied_is_refused(applied: Settings, shop: LineSpec):
    for change in ({"timezone": "Asia/Tokyo"}, {"feature_ttl": 7_200_000_000}):
        with pytest.raises(EnvironmentFault, match="another declaration"):
            Store(applied).read_online(shop.model_copy(update=change), asked(shop))


@pytest.mark.parametrize(
    "url",
    [
        "redis",
        "127.0.0.1:6379",
        "http://127.0.0.1:6379",
        "redis://",
        "redis://:hush@:6379",
        "redis://:hush@127.0.0.1:port/0",
        "redis://:hush@127.0.0.1:0/0",
        "redis://:hush@127.0.0.1:70000/0",
        "redis://:hush@127.0.0.1:6379/first",
        "redis://127.0.0.1:6379/0?password=hush",
        "redis://:hush hush@127.0.0.1:6379/0",
        "redis://:$hush@127.0.0.1:6379/0",
        "redis://:hu/sh@127.0.0.1:6379/0",
    ],
)
def test_a_wrong_url_is_refused_by_name_and_without_its_password(url: str):
    with pytest.raises(DeclarationError, match=r"HEADRACE_ONLINE_STORE=.*redis://HOST") as refused:
        load_settings({"HEADRACE_ONLINE_STORE": url})
    assert "hu" not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://127.0.0.1:6379/0", "redis://127.0.0.1:6379/0"),
        ("redis://cache", "redis://cache"),
        ("rediss://me:hush%20hush@[::1]:6380/2", "rediss://[::1]:6380/2"),
    ],
)
def test_a_good_url_is_shown_without_its_password(url: str, shown: str):
    settings = load_settings({"HEADRACE_ONLINE_STORE": url})
    assert (settings.online_store, settings.online_store_name) == (url, shown)
    assert "hush" not in repr(settings)


def test_sqlite_is_the_default(tmp_path: Path):
    for environ in ({}, {"HEADRACE_ONLINE_STORE": ""}):
        settings = load_settings({"HEADRACE_HOME": str(tmp_path)} | environ)
        assert settings.online_store is None
        assert settings.online_store_name == f"sqlite:///{tmp_path}/feast/online.db"


def test_the_password_of_redis_is_in_no_file_and_no_message(
    tmp_path: Path, apply_lines: Callable[..., Settings], redis_server: RedisServer
):
    from feast import FeatureStore

    settings = apply_lines(tmp_path, HEADRACE_ONLINE_STORE=redis_server.url)
    assert "h%40sh" in redis_server.url
    files = [path for path in settings.home.rglob("*") if path.is_file()]
    assert settings.home / "feast" / "feature_store.yaml" in files
    assert [path for path in files if b"h%40sh" in path.read_bytes()] == []
    plain = FeatureStore(repo_path=str(settings.home / "feast"))  # the variable is not set
    with pytest.raises(EnvironmentFault, match="set HEADRACE_ONLINE_STORE"):
        plain.get_online_features(["shop_by_user_id:user_views_count_1h"], [{"user_id": "ann"}])
    wrong = replace(settings, online_store=redis_server.url.replace("h%40sh", "h%40ch"))
    with pytest.raises(EnvironmentFault, match=f"127.0.0.1:{redis_server.port}/3: ") as refused:
        Store(wrong).mark_us("shop_by_user_id")
    assert "h%40" not in str(refused.value)
    store = Store(settings)
    store.mark_us("shop_by_user_id")
    assert "h%40sh" not in repr(store._store().config.online_store)


def test_settings_that_ask_for_another_online_store_are_refused(
    tmp_path: Path,
    applied: Settings,
    shop: LineSpec,
    apply_lines: Callable[..., Settings],
    redis_server: RedisServer,
):
    redis = apply_lines(tmp_path, HEADRACE_ONLINE_STORE=redis_server.url)
    for changed in (
        replace(applied, online_store=redis_server.url),
        replace(redis, online_store=None),
    ):
        with pytest.raises(EnvironmentFault, match="was written for online store"):
            Store(changed).read_online(shop, asked(shop))


def test_a_redis_that_is_away_is_named_with_the_remedy(
    tmp_path: Path, apply_lines: Callable[..., Settings], shop: LineSpec
):
    if not installed():
        pytest.skip(ABSENT)
    server = RedisServer(tmp_path, "h@sh")
    with pytest.raises(EnvironmentFault, match=f"redis://127.0.0.1:{server.port}/3: .*start Redis"):
        apply_lines(tmp_path, HEADRACE_ONLINE_STORE=server.url)
    shutil.rmtree(tmp_path / "lines")
    server.start()
    try:
        store = Store(apply_lines(tmp_path, HEADRACE_ONLINE_STORE=server.url))
        assert store.read_online(shop, asked(shop))["user_views_count_1h"].to_pylist() == [0]
        server.stop()
        for act in (lambda: store.read_online(shop, asked(shop)), lambda: store.mark_us("v")):
            with pytest.raises(EnvironmentFault, match="start Redis there"):
                act()
        server.start()
        assert store.read_online(shop, asked(shop))["user_views_count_1h"].to_pylist() == [0]
    finally:
        server.stop()
