"""docs/envelope.md, typed: every block that it shows works against a real collector, with real clients."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from agent_process import AgentSite
from collector_process import ROOT
from services import fetch
from services.need import need

from ndagent.wire import envelope, routes

PAGE = (ROOT / "docs" / "envelope.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
SHELL = [text for language, text in BLOCKS if language == "sh"]
AGENT = "shipper-1"
pytestmark = [pytest.mark.service, pytest.mark.timeout(90)]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[AgentSite]:
    """A collector for agents, and the page's program set up in `client/`."""
    need(fetch.MOSQUITTO)
    need(fetch.TOOLS)
    with AgentSite(tmp_path) as running:
        command = SHELL[0].split()
        assert command[0] == "ndcollector"
        done = running.command(*command[1:])
        assert done.returncode == 0, done.stderr
        client = tmp_path / "client"
        client.mkdir()
        for source, name in (
            (running.pki / "ca.crt", "ca.crt"),
            (running.pki / "issued" / f"agent-{AGENT}.crt", "agent.crt"),
            (running.pki / "issued" / f"agent-{AGENT}.key", "agent.key"),
        ):
            (client / name).write_bytes(source.read_bytes())
        collector = running.collector
        collector.process.wait_until(
            lambda: collector.metrics().get('nd_agents{state="enrolled"}') == 1, "the inventory to know the program", 20
        )
        yield running


def typed(site: AgentSite, text: str) -> "subprocess.CompletedProcess[str]":
    """A block in a shell, in the client's directory; only the collector's address is another."""
    for shown, real in (("8443", site.https_port), ("8883", site.mqtt_port), ("collector.example.net", "localhost")):
        text = text.replace(shown, str(real))
    environment = fetch.together(fetch.MOSQUITTO, fetch.TOOLS)
    return subprocess.run(
        ["sh", "-c", text], cwd=site.directory / "client", env=environment, capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip


def test_every_block_does_what_the_page_says(site: AgentSite) -> None:
    """Lines by both ways; an envelope by both ways, stored under the names that it gives."""
    _, by_mqtt, by_https, envelope_https, envelope_mqtt = SHELL
    for block in (by_mqtt, by_https):
        done = typed(site, block)
        assert (done.returncode, done.stderr) == (0, "")
    (program,) = [text for language, text in BLOCKS if language == "python"]
    subprocess.run([sys.executable, "-c", program], cwd=site.directory / "client", check=True, timeout=60)
    done = typed(site, envelope_https)
    assert (done.returncode, done.stdout) == (0, '{"stored":true}')
    done = typed(site, envelope_mqtt)
    assert (done.returncode, done.stderr) == (0, "")
    site.wait_for(4)
    events = site.collector.events()
    assert {event["agent"]["id"] for event in events} == {AGENT}
    assert {event["message"] for event in events} == {"over MQTT", "over HTTPS", "first", "second"}
    named = {event["event"]["id"] for event in events if event["message"] in ("first", "second")}
    assert named == {"0123456789abcdef-1", "0123456789abcdef-2"}, "by both ways the same names"


def test_every_route_and_key_of_the_wire_is_on_the_page() -> None:
    """What the program knows and the page does not is a client that cannot be written."""
    for route in (routes.CA, routes.ENROLL, routes.RENEW, routes.BATCHES, routes.POLICY, routes.STATUS):
        assert f" {route}`" in PAGE
    for key in envelope._NAMES.values():
        assert f"`{key}`" in PAGE
    assert str(envelope.MAX_HEADER_BYTES) in PAGE
    assert str(envelope.MAX_SIGNATURE_BYTES) in PAGE
