"""An event log in Kafka: a topic of one partition is the log, a file log beside it its copy.

One append is one transaction: its records, cut into messages of about `CHUNK_BYTES`, are read by
all or by none. Each message is an Arrow stream, with the offset of its first record and how many
messages of its append still follow in its headers. What is committed in Kafka is appended to the
copy, from which everything is read; after a kill in between, the next start fetches the rest. So
a record's offset is its position in the whole log, on every machine that holds a copy.

The topic's name is the transactional id: a second writer, wherever it runs, fences the first one
off, whose appends fail from then on.
"""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import Final

import pyarrow as pa
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition
from confluent_kafka.admin import NewTopic

from headrace.errors import EnvironmentFault, IntegrityError
from headrace.log.brokers import Brokers
from headrace.log.files import FileLog, check_records
from headrace.settings import KafkaSecurity

LOG: Final = logging.getLogger(__name__)
CHUNK_BYTES: Final = 2**19
_LARGEST: Final = 2**24  # bytes of a message: a record is far smaller, a body is 1 MiB
_SCRAPE_S: Final = 1.0  # a scrape of the metrics waits no longer
_PAUSE_S: Final = 0.2
_POSITION: Final = "kafka.json"
_FENCED: Final = (
    KafkaError._FENCED,
    KafkaError.PRODUCER_FENCED,
    KafkaError.INVALID_PRODUCER_EPOCH,
)
_OPEN: Final = KafkaSecurity()


class KafkaLog:
    """One line's event log in the topic `topic`, with its copy in `folder`.

    With `writer=True` records can be appended, and the topic is made where it is absent; otherwise
    the copy follows the topic at every look at `head`. In both cases the folder is this process's
    own until `close`. A broker that does not answer within `timeout_s` is an `EnvironmentFault`,
    one that refuses the user or shows a certificate of another CA at once.
    """

    def __init__(
        self,
        folder: Path,
        schema: pa.Schema,
        brokers: str,
        topic: str,
        *,
        writer: bool = False,
        timeout_s: float = 30.0,
        security: KafkaSecurity = _OPEN,
    ) -> None:
        self._schema, self._topic = schema, topic
        self._brokers = Brokers(brokers, security, f"kafka://{brokers}/{topic}")
        self._writes, self._timeout_s, self._folder = writer, timeout_s, folder
        self._producer: Producer | None = None
        self._fenced = False
        self._check_topic()
        self._consumer = Consumer(
            self._brokers.options
            | {
                "group.id": "headrace",  # required; offsets are kept beside the copy
                "enable.auto.commit": False,
                "isolation.level": "read_committed",
                "auto.offset.reset": "error",
                "enable.partition.eof": True,
                "fetch.message.max.bytes": _LARGEST,
            }
        )
        self._copy = FileLog(folder, schema, writer=True)
        try:
            if writer:
                self._begin()
            else:
                self._fetch()
        except BaseException:
            self.close()
            raise

    @property
    def head(self) -> int:
        """The offset that the next record will get."""
        if not self._writes:
            self._fetch()
        return self._copy.head

    @property
    def segments(self) -> int:
        """How many files hold the copy."""
        return self._copy.segments

    def append(self, table: pa.Table) -> int:
        """Make all rows durable in Kafka, then in the copy; return the first one's offset.

        Raises `InputError` for records that do not fit, `EnvironmentFault` where Kafka does not
        answer or another writer took over. The records of a failed append are in the log or not;
        the next append finds out first, and is refused where they were.
        """
        if not self._writes:
            raise EnvironmentFault(f"{self}: opened for reading; open it with writer=True")
        check_records(str(self), self._schema, table)
        if self._fenced:
            raise self._taken_over()
        if self._producer is None:
            self._resume()
        if table.num_rows == 0:
            return self._copy.head
        first = self._copy.head
        try:
            offset = self._send(first, table)
        except KafkaException as problem:
            self._failed(problem)
            if self._copy.head == first + table.num_rows:  # it had been stored
                return first
            raise EnvironmentFault(
                f"{self}: the append of {table.num_rows} records was aborted; send them again"
            ) from problem
        self._copy.append(table)
        if offset is not None:
            self._note(offset + 1)
        return first

    def join(self) -> int:
        """Join small segments of the copy; returns the number of segments that were replaced."""
        return self._copy.join()

    def read(self, start: int, stop: int) -> pa.Table:
        """Records `[start, stop)`, cut at the head of the copy."""
        return self._copy.read(start, stop)

    def last(self) -> pa.Table | None:
        """The newest record of the copy as a table of one row, or None for an empty log."""
        return self._copy.last()

    def lag(self) -> int:
        """How many of the topic's messages the copy lacks (a commit's own mark counts as one)."""
        place = TopicPartition(self._topic, 0)
        try:
            _, end = self._consumer.get_watermark_offsets(place, timeout=_SCRAPE_S)
        except KafkaException as problem:
            raise self._brokers.fault(problem) from problem
        return max(int(end) - self._position(), 0)

    def close(self) -> None:
        """Give the folder back; an append under way is aborted."""
        self._producer = None
        self._consumer.close()
        self._copy.close()

    def __str__(self) -> str:
        return str(self._brokers)

    def _check_topic(self) -> None:
        """Make the topic where it is absent; raise `EnvironmentFault` unless it is one log."""
        admin, told = self._brokers.admin(self._timeout_s)
        known = told.topics
        try:
            if self._topic in known and len(known[self._topic].partitions) != 1:
                raise EnvironmentFault(
                    f"{self}: has {len(known[self._topic].partitions)} partitions, but a log has "
                    "one order; give HEADRACE_EVENT_LOG another name"
                )
            if self._topic not in known and not self._writes:
                raise EnvironmentFault(f"{self}: there is no such topic; start its writer first")
            if self._topic not in known:
                kept = {"retention.ms": "-1", "max.message.bytes": str(_LARGEST)}
                new = NewTopic(self._topic, num_partitions=1, replication_factor=-1, config=kept)
                admin.create_topics([new])[self._topic].result(self._timeout_s)
        except KafkaException as problem:
            if problem.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:  # one killed here made it
                raise self._brokers.fault(problem) from problem

    def _begin(self) -> None:
        """Fence earlier writers off, then fetch what they committed last."""
        producer = Producer(
            self._brokers.options
            | {
                "transactional.id": self._topic,
                "transaction.timeout.ms": int(1000 * self._timeout_s),
                "message.timeout.ms": int(1000 * self._timeout_s),
                "message.max.bytes": _LARGEST,
                "compression.type": "lz4",
                "linger.ms": 0,
            }
        )
        deadline = time.monotonic() + self._timeout_s
        while True:
            try:
                producer.init_transactions(self._timeout_s)
                break
            except KafkaException as problem:
                # a broker that has just started coordinates nothing yet, and says so
                producer.poll(0)  # brings what the client heard meanwhile
                if not problem.args[0].retriable() or time.monotonic() > deadline:
                    raise self._brokers.fault(problem) from problem
            time.sleep(_PAUSE_S)
        self._fetch()
        self._producer = producer

    def _resume(self) -> None:
        """Begin again after a failure; refuse the append if the one that failed was stored."""
        before = self._copy.head
        self._begin()
        if self._copy.head != before:
            raise EnvironmentFault(
                f"{self}: {self._copy.head - before} records of an append that had failed were "
                "stored after all; send again"
            )

    def _failed(self, problem: KafkaException) -> None:
        """After an append failed: learn its fate at once if Kafka answers; else the next one does.

        Raises `EnvironmentFault` where another writer took over.
        """
        self._producer = None
        if problem.args[0].code() in _FENCED:
            self._fenced = True
            raise self._taken_over() from problem
        LOG.warning("%s: append failed: %s", self, problem)
        self._begin()

    def _send(self, first: int, table: pa.Table) -> int | None:
        """Commit the records as one transaction; the last message's offset, None if not told."""
        producer = self._producer
        assert producer is not None
        told: list[int] = []
        count = -(-table.nbytes // CHUNK_BYTES)
        rows = -(-table.num_rows // max(count, 1))
        starts = range(0, table.num_rows, rows)
        producer.begin_transaction()
        for left, start in zip(reversed(range(len(starts))), starts, strict=True):
            part = table.slice(start, rows).combine_chunks()
            producer.produce(
                self._topic,
                _encoded(part),
                partition=0,
                headers=[("first", str(first + start).encode()), ("left", str(left).encode())],
                on_delivery=lambda problem, message: (
                    None if problem else told.append(int(message.offset()))
                ),
            )
        producer.flush(self._timeout_s)
        producer.commit_transaction(self._timeout_s)
        return max(told, default=None)

    def _fetch(self) -> None:
        """Append to the copy what the topic holds beyond it, whole appends only."""
        position, parts, seen = self._position(), list[pa.Table](), False
        self._consumer.assign([TopicPartition(self._topic, 0, position)])
        while (message := self._next()) is not None:
            seen = True
            told = {name: int(value) for name, value in message.headers() or ()}
            records = _decoded(message.value())
            stop = told["first"] + records.num_rows
            if stop > self._copy.head:
                behind = self._copy.head + sum(part.num_rows for part in parts)
                if told["first"] != behind:
                    raise IntegrityError(
                        f"{self}: the message at {message.offset()} begins with record "
                        f"{told['first']}, but {self._folder} ends at {behind}; restore the topic, "
                        "or use a new home (HEADRACE_HOME)"
                    )
                parts.append(records)
            if told["left"] == 0:
                if parts:
                    self._copy.append(pa.concat_tables(parts))
                parts, position = [], message.offset() + 1
        if not seen and position == 0 and self._copy.head:
            raise IntegrityError(
                f"{self}: is empty, but {self._folder} holds {self._copy.head} records; restore "
                "the topic, or use a new home (HEADRACE_HOME)"
            )
        self._consumer.unassign()
        self._brokers.forget()
        self._note(position)

    def _next(self) -> Message | None:
        """The next message, None at the end of what is committed."""
        message = self._consumer.poll(self._timeout_s)
        if message is None:
            raise self._brokers.silent(self._timeout_s)
        problem = message.error()
        if problem is None:
            return message
        if problem.code() == KafkaError._PARTITION_EOF:
            return None
        if problem.code() in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
            raise IntegrityError(
                f"{self}: lacks what {self._folder} was copied from ({problem.str()}); restore the "
                "topic, or use a new home (HEADRACE_HOME)"
            )
        raise self._brokers.fault(KafkaException(problem))

    def _position(self) -> int:
        """The Kafka offset to read on from: as noted, or a little before; the start if unknown."""
        try:
            told = json.loads((self._folder / _POSITION).read_text(encoding="ascii"))
            if told["topic"] == self._topic and told["head"] <= self._copy.head:
                return int(told["offset"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            pass  # never noted, or torn by a power cut: read from the start, skip what is there
        return 0

    def _note(self, offset: int) -> None:
        told = {"topic": self._topic, "offset": offset, "head": self._copy.head}
        partial = self._folder / f"{_POSITION}.new"
        partial.write_text(json.dumps(told), encoding="ascii")
        partial.replace(self._folder / _POSITION)

    def _taken_over(self) -> EnvironmentFault:
        return EnvironmentFault(
            f"{self}: another process writes this log since; end one of the two (headrace down)"
        )


def _encoded(records: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, records.schema) as writer:
        writer.write_table(records)
    return bytes(sink.getvalue().to_pybytes())


def _decoded(value: bytes) -> pa.Table:
    try:
        records = pa.ipc.open_stream(value).read_all()
        records.validate(full=True)  # offsets of texts may point anywhere in bytes from outside
    except (pa.ArrowException, OSError) as problem:
        raise IntegrityError(f"a message of the event log is not readable: {problem}") from problem
    return records
