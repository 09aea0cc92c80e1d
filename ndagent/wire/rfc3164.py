r"""RFC 3164 ("BSD") messages as devices really write them: the readable specification of the compiled twin.

RFC 3164 describes what was seen, not what must be; there is no version, year, zone or escape. So this is a list of the
forms seen, read from left to right without ever going back, and whatever is not recognised is left in `message`.

Promises: linear time; a valid PRI with any text behind it is an event (§4.3.2: without a valid date all of it is
CONTENT); nothing but the parts named here is taken out of `message`.

    text    = fortigate / [lead date end] [host] [tag] message / lead [uptime ": "] mnemonic message
    lead    = [": "] [number ": "] [host ": "] [number ": "]  ; NX-OS, IOS sequence numbers and origin-id
              ["*" task ": "] [[host " "] node ":"] ["*" / "."]  ; AireOS; IOS-XR, as in RP/0/RSP0/CPU0:Mar 15
    uptime  = h:mm:ss / 5d23h / 1w2d  ; IOS without clock
    date    = [weekday] [year] Mmm d [year] time  /  yyyy-mm-dd T time  /  yyyy/mm/dd time
    time    = h:mm:ss [("." / ",") digits] [" AM" / " PM"] [Z / offset / " " zone] [" " year]
    zone    = abbreviation / offset / ("UTC" / "GMT" / "TZ") hours  ; EST5EDT and the like count as abbreviations
            / word  ; behind a lead, before a colon: an administrator's own name for the origin's zone
    end     = ":" / " " / end of text
    host    = word                  ; only behind a date that a space ends, and not the last word
            / word [":"] [" :"]     ; anywhere, if a Cisco mnemonic (%ASA-6-302013) follows
            / "Message forwarded from " word ":"   ; AIX
    tag     = name ":" (" " / tab / end)  /  [severity " "] name "[" pid "]:"  ; F5 writes "notice tmm[14001]:"
    fortigate = ["logver=" ...] "date=" yyyy-mm-dd " time=" hh:mm:ss ["." digits] ... [" devname=" host] [" tz=" offset]
              ; all of it is the message

A word with a colon at its end is a tag, not a host, so a missing host is found; "last message repeated" is no host.
Cisco's sequence number, task, node and its mark for a clock that is not set are not kept, nor is F5's severity, which
PRI has (the spool and keep_original have them).
"""

import re
from typing import NamedTuple

from ndagent.wire.ecs import Fields
from ndagent.wire.regex import compile_pattern
from ndagent.wire.rfc5424 import offset_seconds
from ndagent.wire.times import POSIX_ZONES, Zone, fixed_zone, infer_year, instant_text, load_zone, wall_seconds

_MONTHS = {month: index + 1 for index, month in enumerate(b"jan feb mar apr may jun jul aug sep oct nov dec".split())}
_POSIX = {name.encode(): name for name in POSIX_ZONES}

_UPTIME = rb"[*.]?+ (?: (?: [0-9]++ (?-i:[ywdhms]) ){2}+ | [0-9]++ : [0-9]{2} : [0-9]{2} (?: \. [0-9]++ )?+ ) : \  "
_LEAD = (
    rb"""(?ix)
    \ *+ (?P<lead> (?: : (?!:) \ *+ )?+
    (?: [0-9]++ : \ ++ )?+
    (?: (?! [0-9]*+ : \  | [0-9]{4} [-/] [0-9]{2} [-/] [0-9]{2} t |"""
    + _UPTIME
    + rb""") (?P<origin> [0-9a-z._:%/@\x80-\xff-]++ ) (?<= [^:]: ) \ ++ )?+
    (?: [0-9]++ : \ ++ )?+
    """
)
_NODE = rb"[0-9a-z]++ (?: / [0-9a-z]++ ){2,}+ : (?= [0-9a-z*.] )"
_DATE = compile_pattern(
    _LEAD
    + rb"""(?P<task> \* [0-9a-z_.-]++ : \ ++ )?+
    (?P<node> (?: (?P<prefix> [0-9a-z._:%/@\x80-\xff-]++ ) \ ++ (?= """
    + _NODE
    + rb") )?+ "
    + _NODE
    + rb""" )?+
    [*.]?+ )
    (?: (?: (?:mon|tue|wed|thu|fri|sat|sun) ,?+ \ ++ )?+
        (?: (?P<year_first> [0-9]{4} ) \ ++ )?+
        (?P<month> jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec ) \ ++ (?P<day> [0-9]{1,2}+ )
        (?: ,?+ \ ++ (?P<year> [0-9]{4} ) (?= ,?+ \  ) )?+ ,?+ \ ++
      | (?P<iso_year> [0-9]{4} ) (?P<dash> [-/] ) (?P<iso_month> [0-9]{2} ) (?P=dash) (?P<iso_day> [0-9]{2} )
        (?: t | \ ++ )
    )
    (?P<hour> [0-9]{1,2}+ ) : (?P<minute> [0-9]{2} ) : (?P<second> [0-9]{2} ) (?: [.,] (?P<fraction> [0-9]++ ) )?+
    (?: \ ?+ (?P<half> (?-i:AM|PM) ) (?= [ :] | \Z ) )?+
    (?P<offset> z | (?P<sign> [+-] ) (?P<hours> [0-9]{2} ) (?: :?+ (?P<minutes> [0-9]{2} ) )?+ )?+
    """
)
_ZONE = compile_pattern(
    rb" (?:([A-Z][A-Z0-9]{0,7}+)|(?:UTC|GMT|TZ)?+([+-])([0-9]{1,2}+)(?::?+([0-9]{2}))?+)(?=[ :]|\Z)"
)
_OWN_ZONE = compile_pattern(rb" [A-Za-z][0-9A-Za-z_+-]{0,9}+(?=:)")
_UNDATED = compile_pattern(_LEAD + rb") (?: " + _UPTIME + rb"\ *+ )?+ (?= % (?-i:[A-Z]) )")
_YEAR = compile_pattern(rb" ((?:19|20)[0-9]{2})(?=:?+(?: |\Z))")  # "2001:db8::1" is a host
_END = compile_pattern(rb" *+:(?!:) *+| ++|\Z")
_FORWARDED = compile_pattern(rb"(?:Message f|F)orwarded from (?!:)([0-9A-Za-z._:%/@\x80-\xff-]++)(?<=[^:]:) ")
_WORD = compile_pattern(rb"(?!%)([0-9A-Za-z._:%/@\x80-\xff-]++) ++(?:: ++)?+(%[A-Z])?+")
_NAME, _PID = rb'([^\x00-\x20\x7f:\[\]"=,;<>{}|]++)', rb"\[([^\x00-\x20\[\]]*+)\]:"
_TAG = compile_pattern(rb" *+" + _NAME + rb"(?:" + _PID + rb" ?+|:(?: |(?=\t)|\Z))")
_SEVERITY = compile_pattern(
    rb" *+(?:emerg|alert|crit|err|warning|notice|info|debug) ++(?=" + _NAME + _PID + rb")"
)
_FORTIGATE = compile_pattern(
    rb"date=([0-9]{4})-([0-9]{2})-([0-9]{2}) time=([0-9]{2}):([0-9]{2}):([0-9]{2})(?:\.([0-9]++))?+(?= |\Z)"
)
_DEVNAME = compile_pattern(rb' devname=(?:"([^"]++)"|([^" ]++))')
_TZ = compile_pattern(rb' tz="?+([+-])([0-9]{2}):?+([0-9]{2})')


def parse(text: bytes, *, zone: Zone, near: int) -> Fields:
    """Take apart what follows the PRI; `zone` is the origin's, `near` the receive time in Unix seconds."""
    fortigate = _FORTIGATE.match(text, _fortigate_start(text))
    if fortigate is not None:
        return _parse_fortigate(fortigate, zone=zone, near=near)
    date = _read_date(text, zone=zone, near=near)
    host, at = date.host, date.end
    if date is _NO_DATE and (undated := _UNDATED.match(text)) is not None:
        host, at = _origin(undated), undated.end()
    elif host is None:
        host, at = _read_host(text, date)
    if host is not None and (severity := _SEVERITY.match(text, at)) is not None:
        at = severity.end()
    tag = _TAG.match(text, at)
    if tag is None or tag[1].isdigit():
        return Fields(text[at:], timestamp=date.timestamp, host=host)
    return Fields(text[tag.end() :], timestamp=date.timestamp, host=host, app=tag[1], procid=tag[2] or None)


class _Date(NamedTuple):
    """Where the date ended (0: there was none), what it meant, and the host before it (Cisco's origin-id)."""

    end: int
    by_space: bool = False
    timestamp: bytes | None = None
    host: bytes | None = None


_NO_DATE = _Date(0)


def _read_date(text: bytes, *, zone: Zone, near: int) -> _Date:
    match = _DATE.match(text)
    if match is None:
        return _NO_DATE
    at = match.end()
    year = match["year_first"] or match["year"] or match["iso_year"]
    clock_zone: Zone | None = zone
    if match["offset"] is not None:
        clock_zone = _offset_zone(match["sign"], hours=match["hours"], minutes=match["minutes"])
    elif (named := _ZONE.match(text, at)) is not None and (not named[1] or _is_zone(named[1], zone)):
        clock_zone, at = _named_zone(named, zone), named.end()
    elif match["lead"] and (own := _OWN_ZONE.match(text, at)) is not None:
        at = own.end()
    if year is None and (trailing := _YEAR.match(text, at)) is not None:
        year, at = trailing[1], trailing.end()
    end = _END.match(text, at)
    by_space = end is not None and b":" not in end[0]
    if end is None or (by_space and (match["origin"] or match["task"] or match["node"])):
        return _NO_DATE  # "app: 2024-03-01 10:00:00 text" is a tag and a message, not Cisco's origin-id
    timestamp = _instant(match, year=year, zone=clock_zone, near=near)
    return _Date(end.end(), by_space, timestamp, match["prefix"] or _origin(match))


def _origin(match: re.Match[bytes]) -> bytes | None:
    """Cisco's origin-id, which stands before the date."""
    origin = (match["origin"] or b"")[:-1]
    return None if origin in (b"", b"-") else origin


def _offset_zone(sign: bytes | None, *, hours: bytes, minutes: bytes | None) -> Zone | None:
    """The zone of a numeric offset ("Z" has no sign); None for one that cannot exist."""
    offset = offset_seconds(sign, hours=hours, minutes=minutes) if sign else 0
    return None if offset is None else fixed_zone(offset)


def _is_zone(name: bytes, zone: Zone) -> bool:
    """Whether the word behind a time is a zone; any other word is the host."""
    return name in zone.abbreviations or name in _POSIX


def _named_zone(match: re.Match[bytes], zone: Zone) -> Zone | None:
    if match[2]:
        return _offset_zone(match[2], hours=match[3], minutes=match[4])
    offset = zone.abbreviations.get(match[1])
    return load_zone(_POSIX[match[1]]) if offset is None else fixed_zone(offset)


def _instant(match: re.Match[bytes], *, year: bytes | None, zone: Zone | None, near: int) -> bytes | None:
    month = _MONTHS[match["month"].lower()] if match["month"] else int(match["iso_month"])
    day = int(match["day"] or match["iso_day"])
    hour = int(match["hour"])
    if match["half"] and 1 <= hour <= 12:
        hour = hour % 12 + 12 * (match["half"] == b"PM")
    clock = hour, int(match["minute"]), int(match["second"])
    if zone is None:
        return None
    if year is None:
        utc = infer_year(month, day, clock=clock, zone=zone, near=near)
    elif (wall := wall_seconds(int(year), month, day, clock=clock)) is None:
        utc = None
    else:
        utc = zone.to_utc(wall, near)
    return None if utc is None else instant_text(utc, second=clock[2], fraction=match["fraction"] or b"")


def _read_host(text: bytes, date: _Date) -> tuple[bytes | None, int]:
    """The host at `date.end` and where the text goes on; without one the text goes on where it was."""
    at = date.end
    if date.by_space and (forwarded := _FORWARDED.match(text, at)) is not None:
        return forwarded[1][:-1], forwarded.end()
    match = _WORD.match(text, at)
    if match is None:
        return None, at
    word = match[1]
    named = word.endswith(b":") and not word.endswith(b"::")
    if match[2]:
        host = word[:-1] if named else word
        is_number = named and host.isdigit()  # Cisco's sequence number
        return (None if is_number or host in (b"", b"-") else host), match.start(2)
    if not date.by_space or named or text.startswith(b"last message repeated ", at):
        return None, at
    return (None if word == b"-" else word), match.end(1) + 1


def _fortigate_start(text: bytes) -> int:
    """Where "date=" must stand: at the front, or behind what FortiAnalyzer puts before it."""
    start = len(text) - len(text.lstrip(b" "))
    return text.find(b" date=", start) + 1 if text.startswith(b"logver=", start) else start


def _parse_fortigate(match: re.Match[bytes], *, zone: Zone, near: int) -> Fields:
    """FortiOS: no header at all; date and time are in the device's zone, which newer versions name."""
    text = match.string
    year, month, day, hour, minute, second = map(int, match.groups()[:6])
    wall = wall_seconds(year, month, day, clock=(hour, minute, second))
    timestamp = None
    if wall is not None:
        tz = _TZ.match(text, max(text.find(b" tz="), 0))
        offset = offset_seconds(tz[1], hours=tz[2], minutes=tz[3]) if tz else None
        utc = zone.to_utc(wall, near) if offset is None else wall - offset
        timestamp = instant_text(utc, second=second, fraction=match[7] or b"")
    devname = _DEVNAME.match(text, max(text.find(b" devname="), 0))
    return Fields(text, timestamp=timestamp, host=(devname[1] or devname[2]) if devname else None)
