"""Redis as online store: Feast's own, written in one pipeline, with `ttl` and marks.

The hashes are Feast's (docs/specs/online_store_format.md of the project): one for each entity
key, holding the features of all views of that key. Feast's client leaves a row out that is not
newer than the stored one; here the last write wins, as in SQLite, because ticks are pushed in
order and a kept Redis may hold the rows of another past.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal

import pyarrow as pa
from feast import FeatureView
from feast.infra.online_stores.redis import RedisOnlineStore, RedisOnlineStoreConfig
from feast.repo_config import RepoConfig
from pydantic import SecretStr
from redis import Redis
from redis import asyncio as redis_asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError  # noqa: A004 - in the place of the builtin
from redis.retry import Retry

from headrace.errors import EnvironmentFault
from headrace.store.encode import entity_keys, int_of, int_values, timestamps
from headrace.store.latest import Row
from headrace.store.marks import check_mark, newest_us
from headrace.store.ttl import HonoursTtl

TIMEOUT_S: Final = 5.0
_ADVANCE: Final = """
local held = redis.call('GET', KEYS[1]) or ''
if held == ARGV[1] then redis.call('SET', KEYS[1], ARGV[2]) end
return held
"""


class HeadraceRedisOnlineStoreConfig(RedisOnlineStoreConfig):  # type: ignore[misc]
    """`url` (`redis://` or `rediss://`) in place of Feast's connection string.

    Feast cuts its string at commas and reads `password=0123` as a number; a URL has neither trap.
    """

    type: Literal["headrace.store.redis.HeadraceRedisOnlineStore"] = (
        "headrace.store.redis.HeadraceRedisOnlineStore"
    )
    url: SecretStr
    skip_dedup: bool = True
    timeout_s: float = TIMEOUT_S


class HeadraceRedisOnlineStore(HonoursTtl, RedisOnlineStore):  # type: ignore[misc]
    """Feast's hashes, and one key for each view's mark."""

    _client: Redis | None = None
    _client_async: redis_asyncio.Redis | None = None

    def _get_client(self, online_store_config: HeadraceRedisOnlineStoreConfig) -> Redis:
        if self._client is None:
            self._client = Redis.from_url(
                _url(online_store_config),
                socket_timeout=online_store_config.timeout_s,
                socket_connect_timeout=online_store_config.timeout_s,
                # once, for a connection that Redis has closed; what took too long, takes too long
                retry=Retry(NoBackoff(), 1, supported_errors=(ConnectionError,)),
            )
        return self._client

    async def _get_client_async(
        self, online_store_config: HeadraceRedisOnlineStoreConfig
    ) -> redis_asyncio.Redis:
        if self._client_async is None:
            self._client_async = redis_asyncio.Redis.from_url(
                _url(online_store_config),
                socket_timeout=online_store_config.timeout_s,
                socket_connect_timeout=online_store_config.timeout_s,
                retry=AsyncRetry(NoBackoff(), 1),
            )
        return self._client_async

    def check(self, config: RepoConfig) -> None:
        """Ask whether Redis is there; raises `redis.RedisError`."""
        self._get_client(config.online_store).ping()

    def mark_us(self, config: RepoConfig, view: str) -> int | None:
        """Time of the newest row that `write_rows` wrote to the view; None where it never did."""
        return _mark(self._get_client(config.online_store).get(_mark_key(config, view)))

    def write_rows(
        self, config: RepoConfig, view: FeatureView, rows: pa.Table, after_us: int | None
    ) -> int:
        """Replace the rows of these keys in one pipeline, the mark last; return the new mark.

        `rows` holds join keys, `event_timestamp` and int64 features without nulls. Each row
        changes as a whole. Raises `EnvironmentFault` where the mark is not `after_us` any more;
        the rows are written then, but not marked, so that they are pushed again.
        """
        names, fields = self._generate_hset_keys_for_features(view)
        columns = [int_values(rows[name]) for name in names[:-1]]
        columns.append(timestamps(rows["event_timestamp"]))
        project = config.project.encode()
        mark_us = newest_us(rows, after_us)
        with self._get_client(config.online_store).pipeline(transaction=False) as pipe:
            for key, *values in zip(entity_keys(view, rows), *columns, strict=True):
                pairs = [part for pair in zip(fields, values, strict=True) for part in pair]
                pipe.execute_command("HSET", key + project, *pairs)
            expected = "" if after_us is None else after_us
            pipe.eval(_ADVANCE, 1, _mark_key(config, view.name), expected, mark_us)
            held = pipe.execute()[-1]
        check_mark(view.name, _mark(held), after_us)
        return mark_us

    def read_rows(
        self, config: RepoConfig, asked: Sequence[tuple[FeatureView, Sequence[bytes]]]
    ) -> tuple[list[int | None], list[list[Row | None]]]:
        """Each view's mark, and the rows of its keys with features in the order of the view.

        In one round trip, the marks first: all that was written until then is in the rows. None
        stands where no row is. Safe beside any other call.
        """
        project = config.project.encode()
        with self._get_client(config.online_store).pipeline(transaction=False) as pipe:
            for view, _ in asked:
                pipe.get(_mark_key(config, view.name))
            for view, keys in asked:
                fields = self._generate_hset_keys_for_features(view)[1][:-1]
                for key in keys:
                    pipe.execute_command("HMGET", key + project, *fields)
            answers = iter(pipe.execute())
        marks = [_mark(next(answers)) for _ in asked]
        return marks, [[_row(next(answers)) for _ in keys] for _, keys in asked]

    def clear(self, config: RepoConfig, view: FeatureView) -> None:
        """Delete a view's mark and rows; the mark first, so that a crash in between is seen."""
        self._get_client(config.online_store).delete(_mark_key(config, view.name))
        self.delete_table(config, view)

    def update(
        self, config: RepoConfig, tables_to_delete: Sequence[FeatureView], *rest: Any, **named: Any
    ) -> None:
        """Feast's deletion of views; each loses its mark."""
        for view in tables_to_delete:
            self._get_client(config.online_store).delete(_mark_key(config, view.name))
        super().update(config, tables_to_delete, *rest, **named)


def _row(values: Sequence[bytes | None]) -> Row | None:
    if not any(values):
        return None
    return tuple(None if value is None else int_of(value) for value in values)


def _url(config: HeadraceRedisOnlineStoreConfig) -> str:
    url: str = config.url.get_secret_value()
    if not url or "$" in url:
        raise EnvironmentFault(
            "the features of this home are in Redis: set HEADRACE_ONLINE_STORE to its URL"
        )
    return url


def _mark_key(config: RepoConfig, view: str) -> str:
    return f"headrace:mark:{config.project}:{view}"


def _mark(held: bytes | None) -> int | None:
    return int(held) if held else None
