r"""Syslog by RFC 5424, made from an event's fields.

    <PRI>1 TIMESTAMP HOSTNAME APP-NAME PROCID MSGID [nd@32473 id="…"][the message's own] MSG

Promises: our own decoder reads back the fields it wrote; header fields by syslog_header.py; a structured-data element
for the event's id (32473 is the enterprise number that RFC 5612 reserves for examples: ours until we have one), then
the message's own elements, with `"`, `\` and `]` escaped and a parameter for each of repeated values; MSG in UTF-8
without a BOM (§6.4 would have one, which receivers show as junk). A line feed is written #012, as rsyslog does.
A message that says it has our element already keeps its parameters, its `id` as `relayed_id`: receivers drop repeats by
`id`, so no sender may choose it.
Refuses: the bytes as they came (raw.py). Where there is no message there is no MSG.
"""

import re
from collections.abc import Iterator
from typing import Any

from ndcollector.formats import FormatConfig
from ndcollector.formats.lines import Event, Render, as_text, at, text
from ndcollector.formats.syslog_header import rfc5424_header

ID_ELEMENT = "nd@32473"
LINE_FEED = "#012"

_NO_NAME = re.compile(r'[^!-~]|[="\]]')
_MOST_NAME = 32
_VALUE_ESCAPES = str.maketrans({'"': '\\"', "\\": "\\\\", "]": "\\]", "\n": LINE_FEED})


def make(config: FormatConfig) -> Render:
    """See the module."""
    has_id = config.event_id

    def render(event: Event, _line: bytes) -> bytes:
        elements = "".join(_elements(event, has_id))
        message = text(event, "message").replace("\n", LINE_FEED)
        end = f" {message}" if message else ""
        return f"{rfc5424_header(event)} {elements or '-'}{end}".encode()

    return render


def _elements(event: Event, has_id: bool) -> Iterator[str]:
    """STRUCTURED-DATA (§6.3): an SD-ID must not come twice."""
    own = text(event, "event", "id") if has_id else ""
    found = at(event, "log", "syslog", "structured_data")
    sent = found if type(found) is dict else {}
    written = set()
    if own:
        written.add(ID_ELEMENT)
        relayed = _params(sent.get(ID_ELEMENT), own=True)
        yield f'[{ID_ELEMENT} id="{own.translate(_VALUE_ESCAPES)}"{"".join(relayed)}]'
    for name, params in sent.items():
        clean = _name(name)
        if clean and clean not in written:
            written.add(clean)
            yield f"[{clean}{''.join(_params(params))}]"


def _params(params: Any, *, own: bool = False) -> Iterator[str]:
    for name, values in params.items() if type(params) is dict else ():
        clean = "relayed_id" if own and name == "id" else _name(name)
        if clean:
            for value in values if type(values) is list else (values,):
                yield f' {clean}="{as_text(value).translate(_VALUE_ESCAPES)}"'


def _name(name: str) -> str:
    """SD-NAME: at most 32 printable characters without = " ] and space."""
    return _NO_NAME.sub("_", name)[:_MOST_NAME]
