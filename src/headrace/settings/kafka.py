"""Where Kafka is, and how its clients prove who they are and whom they talk to.

The words are those of Kafka's clients: `security.protocol`, `sasl.mechanism` and so on. An error
names the variable and the remedy, and never shows the password.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from headrace.errors import DeclarationError
from headrace.settings.values import KafkaLog, KafkaSecurity

PROTOCOLS: Final = ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL")
MECHANISMS: Final = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
_PROTOCOL: Final = "HEADRACE_KAFKA_SECURITY_PROTOCOL"
_MECHANISM: Final = "HEADRACE_KAFKA_SASL_MECHANISM"
_USERNAME: Final = "HEADRACE_KAFKA_SASL_USERNAME"
_PASSWORD: Final = "HEADRACE_KAFKA_SASL_PASSWORD"  # noqa: S105 - the name of one
_CA: Final = "HEADRACE_KAFKA_SSL_CA_LOCATION"
_URL: Final = re.compile(
    r"kafka://(?P<brokers>[^/\s,]+:\d+(,[^/\s,]+:\d+)*)/(?P<name>[A-Za-z0-9._-]+)"
)
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")


def kafka_log(url: str | None) -> KafkaLog | None:
    """Brokers and what the topics' names begin with; None: files."""
    if url is None:
        return None
    found = _URL.fullmatch(url)
    if found is None:
        raise DeclarationError(
            f"HEADRACE_EVENT_LOG={url.rpartition('@')[2]!r} names no Kafka; write "
            "kafka://HOST:PORT[,HOST:PORT]/NAME, where the topics' names begin with NAME, or leave "
            "the variable out for files"
        )
    return KafkaLog(found["brokers"], found["name"])


def kafka_security(env: Mapping[str, str]) -> KafkaSecurity:
    """How every Kafka client here connects: as before SASL and TLS where nothing is set.

    Raises `DeclarationError` for words that Kafka does not know, for SASL without its mechanism,
    username or password, and for any of those, or a CA, that the protocol would not use.
    """
    protocol = env.get(_PROTOCOL) or "PLAINTEXT"
    if protocol not in PROTOCOLS:
        raise DeclarationError(
            f"{_PROTOCOL}={protocol!r} is no protocol of Kafka's clients; set one of "
            f"{', '.join(PROTOCOLS)}, or leave it out for PLAINTEXT"
        )
    wanted = protocol.startswith("SASL")
    for name in (_MECHANISM, _USERNAME, _PASSWORD):
        if bool(env.get(name)) != wanted:
            raise DeclarationError(_told(name, protocol, wanted))
        if _CONTROL.search(env.get(name, "")):
            raise DeclarationError(f"{name} holds a control character, such as a line's end")
    mechanism = env.get(_MECHANISM) or None
    if mechanism is not None and mechanism not in MECHANISMS:
        raise DeclarationError(
            f"{_MECHANISM}={mechanism!r} is not supported; set one of {', '.join(MECHANISMS)}"
        )
    ca = env.get(_CA) or None
    if ca is not None and not protocol.endswith("SSL"):
        raise DeclarationError(
            f"{_CA} is set, but {_PROTOCOL} is {protocol}, without TLS; set SSL or SASL_SSL there, "
            "or leave the CA out"
        )
    return KafkaSecurity(
        protocol,
        mechanism,
        env.get(_USERNAME) or None,
        env.get(_PASSWORD) or None,
        None if ca is None else Path(ca).resolve(),
    )


def _told(name: str, protocol: str, wanted: bool) -> str:
    if wanted:
        return f"{_PROTOCOL}={protocol} needs {name}, which is not set; set it"
    return (
        f"{name} is set, but {_PROTOCOL} is {protocol}, without SASL; set SASL_SSL or "
        f"SASL_PLAINTEXT there, or leave {name} out"
    )
