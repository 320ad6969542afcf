"""Applied Feast repositories for the contract tests of the store and the server."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from bench._redis import ABSENT, RedisServer, installed
from headrace.declaration import LineSpec
from headrace.settings import PROJECT, Settings, find_line, load_settings
from headrace.store import Store
from tests.campaign import free_port
from tests.contract.command_line import Place
from tests.contract.model_kinds import KINDS, MIXTURES
from tests.s3_server import s3_bucket, s3_server
from tests.spark import broker

if TYPE_CHECKING:
    from headrace.model import Model
    from tests.contract.written_line import Line

SHOP = """
line: shop
version: 3
columns: {user_id: string, item: int, price: float, note: string}
source: {kind: live}
label: {engagement: click, attribution_window: 10m, provisional_after: 10s}
windows:
  - {name: user_views_count_1h, key: [user_id], event: impression, aggregate: count, window: 1h}
  - {name: user_clicks_count_1h, key: [user_id], event: click, aggregate: count, window: 1h}
  - {name: item_sum_1h, key: [item], event: impression, aggregate: sum, column: item, window: 1h}
  - {name: pair_count_1h, key: [user_id, item], event: impression, aggregate: count, window: 1h}
  - {name: item_user_1h, key: [item], event: click, aggregate: last, column: user_id, window: 1h}
  - {name: item_note, key: [item], event: click, aggregate: last, column: note, rank: 2, window: 1h}
  - {name: item_max_1h, key: [item], event: click, aggregate: max, column: item, window: 1h}
  - {name: item_clicked_at_1h, key: [item], event: click, aggregate: last_at, window: 1h}
request_features:
  - {name: user, kind: hash, of: user_id}
  - {name: thing, kind: hash, of: item}
  - {name: pair, kind: cross, of: [user_id, item]}
  - {name: hour, kind: hour_of_day}
  - {name: price_log, kind: log1p, of: price}
  - {name: price_bucket, kind: bucketize, of: price, boundaries: [1, 10]}
  - {name: user_ctr, kind: ratio, of: [user_clicks_count_1h, user_views_count_1h], prior: [1, 9]}
  - {name: last_user, kind: hash, of: item_user_1h}
  - {name: item_max, kind: number, of: item_max_1h}
  - {name: item_click_age, kind: since, of: item_clicked_at_1h}
  - {name: item_mean, kind: mean, of: [item_sum_1h, pair_count_1h], prior: [0, 0]}
model:
  categorical: [user, thing, pair, hour, price_bucket]
  numeric: [price_log, user_ctr]
  table_bits: 8
  embedding_dim: 2
  hidden: [4]
"""


# The same features, whose rows expire: as long as the longest window, the shortest TTL there is.
KIOSK = SHOP.replace("line: shop", "line: kiosk\nfeature_ttl: 1h")


def _apply(root: Path, **environ: str) -> Settings:
    """Settings of a home in which `shop`, `kiosk` and `coupons` are registered with Feast."""
    (root / "lines").mkdir()
    (root / "lines" / "shop.yaml").write_text(SHOP, encoding="utf-8")
    (root / "lines" / "kiosk.yaml").write_text(KIOSK, encoding="utf-8")
    shutil.copy(PROJECT / "lines" / "coupons.yaml", root / "lines")
    settings = load_settings(
        {
            "HEADRACE_HOME": str(root / "home"),
            "HEADRACE_LINES_DIR": str(root / "lines"),
            "HEADRACE_FEATURE_REPO": str(Path(PROJECT) / "feature_repo"),
        }
        | environ
    )
    Store(settings).apply()
    return settings


@pytest.fixture(scope="session")
def apply_lines() -> Callable[..., Settings]:
    """Registers the lines in a home below an empty folder; `HEADRACE_*` by keyword."""
    return _apply


@pytest.fixture(scope="module")
def applied(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Settings of an applied home of a module's own, with SQLite as its online store."""
    return _apply(tmp_path_factory.mktemp("applied"))


@pytest.fixture(scope="session")
def bootstrapped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small line that was trained in full, made once: tests work on copies."""
    from tests.contract.written_line import bootstrap  # not for those who never ask for it

    root = tmp_path_factory.mktemp("bootstrapped")
    bootstrap(root)
    return root


@pytest.fixture
def line(bootstrapped: Path, tmp_path: Path) -> Line:
    """A copy of that line to play with."""
    from tests.contract.written_line import opened

    shutil.copytree(bootstrapped, tmp_path / "copy")
    return opened(tmp_path / "copy")


@pytest.fixture(
    params=[pytest.param(k, marks=pytest.mark.slow if k in MIXTURES else ()) for k in KINDS]
)
def family(request: pytest.FixtureRequest) -> str:
    """Each kind of model in turn, by its name in `model_kinds`."""
    return str(request.param)


@pytest.fixture
def model(family: str) -> Model:
    """A model of that kind that has learned nothing."""
    from tests.contract.models import fresh  # TensorFlow, for those alone who ask for it

    return fresh(family, "first")


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A Redis that runs as long as the tests, with a password."""
    if not installed():
        pytest.skip(ABSENT)
    server = RedisServer(tmp_path_factory.mktemp("redis"), "h@sh")
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a broker that runs as long as the tests."""
    with broker.running(tmp_path_factory.mktemp("kafka")) as address:
        yield address


@pytest.fixture(scope="module")
def shop(applied: Settings) -> LineSpec:
    return find_line(applied, "shop")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings of an empty home and a free collector port."""
    return load_settings(
        {"HEADRACE_HOME": str(tmp_path), "HEADRACE_COLLECTOR_PORT": str(free_port())}
    )


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """The URL of a real S3 API that runs as long as the tests."""
    with s3_server() as url:
        yield url


@pytest.fixture(scope="module")
def bucket(s3: str) -> Iterator[str]:
    """A bucket of its own for a module's tests, on a real S3 API."""
    with s3_bucket(s3, f"headrace-{uuid.uuid4().hex}") as url:
        yield url


@pytest.fixture
def place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Place:
    made = Place(tmp_path, capsys)
    monkeypatch.setenv("HEADRACE_HOME", str(made.home))
    monkeypatch.setenv("HEADRACE_LINES_DIR", str(made.lines))
    for name in ("SERVER", "GRPC", "COLLECTOR", "LEARNER", "AIRFLOW"):
        monkeypatch.setenv(f"HEADRACE_{name}_PORT", str(free_port()))
    return made
