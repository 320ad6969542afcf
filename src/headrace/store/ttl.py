"""Feast's `ttl`, honoured online as it is offline.

Feast 0.67 filters by `ttl` in historical retrieval; online it returns whatever row is there,
however old. Here a row counts where `row time >= request time - ttl`, which is Feast's offline
rule, both ends included. The request time is the request's `request_at`, or now without one.
"""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

from feast import FeatureView
from feast.infra.online_stores.online_store import OnlineStore
from feast.protos.feast.serving.ServingService_pb2 import FieldStatus, GetOnlineFeaturesResponse
from feast.protos.feast.types.Value_pb2 import Value

Asked = list[tuple[FeatureView, list[str]]]


class HonoursTtl(OnlineStore):  # type: ignore[misc]
    """An online store whose `get_online_features` leaves expired rows out.

    Their features are null with the status OUTSIDE_MAX_AGE, before on-demand views are computed.
    `online_read`, which knows no request, returns what is stored.
    """

    def _read_features_per_fv(self, config: Any, asked: Asked, *rest: Any) -> None:
        _ask_row_times(asked)
        expiring = [(view, list(names)) for view, names in asked if view.ttl]
        super()._read_features_per_fv(config, asked, *rest)
        _expire(expiring, *rest[2:4])

    async def _read_features_per_fv_async(self, config: Any, asked: Asked, *rest: Any) -> None:
        _ask_row_times(asked)
        expiring = [(view, list(names)) for view, names in asked if view.ttl]
        await super()._read_features_per_fv_async(config, asked, *rest)
        _expire(expiring, *rest[2:4])


def _ask_row_times(asked: Asked) -> None:
    """Read `<view>__at` along: Feast's own row times are cut to seconds in SQLite.

    A store may add names for itself; Feast drops what was not requested from the answer.
    """
    for view, names in asked:
        at = f"{view.name}__at"
        if view.ttl and at not in names and any(field.name == at for field in view.features):
            names.append(at)


def _expire(expiring: Asked, response: GetOnlineFeaturesResponse, full_names: bool) -> None:
    found = dict(zip(response.metadata.feature_names.val, response.results, strict=True))
    for view, names in expiring:
        prefix = f"{view.projection.name_to_use()}__" if full_names else ""
        columns = [found[prefix + name] for name in names]
        written_us = _written_us(columns[0], found.get(f"{prefix}{view.name}__at"))
        ttl_us = view.ttl // timedelta(microseconds=1)
        asked_us = _asked_us(found.get("request_at"), len(written_us))
        for row, (at, asked_at) in enumerate(zip(written_us, asked_us, strict=True)):
            if at < asked_at - ttl_us:
                for column in columns:
                    column.values[row].CopyFrom(Value())
                    column.statuses[row] = FieldStatus.OUTSIDE_MAX_AGE


def _written_us(column: Any, at: Any | None) -> list[int]:
    """When each row was written, 0 where there is none."""
    if at is not None:
        return [value.int64_val for value in at.values]
    return [moment.ToMicroseconds() for moment in column.event_timestamps]


def _asked_us(request_at: Any | None, rows: int) -> list[int]:
    if request_at is None:
        return [time.time_ns() // 1_000] * rows
    return [value.int64_val for value in request_at.values]
