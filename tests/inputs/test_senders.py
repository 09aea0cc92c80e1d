"""Who sent a datagram, in a table of a fixed size: on its bound, and one beyond."""

import socket

from ndagent.core.datagrams import _pack_address
from ndagent.core.metrics import Metrics
from ndagent.core.networks import AllowedNetworks, parse_network
from ndagent.core.senders import Senders


def sender(number: int) -> bytes:
    return _pack_address(socket.AF_INET, (f"10.0.0.{number}", 514))


def table(metrics: Metrics, *networks: str) -> Senders:
    return Senders("udp", allow=AllowedNetworks([parse_network(one) for one in networks]), most=16, metrics=metrics)


def test_the_least_recently_seen_makes_room() -> None:
    """Not the first that came: a device that talks on is not looked up anew because of a burst."""
    metrics = Metrics()
    senders = table(metrics)
    known = [senders.origin(sender(number)) for number in range(16)]
    assert senders.origin(sender(0)) is known[0], "16 of 16: nobody had to go"
    assert senders.origin(sender(99)) is not None
    assert len(senders) == 16
    assert senders.origin(sender(0)) is known[0], "it was seen since"
    assert senders.origin(sender(1)) is not known[1], "this one was not, and is made anew"
    senders.report()
    assert metrics.registry.get_sample_value("nd_input_senders_forgotten_total", {"input": "udp"}) == 2
    assert metrics.registry.get_sample_value("nd_input_senders", {"input": "udp"}) == 16


def test_those_that_may_not_send_are_remembered_too() -> None:
    """And bounded by the same table: a refusal must not cost more than a message."""
    senders = table(Metrics(), "10.0.0.8/29")
    assert [number for number in range(16) if senders.origin(sender(number)) is not None] == list(range(8, 16))
    for number in range(200):
        senders.origin(sender(number))
    assert len(senders) == 16
