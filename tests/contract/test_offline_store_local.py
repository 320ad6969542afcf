"""Our offline store over local files: beside Feast's own, types, times, writes and refusals."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import FeatureStore
from feast.infra.offline_stores.file_source import SavedDatasetFileStorage
from feast.transformation.python_transformation import PythonTransformation

from headrace.declaration import LineSpec
from headrace.errors import InputError
from headrace.settings import Settings
from headrace.store import history
from tests.contract.history_repository import (
    BIG,
    RENAMED,
    T0,
    Repository,
    asked_rows,
    config,
    expected,
    frame,
    naive,
    repository,
    table,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:On demand feature view is an experimental"),
    pytest.mark.filterwarnings("ignore:Saving dataset is an experimental"),
    pytest.mark.filterwarnings("ignore:Retrieving datasets is an experimental"),
]


@pytest.fixture
def local(tmp_path: Path) -> Iterator[Repository]:
    yield repository("duckdb", tmp_path)


def test_feast_s_own_store_agrees_where_it_is_right(local: Repository) -> None:
    """No ties: it takes any row of a tie. Ties of `by_pair` are broken by creation."""
    asked = asked_rows()
    rows = frame(asked).astype({"event_timestamp": "datetime64[us, UTC]"})
    stock = FeatureStore(config=config("feast", local.folder))
    for as_known in (False, True):
        jobs = [
            store.get_historical_features(
                rows, ["by_pair:price"], filter_by_created_timestamp=as_known
            )
            for store in (local.feast, stock)
        ]
        ours, theirs = (job.to_arrow().sort_by("row").select(["row", "price"]) for job in jobs)
        assert ours.equals(theirs)
        assert ours["price"].null_count not in (0, ours.num_rows)


def test_rows_keep_their_order_and_types_and_none_asked_gives_none(local: Repository) -> None:
    asked = frame(asked_rows())
    found = local.feast.get_historical_features(asked, ["by_user:clicks"]).to_arrow()
    assert found.drop_columns("clicks").equals(
        pa.Table.from_pandas(asked).replace_schema_metadata(None)
    )
    nothing = local.feast.get_historical_features(asked[:0], ["by_user:clicks"]).to_arrow()
    assert nothing.schema.equals(found.schema)
    assert nothing.num_rows == 0


def test_times_without_a_zone_as_text_and_absent_ones(local: Repository) -> None:
    at = pd.Timestamp(T0 + 39, unit="us")
    for times in ([at, pd.NaT], [at.tz_localize("UTC"), None], [str(at), None]):
        rows = pd.DataFrame({"user": ["a", "a"], "event_timestamp": times})
        found = local.feast.get_historical_features(rows, ["by_user:clicks"]).to_arrow()
        wanted = naive(local.rows["by_user"], {"user": "a", "at": T0 + 39}, {"user": "user"})
        assert found["clicks"].to_pylist() == [wanted["clicks"], None]


def test_a_written_batch_is_one_more_part_and_wins_a_tie(local: Repository) -> None:
    newest = max(local.rows["by_user"], key=lambda row: row["at"])
    batch = table([{**newest, "user": "a", "clicks": BIG}], RENAMED["by_user"])
    for clicks in (BIG, BIG + 1):
        written = batch.set_column(2, "clicks", pa.array([clicks]))
        local.feast.write_to_offline_store("by_user", written.to_pandas())
    asked = frame([{"user": "a", "item": 1, "other": 1, "at": newest["at"], "weight": 1}])
    found = local.feast.get_historical_features(asked, ["by_user:clicks"]).to_arrow()
    assert found["clicks"].to_pylist() == [BIG + 1]
    assert len(list((local.folder / "by_user").iterdir())) == 5


def test_a_saved_dataset_holds_on_demand_features_too(local: Repository) -> None:
    asked = asked_rows()
    job = local.feast.get_historical_features(frame(asked), ["by_user:clicks", "made:weighed"])
    storage = SavedDatasetFileStorage(path=str(local.folder / "saved.parquet"))
    saved = local.feast.create_saved_dataset(from_=job, name="saved", storage=storage)
    again = saved.to_df()
    wanted = sorted(expected(local.rows, row)["weighed"] for row in asked)
    assert sorted(again["weighed"].tolist()) == wanted


def test_a_line_s_inputs_are_computed_on_arrow_columns_with_the_same_bits(
    applied: Settings, shop: LineSpec
) -> None:
    feast = FeatureStore(repo_path=str(applied.home / "feast"))
    refs = [f"shop_inputs:{feature.name}" for feature in shop.request_features]
    views = history.requested_on_demand(refs, feast.project, feast.registry)
    ours = views[0].feature_transformation
    assert type(ours).transform_arrow is not PythonTransformation.transform_arrow
    columns = {
        "user_id__request": pa.array(["a", None, "b"]),
        "item__request": pa.array([BIG, 3, None]),
        "price": pa.array([0.5, None, 20.0]),
        "request_at": pa.array([T0, T0 + 1, T0 + 2]),
    } | {feature.name: pa.array([BIG, None, 1]) for feature in shop.windows}
    asked = pa.table(columns)
    theirs = PythonTransformation.transform_arrow(ours, asked, views[0].features)
    found = ours.transform_arrow(asked, views[0].features)
    assert found.column_names == theirs.column_names
    for name in found.column_names:
        assert found[name].to_numpy().tobytes() == theirs[name].to_numpy().tobytes(), name


def test_history_without_rows_and_a_source_without_its_column_are_refused(
    local: Repository,
) -> None:
    with pytest.raises(InputError, match="pass entity_df"):
        local.feast.get_historical_features(
            features=["by_user:clicks"], start_date=pd.Timestamp(T0, unit="us")
        )
    for part in (local.folder / "by_user").iterdir():
        pq.write_table(pq.read_table(part).drop_columns("note"), part)
    with pytest.raises(InputError, match="source of feature view 'by_user' has no column 'note'"):
        local.feast.get_historical_features(frame(asked_rows()), ["by_user:note"]).to_arrow()
