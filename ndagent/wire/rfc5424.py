r"""RFC 5424 messages, from VERSION on, taken apart: the readable specification of the compiled twin.

Promises: every message that starts with "1 " and has its five header fields gives Fields whose message, structured data
and header are byte for byte what was sent; linear time whatever the bytes.

Lenient where devices are:
  * fields are separated by one or more spaces, and may be longer than the RFC's limits or hold non-ASCII bytes;
  * TIMESTAMP may use a comma, lower-case t and z, any number of digits after the point (nine are kept), an offset
    without colon or minutes, no offset at all (the origin's time zone counts), or be Unix seconds;
  * Meraki's form (Unix seconds, host and kind, no more) has its text right behind: "1 1380664922.58 MX84 flows src=…";
  * a TIMESTAMP that is none of these or cannot exist is the receive time, the other fields stand;
  * STRUCTURED-DATA may be missing, have several spaces between parameters or before "]", names of any length, and
    "]" unescaped inside a value. Where it is malformed all of it is the front of `message`; that is no parse failure.
Strict: a backslash escapes only `"`, `\` and `]` (§6.3.3), before anything else it is text; names are PRINTUSASCII
(§6.3.2); a header that ends before MSGID is a parse failure.
"""

import re
from functools import lru_cache

import orjson

from ndagent.wire.ecs import Fields
from ndagent.wire.regex import compile_pattern
from ndagent.wire.times import SECONDS_CACHED, Zone, instant_text, wall_seconds

VERSION = b"1 "

_HEADER = compile_pattern(rb"1 ++([^ ]++) ++([^ ]++) ++([^ ]++) ++([^ ]++) ++([^ ]++)(?: ++|\Z)")
_MERAKI = compile_pattern(rb"1 ++(\d{9,10}(?:\.\d++)?+) ++([^ ]++) ++([^ ]++)(?: ++|\Z)")
_TIMESTAMP = compile_pattern(
    rb"(\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d)(?:[.,](\d++))?+(?:([Zz])|([+-])(\d\d)(?::?+(\d\d))?+)?+\Z"
)
_UNIX = compile_pattern(rb"(\d{9,10})(?:\.(\d++))?+\Z")
_NAME = rb"[!#-<>-\\^-~]++"  # PRINTUSASCII without '=', '"' and ']'
_VALUE = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_ELEMENT = compile_pattern(rb"\[(" + _NAME + rb")((?: ++" + _NAME + rb"=" + _VALUE + rb")*+) *+\]", re.DOTALL)
_PARAM = compile_pattern(rb" ++(" + _NAME + rb')="([^"\\]*+(?:\\.[^"\\]*+)*+)"', re.DOTALL)
_ESCAPE = compile_pattern(rb'\\(["\\\]])')
_BOM = b"\xef\xbb\xbf"


def parse(text: bytes, *, zone: Zone, near: int) -> Fields:
    """Take apart what follows the PRI of a message that starts with VERSION; `near` is the receive time in seconds."""
    header = _HEADER.match(text)
    meraki = _MERAKI.match(text) if text[6:7] != b"-" else None  # "1 2024-" is none, and the common case
    if meraki is not None and (header is None or text[header.end() : header.end() + 1] not in (b"-", b"[")):
        timestamp = parse_timestamp(meraki[1], zone=zone, near=near)
        host, app = (None if field == b"-" else field for field in meraki.groups()[1:])
        return Fields(text[meraki.end() :], timestamp, host, app, rfc5424=True)
    if header is None:
        return Fields(text, error=b"RFC 5424 header ends before MSGID")
    timestamp, host, app, procid, msgid = header.groups()
    structured_data, message = split_structured_data(text[header.end() :])
    return Fields(
        message[3:] if message.startswith(_BOM) else message,
        parse_timestamp(timestamp, zone=zone, near=near),
        None if host == b"-" else host,
        None if app == b"-" else app,
        None if procid == b"-" else procid,
        None if msgid == b"-" else msgid,
        structured_data,
        rfc5424=True,
    )


def parse_timestamp(text: bytes, *, zone: Zone, near: int) -> bytes | None:
    """TIMESTAMP (§6.2.3) as RFC 3339 UTC; None for NILVALUE, for anything unknown, and for times that cannot exist."""
    match = _TIMESTAMP.match(text)
    if match is None:
        unix = _UNIX.match(text)
        return instant_text(int(unix[1]), second=0, fraction=unix[2] or b"") if unix else None
    wall = _wall(match[1])
    if wall is None:
        return None
    if match[4]:
        offset = offset_seconds(match[4], hours=match[5], minutes=match[6])
        if offset is None:
            return None
        utc = wall - offset
    else:
        utc = wall if match[3] else zone.to_utc(wall, near)
    return instant_text(utc, second=int(match[1][17:]), fraction=match[2] or b"")


@lru_cache(SECONDS_CACHED)
def _wall(text: bytes) -> int | None:
    """yyyy-mm-ddThh:mm:ss as seconds on its own clock."""
    clock = int(text[11:13]), int(text[14:16]), int(text[17:])
    return wall_seconds(int(text[:4]), int(text[5:7]), int(text[8:10]), clock=clock)


def offset_seconds(sign: bytes, *, hours: bytes, minutes: bytes | None) -> int | None:
    """Seconds east of UTC; None where RFC 3339 has no such offset."""
    hour, minute = int(hours), int(minutes or 0)
    if hour > 23 or minute > 59:
        return None
    seconds = hour * 3600 + minute * 60
    return -seconds if sign == b"-" else seconds


def split_structured_data(text: bytes) -> tuple[bytes | None, bytes]:
    """STRUCTURED-DATA as JSON (None for NILVALUE, none, or malformed) and MSG, from the text behind MSGID."""
    if text[:2] in (b"-", b"- "):
        return None, text[2:]
    elements: dict[str, dict[str, str | list[str]]] = {}
    end = 0
    while (element := _ELEMENT.match(text, end)) is not None:
        params = elements.setdefault(element[1].decode(), {})
        for name, value in _PARAM.findall(element[2]):
            clean = _ESCAPE.sub(rb"\1", value) if b"\\" in value else value
            key, text_value = name.decode(), clean.decode("utf-8", "replace")
            if key in params:
                _add(params, key, text_value)
            else:
                params[key] = text_value
        end = element.end()
    if not elements or text[end : end + 1] not in (b"", b" "):
        return None, text
    return orjson.dumps(elements), text[end + 1 :]


def _add(params: dict[str, str | list[str]], name: str, value: str) -> None:
    """A repeated name makes an array of its values."""
    before = params[name]
    if isinstance(before, list):
        before.append(value)
    else:
        params[name] = [before, value]
