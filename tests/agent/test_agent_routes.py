"""What the network may ask of agents' doors without an agent's certificate: nothing but the CA and to enrol."""

import http.client
import json
import socket
import ssl
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from agent_process import AgentSite

from ndagent.wire import routes
from ndcollector import pki

GUARDED = [
    ("POST", routes.BATCHES), ("POST", routes.RENEW), ("POST", routes.STATUS), ("GET", routes.POLICY),
]  # fmt: skip
CONNECT = b"\x10\x13\x00\x04MQTT\x04\x02\x00\x3c\x00\x07agent-1"  # MQTT 3.1.1 §3.1


def context(site: AgentSite, certificate: Path | None = None) -> ssl.SSLContext:
    """A client's TLS, with this certificate."""
    made = ssl.create_default_context(cafile=site.pki / "ca.crt")
    if certificate is not None:
        made.load_cert_chain(certificate, certificate.with_suffix(".key"))
    return made


def device(site: AgentSite) -> Path:
    """The certificate of a firewall: the same CA, but no agent."""
    return pki.issue(site.pki, pki.Subject("device", "fw-1"), now=datetime.now(UTC)).certificate_file


def ask(site: AgentSite, method: str, path: str, tls: ssl.SSLContext) -> tuple[int, bytes]:
    """One request and its answer."""
    connection = http.client.HTTPSConnection("localhost", site.https_port, context=tls, timeout=10)
    try:
        connection.request(method, path, body=b"{}" if method == "POST" else None)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def mqtt_answers(site: AgentSite, tls: ssl.SSLContext) -> bytes:
    """What the MQTT door says to a CONNECT; nothing where it closes. (In TLS 1.3 a client learns of it on reading.)"""
    with (
        socket.create_connection(("localhost", site.mqtt_port), timeout=10) as raw,
        tls.wrap_socket(raw, server_hostname="localhost") as connection,
    ):
        try:
            connection.sendall(CONNECT)
            return connection.recv(100)
        except (ssl.SSLError, ConnectionError):
            return b""


def test_every_door_refuses_who_has_no_agents_certificate(site: AgentSite) -> None:
    """None, and that of a device; nothing is stored, each is counted."""
    nobody, firewall = context(site), context(site, device(site))
    for method, path in GUARDED:
        status, body = ask(site, method, path, nobody)
        assert (status, json.loads(body)["remedy"][:11]) == (401, "enrol first"), path
        with pytest.raises((ssl.SSLError, ConnectionError, http.client.HTTPException)):
            ask(site, method, path, firewall)
    assert mqtt_answers(site, nobody) == b""
    assert mqtt_answers(site, firewall) == b""
    assert ask(site, "GET", routes.CA, nobody)[0] == 200
    assert ask(site, "POST", routes.ENROLL, nobody)[0] == 400
    refused = 'nd_input_refused_connections_total{input="%s",reason="%s"}'
    counted = site.collector.metrics()
    assert counted[refused % ("https", "wrong_kind")] == len(GUARDED)
    assert counted[refused % ("mqtt", "wrong_kind")] == 1
    assert counted[refused % ("mqtt", "no_certificate")] == 1
    assert site.collector.events() == []


def test_an_agents_certificate_opens_them(site: AgentSite) -> None:
    """So that the refusals above are not those of a door that is always shut."""
    issued = pki.issue(site.pki, pki.Subject("agent", "agent-1"), now=datetime.now(UTC)).certificate_file
    agent = context(site, issued)
    deadline = time.monotonic() + 20
    while ask(site, "GET", routes.POLICY, agent)[0] != 204:  # the inventory hears of it within seconds
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert mqtt_answers(site, agent)[:4] == b"\x20\x02\x00\x00"  # CONNACK, accepted
