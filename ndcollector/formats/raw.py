"""The message as it came: event.original, byte for byte, and RFC 5424 made from the fields where it was not kept.

Promises: bytes that were not UTF-8 come out as they came in (event.original_base64). Only a line feed inside a message
changes: to #012, as rsyslog writes it, since a line feed ends the line here; one at its end is left out. What an agent
read from a file or a journal never was syslog, so it is made into it.
Refuses: keeping originals (an output with this format sees to it that the decoder does).
"""

from binascii import Error, a2b_base64

from ndcollector.formats import FormatConfig, rfc5424
from ndcollector.formats.lines import Event, Render, at

_LINE_FEED = rfc5424.LINE_FEED.encode()


def make(config: FormatConfig) -> Render:
    """See the module."""
    rebuild = rfc5424.make(config)

    def render(event: Event, line: bytes) -> bytes:
        return _original(event).removesuffix(b"\n").replace(b"\n", _LINE_FEED) or rebuild(event, line)

    return render


def _original(event: Event) -> bytes:
    if "agent" in event and at(event, "log", "syslog") is None:
        return b""
    exact, kept = at(event, "event", "original_base64"), at(event, "event", "original")
    if type(exact) is str:
        try:
            return a2b_base64(exact, strict_mode=True)
        except (Error, ValueError):
            pass  # an agent's own: its text is what there is
    return kept.encode() if type(kept) is str else b""
