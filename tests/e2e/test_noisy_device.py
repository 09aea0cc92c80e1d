"""One device that sends too fast is read more slowly, alone: real TLS senders, real inputs."""

import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from collector_site import Site, messages

NOISY_EVENTS = 30_000
_LIMITED = 'nd_input_limited_origins{input="syslog_tls"}'
_SECONDS = 'nd_input_limited_seconds_total{input="syslog_tls"}'


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """A collector that gives each device 200 events a second."""
    limits = {"events_per_second_per_origin": 200.0}
    site = Site(tmp_path, inputs={"syslog_tls": {"limits": limits}})
    with site.collector:
        yield site


def test_a_noisy_device_waits_and_a_quiet_one_does_not(site: Site) -> None:
    """Two connections of the noisy one share its bucket; the stop takes all that both had sent."""
    noisy = [site.connect("fw-loud") for _ in range(2)]
    half = NOISY_EVENTS // 2
    parts = [messages(half), messages(half, first=half)]
    senders = [threading.Thread(target=one.sendall, args=(data,)) for one, data in zip(noisy, parts, strict=True)]
    for sender in senders:
        sender.start()
    site.wait_for_metric(_LIMITED, 2)
    site.send(100, device="fw-quiet", first=10**6)

    def quiet() -> int:
        return sum(1 for event in site.collector.events() if int(event["message"].rpartition(" ")[2]) >= 10**6)

    site.collector.process.wait_until(lambda: quiet() == 100, "the quiet device's events", 15)
    assert len(site.collector.events()) < NOISY_EVENTS, "the noisy one is still held"
    shown = site.command("top", "--once").stdout
    assert re.search(r"reading, \d slowed", shown), shown
    assert "fw-loud sends more than limits allow" in site.collector.process.log.read_text()
    site.collector.process.wait_until(lambda: site.collector.metrics()[_SECONDS] >= 1, "time counted as held", 15)
    for sender in senders:
        sender.join(30)
        assert not sender.is_alive(), "the kernel's buffers hold the rest"
    assert site.collector.stop() == 0
    for one in noisy:
        one.close()
    numbers = sorted(site.numbers())
    assert numbers == [*range(NOISY_EVENTS), *range(10**6, 10**6 + 100)]
