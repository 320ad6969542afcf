"""Kafka's brokers as every client of this process reaches them, and why they could not."""

from __future__ import annotations

import logging
import time
from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient, ClusterMetadata

from headrace.errors import EnvironmentFault
from headrace.settings import KafkaSecurity

_FIRST_LOOK_S: Final = 1.0
_PAUSE_S: Final = 0.2
_REFUSED: Final = (KafkaError._AUTHENTICATION, KafkaError.SASL_AUTHENTICATION_FAILED)
_FORBIDDEN: Final = (
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.GROUP_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
)
_QUIET: Final = logging.getLogger(f"{__name__}.client")
_QUIET.setLevel(logging.CRITICAL)  # what the client says each second an errand says once


class Brokers:
    """Addresses (`host:port`, comma separated) and how to connect there.

    `place` is what errors call it, `named_by` the setting or option that says where it is. What
    clients that were made from `options` hear of broken connections is remembered, so that
    `fault` can name the cause. The password is in no error and no `repr`.
    """

    def __init__(
        self,
        addresses: str,
        security: KafkaSecurity,
        place: str,
        named_by: str = "HEADRACE_EVENT_LOG",
    ) -> None:
        self._addresses, self._security = addresses, security
        self._place, self._named_by = place, named_by
        self._heard: KafkaError | None = None

    @property
    def options(self) -> dict[str, Any]:
        """What producer, consumer and admin client have in common, in librdkafka's words."""
        security = self._security
        given = {
            "security.protocol": security.protocol,
            "sasl.mechanism": security.mechanism,
            "sasl.username": security.username,
            "sasl.password": security.password,
            "ssl.ca.location": None if security.ca is None else str(security.ca),
        }
        return {
            "bootstrap.servers": self._addresses,
            "client.id": "headrace",
            "reconnect.backoff.max.ms": 1000,
            "logger": _QUIET,
            "error_cb": self._hear,
        } | {name: value for name, value in given.items() if value is not None}

    def admin(self, timeout_s: float) -> tuple[AdminClient, ClusterMetadata]:
        """An admin client, and the topics that its first answer within `timeout_s` names.

        Raises `EnvironmentFault` where there was none; at once where user or certificate are
        refused, which waiting would not change.
        """
        self._heard = None
        try:
            client = AdminClient(self.options)
        except KafkaException as problem:
            raise self.fault(problem) from problem
        deadline, look_s = time.monotonic() + timeout_s, _FIRST_LOOK_S
        while True:
            try:
                left_s = max(deadline - time.monotonic(), 0.001)
                return client, client.list_topics(timeout=min(look_s, left_s))
            except KafkaException as problem:
                client.poll(0)  # brings what was heard
                if self._hopeless() or time.monotonic() >= deadline:
                    raise self.fault(problem) from problem
            look_s *= 2  # a slow network's answer may take longer than one look
            time.sleep(_PAUSE_S)

    def fault(self, problem: KafkaException) -> EnvironmentFault:
        """The cause and its remedy, in a sentence."""
        error = problem.args[0]
        heard = error if error.code() in (*_REFUSED, *_FORBIDDEN) else (self._heard or error)
        return EnvironmentFault(f"{self._place}: {self._sentence(heard)}")

    def silent(self, seconds: float) -> EnvironmentFault:
        """What to say where no answer came."""
        if self._heard is not None:
            return self.fault(KafkaException(self._heard))
        return EnvironmentFault(f"{self._place}: no answer in {seconds:g} s; start Kafka there")

    def forget(self) -> None:
        """After an answer: what was heard before is over."""
        self._heard = None

    def _sentence(self, error: KafkaError) -> str:
        security, said = self._security, self._without_password(error.str())
        who = f"user {security.username!r}" if security.username else "a client without a user"
        if error.code() in _REFUSED:
            return (
                f"the broker refuses {who} ({said}); correct HEADRACE_KAFKA_SASL_USERNAME and "
                "HEADRACE_KAFKA_SASL_PASSWORD, or HEADRACE_KAFKA_SASL_MECHANISM and "
                "HEADRACE_KAFKA_SECURITY_PROTOCOL where the broker speaks another"
            )
        if error.code() in _FORBIDDEN:
            return f"{who} may not do this ({said}); grant what docs/security.md lists"
        if error.code() == KafkaError._SSL or "ssl.ca.location" in said:
            return (
                f"no encrypted connection ({said}); correct HEADRACE_KAFKA_SSL_CA_LOCATION, the "
                "file of the CA that signed the broker's certificate, or "
                "HEADRACE_KAFKA_SECURITY_PROTOCOL"
            )
        return (
            f"{said}; start Kafka there, or correct {self._named_by} or, where the broker asks for "
            "SASL or TLS, HEADRACE_KAFKA_SECURITY_PROTOCOL"
        )

    def _hear(self, error: KafkaError) -> None:
        if error.code() != KafkaError._ALL_BROKERS_DOWN:  # says less than what came before it
            self._heard = error

    def _hopeless(self) -> bool:
        return self._heard is not None and self._heard.code() in (*_REFUSED, KafkaError._SSL)

    def _without_password(self, text: str) -> str:
        password = self._security.password
        return text.replace(password, "***") if password else text

    def __str__(self) -> str:
        return self._place
