"""What families of devices tell of a message is routed by, changed and left out like any other field."""

from routing.routed import sent, syslog

from ndagent.wire.devices import FAMILIES

DENIED = b"<164>fw-1 %ASA-4-106023: Deny tcp src outside:192.0.2.66/4444 dst inside:10.0.0.1/22 by access-group"
ALLOWED = (
    b"<166>fw-1 %ASA-6-302013: Built outbound TCP connection 9 for out:192.0.2.1/80 (192.0.2.1/80) "
    b"to in:10.0.0.1/5 (10.0.0.1/5)"
)
LOGIN = b"<38>Nov 25 23:00:00 web-1 sshd[17]: Failed password for root from 192.0.2.66 port 22012 ssh2"


def test_an_output_takes_what_devices_denied() -> None:
    """Lists are searched through, and addresses are in networks: what a SIEM is asked for most often."""
    events = syslog(DENIED, ALLOWED, LOGIN, devices=FAMILIES)
    (event,) = sent(events, where='event.type == "denied" and client.ip cidr 192.0.2.0/24')
    assert event["message"].startswith("Deny tcp")
    assert len(sent(events, where="related.ip cidr 192.0.2.66")) == 2


def test_elastics_names_are_asked_for_in_the_same_way() -> None:
    """The sender stands in log.source, so that a rule on who sent it can still be written."""
    events = syslog(DENIED, LOGIN, devices=FAMILIES, device_fields="elastic")
    found = sent(events, where="source.ip == 192.0.2.66 and log.source.ip == 192.0.2.7 and event.module == cisco_asa")
    assert [event["observer"]["vendor"] for event in found] == ["Cisco"]


def test_fields_of_devices_are_dropped_and_hashed() -> None:
    """What must not leave the house stands in them too."""
    steps = [{"drop_fields": ["related", "system.auth"]}, {"hash": ["user.name"]}]
    (event,) = sent(syslog(LOGIN, devices=FAMILIES), transform=steps)
    assert "related" not in event
    assert event["user"]["name"] != "root"
    assert event["client"] == {"ip": "192.0.2.66", "port": 22012}
