"""Redis as online store: Feast's own, written in one pipeline, with `ttl`, marks and pushes.

The hashes are Feast's (docs/specs/online_store_format.md of the project): one for each entity
key, holding the features of all views of that key. Feast's client leaves a row out that is not
newer than the stored one; here the last write wins, as in SQLite, because ticks are pushed in
order and a kept Redis may hold the rows of another past.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, Final, Literal

import numpy as np
import pyarrow as pa
from feast import FeatureView
from feast.infra.online_stores.redis import RedisOnlineStore, RedisOnlineStoreConfig
from feast.repo_config import RepoConfig
from pydantic import SecretStr
from redis import Redis
from redis import asyncio as redis_asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.connection import DefaultParser
from redis.exceptions import ConnectionError  # noqa: A004 - in the place of the builtin
from redis.retry import Retry

from headrace.errors import EnvironmentFault
from headrace.store.encode import entity_keys, int_of, int_values, timestamps
from headrace.store.latest import Ints, nothing
from headrace.store.marks import check_mark, newest_us
from headrace.store.pushed import PUSHES, Holding, Push, PushedRows, features_of, told
from headrace.store.ttl import HonoursTtl

TIMEOUT_S: Final = 5.0
_ADVANCE: Final = f"""
local held = redis.call('GET', KEYS[1]) or ''
if held == ARGV[1] then
  redis.call('SET', KEYS[1], ARGV[2])
  redis.call('XADD', KEYS[2], 'MAXLEN', {PUSHES}, '*', 'after', held, 'mark', unpack(ARGV, 2))
end
return held
"""
_UNTOLD: Final[Any] = {"after": "", "mark": ""}  # as a push: follows nothing, tells no rows


class TogetherParser(DefaultParser):  # type: ignore[misc]
    """redis-py's parser (hiredis, which Feast's extra brings), that can read answers as one."""

    def expect(self, count: int) -> None:
        """Let the next `read_response` give the next so many answers, in a list.

        The head of an array is put before them, so that C makes one reply of them all.
        """
        self._reader.feed(b"*%d\r\n" % count)


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


@dataclass(frozen=True)
class _Reading:
    """How a view is read: what stands around a key in its packed HMGET, and the rows held."""

    before: bytes
    behind: bytes
    project: bytes
    ask_mark: bytes
    stream: bytes
    held: PushedRows

    def news(self) -> list[bytes]:
        """Commands that ask for the mark, and for the pushes since the last that was followed."""
        if self.held.resting:
            return [self.ask_mark]
        if self.held.last is None:
            return [self.ask_mark, _packed(b"XREVRANGE", self.stream, b"+", b"-", b"COUNT", b"1")]
        return [self.ask_mark, _packed(b"XRANGE", self.stream, b"(" + self.held.last, b"+")]

    def take(self, answers: Iterator[Any]) -> tuple[int | None, list[Push]]:
        """Their answers."""
        mark_us = _mark(next(answers))
        entries = [] if self.held.resting else next(answers)
        return mark_us, [Push.of(name, fields, self.held.features) for name, fields in entries]

    def commands(self, keys: Sequence[bytes]) -> list[bytes]:
        """A command for each row."""
        behind, project = self.behind, self.project
        return [
            b"%b$%d\r\n%b%b\r\n%b" % (self.before, len(key) + len(project), key, project, behind)
            for key in keys
        ]

    def rows(self, answers: Iterator[Any], keys: Sequence[bytes]) -> Ints:
        """Their answers, (keys, features)."""
        values = chain.from_iterable(islice(answers, len(keys)))
        found = np.fromiter(map(int_of, values), np.int64)
        return found.reshape(len(keys), self.held.width)


class HeadraceRedisOnlineStore(HonoursTtl, RedisOnlineStore):  # type: ignore[misc]
    """Feast's hashes, and for each view its mark and a stream of its newest pushes."""

    _client: Redis | None = None
    _client_async: redis_asyncio.Redis | None = None

    def __init__(self) -> None:
        super().__init__()
        self._connection: Any = None
        self._views: dict[tuple[str, tuple[str, ...]], _Reading] = {}

    def _get_client(self, online_store_config: HeadraceRedisOnlineStoreConfig) -> Redis:
        if self._client is None:
            self._client = Redis.from_url(
                _url(online_store_config),
                socket_timeout=online_store_config.timeout_s,
                socket_connect_timeout=online_store_config.timeout_s,
                parser_class=TogetherParser,
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
        keys, project = entity_keys(view, rows), config.project.encode()
        mark_us = newest_us(rows, after_us)
        pushed = told(keys, [rows[name].to_numpy() for name in names[:-1]], features_of(names[:-1]))
        with self._get_client(config.online_store).pipeline(transaction=False) as pipe:
            for key, *values in zip(keys, *columns, strict=True):
                pairs = [part for pair in zip(fields, values, strict=True) for part in pair]
                pipe.execute_command("HSET", key + project, *pairs)
            expected = "" if after_us is None else after_us
            pipe.eval(_ADVANCE, 2, *_own_keys(config, view), expected, mark_us, *pushed)
            held = pipe.execute()[-1]
        check_mark(view.name, _mark(held), after_us)
        return mark_us

    def online_write_batch(self, config: RepoConfig, table: FeatureView, *rest: Any) -> None:
        """Feast's own way of writing. It moves no mark, and whoever holds rows lets them go."""
        super().online_write_batch(config, table, *rest)
        _, stream = _own_keys(config, table)
        self._get_client(config.online_store).xadd(stream, _UNTOLD, maxlen=PUSHES)

    async def online_write_batch_async(
        self, config: RepoConfig, table: FeatureView, *rest: Any
    ) -> None:
        """The same for who awaits it, like `FeatureStore.push_async`."""
        await super().online_write_batch_async(config, table, *rest)
        _, stream = _own_keys(config, table)
        client = await self._get_client_async(config.online_store)
        await client.xadd(stream, _UNTOLD, maxlen=PUSHES)

    def read_rows(
        self,
        config: RepoConfig,
        asked: Sequence[tuple[FeatureView, Sequence[bytes]]],
        meanwhile: Callable[[], None] = nothing,
    ) -> tuple[list[int | None], list[Ints]]:
        """Each view's mark, and the rows of its keys with features in the order of the view.

        In one round trip, the marks first: all that was written until then is in the rows. Rows
        that are held (`pushed`) are not read; where those turn out to be old, in a second one.
        `MISSING` stands where nothing is. `meanwhile` is called while Redis is at work, again
        where it has to be asked again. One call at a time.
        """
        reads = [(self._reading(config, view), keys) for view, keys in asked]
        lacking = [each.held.lacking(keys) for each, keys in reads]
        commands = list(chain.from_iterable(each.news() for each, _ in reads))
        commands += _of_keys([(each, keys) for (each, _), keys in zip(reads, lacking, strict=True)])
        answers = iter(self._answers(config.online_store, commands, meanwhile))
        news = [each.take(answers) for each, _ in reads]
        found = [each.rows(answers, keys) for (each, _), keys in zip(reads, lacking, strict=True)]
        marks, rows, old = [], [], []
        for (each, keys), (mark_us, pushes), missed, read in zip(
            reads, news, lacking, found, strict=True
        ):
            marks.append(mark_us)
            if each.held.resting:
                rows.append(read)
            elif each.held.follow(mark_us, pushes):
                each.held.hold(missed, read)
                rows.append(each.held.rows(keys))
            else:
                old.append((len(rows), each, keys))
                rows.append(read)
        if old:
            again = _of_keys([(each, keys) for _, each, keys in old])
            answers = iter(self._answers(config.online_store, again, nothing))
            for place, each, keys in old:
                rows[place] = each.rows(answers, keys)
        return marks, rows

    def holdings(self) -> dict[str, Holding]:
        """What is in memory of each view that was read, by its name."""
        return {name: each.held.holding for (name, _), each in list(self._views.items())}

    def _reading(self, config: RepoConfig, view: FeatureView) -> _Reading:
        """How a view is read; made once."""
        named = (view.name, tuple(field.name for field in view.features))
        if named not in self._views:
            fields = self._generate_hset_keys_for_features(view)[1][:-1]
            mark, stream = (key.encode() for key in _own_keys(config, view))
            self._views[named] = _Reading(
                before=b"*%d\r\n$5\r\nHMGET\r\n" % (2 + len(fields)),
                behind=b"".join(map(_bulk, fields)),
                project=config.project.encode(),
                ask_mark=_packed(b"GET", mark),
                stream=stream,
                held=PushedRows(named[1]),
            )
        return self._views[named]

    def _answers(
        self,
        online: HeadraceRedisOnlineStoreConfig,
        commands: Sequence[bytes],
        meanwhile: Callable[[], None],
    ) -> list[Any]:
        """The answers to packed commands, sent at once.

        What a pipeline does, without its bookkeeping for each command, which costs more than
        Redis needs to answer (docs/performance.md), and on a connection that stays with the reads.
        """
        if self._connection is None or self._connection.pid != os.getpid():
            self._connection = self._get_client(online).connection_pool.get_connection()
        connection = self._connection

        def ask() -> list[Any]:
            connection.send_packed_command([b"".join(commands)])
            meanwhile()
            connection._parser.expect(len(commands))
            answers: list[Any] = connection.read_response()
            for answer in answers:
                if isinstance(answer, Exception):
                    raise answer
            return answers

        try:
            found: list[Any] = connection.retry.call_with_retry(
                ask, lambda _: connection.disconnect()
            )
            return found
        except BaseException:
            connection.disconnect()  # answers that were not read would be taken for the next ones
            raise

    def clear(self, config: RepoConfig, view: FeatureView) -> None:
        """Delete a view's mark and rows; the mark first, so that a crash in between is seen."""
        self._get_client(config.online_store).delete(*_own_keys(config, view))
        self.delete_table(config, view)

    def update(
        self, config: RepoConfig, tables_to_delete: Sequence[FeatureView], *rest: Any, **named: Any
    ) -> None:
        """Feast's deletion of views; each loses its mark and its pushes."""
        for view in tables_to_delete:
            self._get_client(config.online_store).delete(*_own_keys(config, view))
        super().update(config, tables_to_delete, *rest, **named)


def _bulk(part: bytes) -> bytes:
    """One argument of a command (https://redis.io/docs/latest/develop/reference/protocol-spec)."""
    return b"$%d\r\n%b\r\n" % (len(part), part)


def _packed(*parts: bytes) -> bytes:
    return b"*%d\r\n" % len(parts) + b"".join(map(_bulk, parts))


def _of_keys(reads: Sequence[tuple[_Reading, Sequence[bytes]]]) -> list[bytes]:
    """The commands that read these rows."""
    return [command for each, keys in reads for command in each.commands(keys)]


def _url(config: HeadraceRedisOnlineStoreConfig) -> str:
    url: str = config.url.get_secret_value()
    if not url or "$" in url:
        raise EnvironmentFault(
            "the features of this home are in Redis: set HEADRACE_ONLINE_STORE to its URL"
        )
    return url


def _mark_key(config: RepoConfig, view: str) -> str:
    return f"headrace:mark:{config.project}:{view}"


def _own_keys(config: RepoConfig, view: FeatureView) -> tuple[str, str]:
    """A view's mark and the stream of its pushes."""
    return _mark_key(config, view.name), f"headrace:pushes:{config.project}:{view.name}"


def _mark(held: bytes | None) -> int | None:
    return int(held) if held else None
