"""Whose source and destination a device's event means: the traffic's, wherever decode.device_fields put them.

Promises: of a syslog message that tells of traffic `source` and `destination` are the traffic's ends, and who sent the
message is log.source; any other event is given back as it is. Refuses: changing the event it is given.
"""

from ndcollector.formats.lines import Event


def by_traffic(event: Event) -> Event:
    """The event as `device_fields: elastic` would have it, as far as its ends go."""
    log = event.get("log")
    if not isinstance(log, dict) or "syslog" not in log or not ("client" in event or "server" in event):
        return event
    sender = event.get("source", {})
    ends = {"source": event.get("client", {}), "destination": event.get("server", {})}
    return {**event, **ends, "log": {**log, "source": sender}}
