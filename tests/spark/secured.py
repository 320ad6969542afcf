"""A Kafka broker that asks who is there: listeners with SASL and TLS, beside the open one."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.spark.broker import Broker, free_ports, installed

USER, PASSWORD = "headrace", 'p\\w"d of tests;1'  # signs that a configuration could trip over
STRANGER = "stranger"  # has the same password and no rights
SCRAM = "SCRAM-SHA-256"
_LOGIN = "org.apache.kafka.common.security"
_MORE = """\
sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:ANONYMOUS;User:headrace
listener.name.sasl_ssl.ssl.keystore.type=PEM
listener.name.sasl_ssl.ssl.keystore.location={keystore}
"""


@dataclass(frozen=True)
class Secured:
    """Addresses of one broker: open, with SASL, and with SASL inside TLS that `ca` signed."""

    open: str
    sasl: str
    sasl_ssl: str
    ca: Path


@contextmanager
def running(folder: Path) -> Iterator[Secured]:
    """Start such a broker. Skips without Maven; fails without the jars."""
    installed()
    ca, keystore = certificates(folder)
    sasl, sasl_ssl = free_ports(2)
    more = _MORE.format(keystore=keystore)
    for listener in ("sasl_plaintext", "sasl_ssl"):
        for mechanism, module in (
            ("plain", f"plain.PlainLoginModule required user_{USER}={_java(PASSWORD)}"),
            (SCRAM.lower(), "scram.ScramLoginModule required"),
        ):
            login = f"{_LOGIN}.{module};".replace("\\", "\\\\")  # a properties file, too
            more += f"listener.name.{listener}.{mechanism}.sasl.jaas.config={login}\n"
    users = [
        argument
        for name in (USER, STRANGER)
        for argument in ("--add-scram", f"{SCRAM}=[name={name},password={PASSWORD}]")
    ]
    broker = Broker(folder, {"SASL_PLAINTEXT": sasl, "SASL_SSL": sasl_ssl}, more, users)
    try:
        broker.start()
        yield Secured(broker.address, f"127.0.0.1:{sasl}", f"127.0.0.1:{sasl_ssl}", ca)
    finally:
        broker.kill()


def certificates(folder: Path) -> tuple[Path, Path]:
    """A CA made for this run, and key and certificate that it signed for 127.0.0.1, in PEM."""
    ca, key, asked, signed = (folder / f"{name}.pem" for name in ("ca", "key", "asked", "signed"))
    new = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    _openssl(
        *("req", "-x509", *new, "-keyout", str(folder / "ca.key"), "-out", str(ca), "-days", "2"),
        *("-subj", "/CN=tests"),
    )
    _openssl("req", *new, "-keyout", str(key), "-out", str(asked), "-subj", "/CN=broker")
    names = folder / "names.cnf"
    names.write_text("subjectAltName=IP:127.0.0.1\n")
    _openssl(
        *("x509", "-req", "-in", str(asked), "-CA", str(ca), "-CAkey", str(folder / "ca.key")),
        *("-out", str(signed), "-days", "2", "-extfile", str(names), "-CAcreateserial"),
    )
    keystore = folder / "keystore.pem"
    keystore.write_text(key.read_text() + signed.read_text())
    return ca, keystore


def _openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)


def _java(text: str) -> str:
    """A quoted word of a login configuration."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
