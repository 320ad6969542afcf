"""How Kafka's clients connect: complete or refused by name, and the password shown nowhere."""

from __future__ import annotations

from dataclasses import astuple
from pathlib import Path

import pytest

from headrace.errors import DeclarationError
from headrace.settings import KafkaSecurity, load_settings
from headrace.stack.services import stack_environ
from headrace.stream.source import java_options

PREFIX = "HEADRACE_KAFKA_"
SASL = {
    "SECURITY_PROTOCOL": "SASL_SSL",
    "SASL_MECHANISM": "SCRAM-SHA-512",
    "SASL_USERNAME": "team",
    "SASL_PASSWORD": "hunter2",
}


def read(**given: str) -> KafkaSecurity:
    return load_settings({PREFIX + name: value for name, value in given.items()}).kafka_security


def test_without_settings_connections_are_what_they_were():
    assert read() == KafkaSecurity()
    assert read(SECURITY_PROTOCOL="", SASL_PASSWORD="") == KafkaSecurity()
    assert java_options(KafkaSecurity()) == {"kafka.security.protocol": "PLAINTEXT"}


def test_all_of_it_is_read_and_the_password_shown_nowhere(tmp_path):
    ca = tmp_path / "ca.pem"
    found = read(**SASL, SSL_CA_LOCATION=str(ca))
    assert astuple(found) == ("SASL_SSL", "SCRAM-SHA-512", "team", "hunter2", ca)
    settings = load_settings({PREFIX + name: value for name, value in SASL.items()})
    assert "hunter2" not in repr(settings) + str(settings.kafka_security)
    assert read(SECURITY_PROTOCOL="SSL").ca is None  # those that the system trusts


def test_children_of_a_stack_get_what_the_profile_said(monkeypatch):
    for name in SASL:
        monkeypatch.delenv(PREFIX + name, raising=False)
    given = {PREFIX + name: value for name, value in SASL.items()}
    settings = load_settings(given | {PREFIX + "SSL_CA_LOCATION": "/etc/ca.pem"})
    environ = stack_environ(settings, "test") | {"HEADRACE_PROFILE": "local"}
    assert load_settings(environ).kafka_security == settings.kafka_security
    assert load_settings(stack_environ(load_settings({}), "t")).kafka_security == KafkaSecurity()


@pytest.mark.parametrize("absent", ["SASL_MECHANISM", "SASL_USERNAME", "SASL_PASSWORD"])
def test_a_part_that_sasl_lacks_is_named(absent):
    with pytest.raises(DeclarationError, match=f"SASL_SSL needs {PREFIX}{absent}") as refused:
        read(**SASL | {absent: ""})
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"SECURITY_PROTOCOL": "sasl_ssl"}, "'sasl_ssl' is no protocol .* SASL_SSL"),
        (SASL | {"SASL_MECHANISM": "GSSAPI"}, "'GSSAPI' is not supported; set one of PLAIN"),
        (SASL | {"SASL_PASSWORD": "hunter2\n"}, "SASL_PASSWORD holds a control character"),
        (SASL | {"SECURITY_PROTOCOL": "SSL"}, "SASL_MECHANISM is set, but .* without SASL"),
        ({"SASL_PASSWORD": "hunter2"}, "SASL_PASSWORD is set, but .* is PLAINTEXT"),
        ({"SSL_CA_LOCATION": "/ca.pem"}, "SSL_CA_LOCATION is set, but .* without TLS"),
    ],
)
def test_what_does_not_fit_together_is_refused_with_the_remedy(given, told):
    with pytest.raises(DeclarationError, match=told) as refused:
        read(**given)
    assert "hunter2" not in str(refused.value)


def test_java_is_told_the_same_and_gets_the_authority_itself(tmp_path):
    ca = Path(tmp_path / "ca.pem")
    ca.write_text("-----BEGIN CERTIFICATE-----\n")
    found = java_options(KafkaSecurity("SASL_SSL", "SCRAM-SHA-256", "team", 'a\\b"c', ca))
    assert found == {
        "kafka.security.protocol": "SASL_SSL",
        "kafka.sasl.mechanism": "SCRAM-SHA-256",
        "kafka.sasl.jaas.config": "org.apache.kafka.common.security.scram.ScramLoginModule "
        'required username="team" password="a\\\\b\\"c";',
        "kafka.ssl.truststore.type": "PEM",
        "kafka.ssl.truststore.certificates": "-----BEGIN CERTIFICATE-----\n",
    }
    plain = java_options(KafkaSecurity("SASL_SSL", "PLAIN", "team", "x"))
    assert "plain.PlainLoginModule" in plain["kafka.sasl.jaas.config"]
