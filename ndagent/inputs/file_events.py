"""Lines to events: one ECS object a line, as bytes, most of which are made once per input, file or read.

Promises: per line one `orjson.dumps` of its text and one formatting; what is rare (tags, exact bytes, parsed syslog)
costs only the lines that have it. Text is never lost to an encoding: `event.original_base64` has the bytes where a
character had to be replaced. Refuses: `event.id` and `agent.id` (see the package), files, clocks.

With `parse: syslog` a line is read as RFC 5424 or 3164 with or without its PRI, as the collector would (the same
parsers): its own time, process and host go before the reading time and this machine's name.
"""

import sys
from binascii import b2a_base64

import orjson

from ndagent import __version__
from ndagent.inputs import HostFacts
from ndagent.inputs.file_lines import CONTINUED, TRUNCATED, Taken
from ndagent.wire import rfc3164, rfc5424
from ndagent.wire.decoder import parse_message
from ndagent.wire.ecs import ECS_VERSION, Fields, PreparedOrigin, quote
from ndagent.wire.times import Zone

_TAGS = {
    TRUNCATED: b',"tags":["_truncated"]',
    CONTINUED: b',"tags":["_continued"]',
    TRUNCATED | CONTINUED: b',"tags":["_truncated","_continued"]',
}


class Events:
    """Makes the events of one input. `zone` is the time zone of syslog lines; None: lines are not parsed."""

    def __init__(self, host: HostFacts, *, dataset: str, zone: Zone | None = None) -> None:
        names = {"hostname": host.hostname, "name": host.name}
        self._ecs = b',"ecs":{"version":"%b"},"agent":%b' % (
            ECS_VERSION, orjson.dumps({"type": "ndagent", "version": __version__}),
        )  # fmt: skip
        self._host = b',"host":' + orjson.dumps(names)
        self._dataset = b'","dataset":' + orjson.dumps(dataset)
        self._syslog = None if zone is None else PreparedOrigin(b"", 0, zone)

    def lines(self, taken: Taken, *, path: str, base: int, now: bytes, now_seconds: int) -> list[bytes]:
        """The events of one piece that begins at byte `base` of the file; `now` is RFC 3339 text."""
        path_json = _path_json(path)
        if self._syslog is not None:
            return [
                self._parsed(taken, index, path_json=path_json, base=base, now=now, near=now_seconds)
                for index in range(len(taken.texts))
            ]
        head = self._head(now) + self._host + self._event(now) + b'},"log":{"file":{"path":%b},"offset":' % path_json
        dumps = orjson.dumps
        lines = [
            b'%b%d},"message":%b}\n' % (head, base + offset, dumps(text))
            for offset, text in zip(taken.offsets, taken.texts, strict=True)
        ]
        for index in taken.tags.keys() | taken.exact.keys():
            lines[index] = b'%b%b%b%b},"log":{"file":{"path":%b},"offset":%d},"message":%b%b}\n' % (
                self._head(now), self._host, self._event(now), _exact(taken, index), path_json,
                base + taken.offsets[index], dumps(taken.texts[index]), _TAGS.get(taken.tags.get(index, 0), b""),
            )  # fmt: skip
        return lines

    def trouble(self, *, path: str, message: str, offset: int, now: bytes) -> bytes:
        """The event that says what of a file is lost."""
        file = b'"log":{"file":{"path":%b},"offset":%d}' % (_path_json(path), offset)
        event = b'"event":{"kind":"pipeline_error","created":"%b%b}' % (now, self._dataset)
        return b'%b%b,%b,%b,"message":%b}\n' % (self._head(now), self._host, event, file, orjson.dumps(message))

    def _head(self, time: bytes) -> bytes:
        return b'{"@timestamp":"%b"%b' % (time, self._ecs)

    def _event(self, now: bytes) -> bytes:
        return b',"event":{"kind":"event","created":"%b%b' % (now, self._dataset)

    def _parsed(self, taken: Taken, index: int, *, path_json: bytes, base: int, now: bytes, near: int) -> bytes:
        assert self._syslog is not None  # noqa: S101 - see lines()
        fields, priority = _parse(taken.texts[index].encode("utf-8", "replace"), self._syslog, near)
        host = self._host if fields.host is None else b',"host":{"hostname":%b,"name":%b}' % ((quote(fields.host),) * 2)
        syslog = _syslog(fields, priority)
        return b'%b%b%b%b%b},"log":{"file":{"path":%b},"offset":%d%b},"message":%b%b}\n' % (
            self._head(fields.timestamp or now), host, _process(fields), self._event(now), _exact(taken, index),
            path_json, base + taken.offsets[index], syslog, quote(fields.message),
            _TAGS.get(taken.tags.get(index, 0), b""),
        )  # fmt: skip


def _path_json(path: str) -> bytes:
    """Paths have slashes here everywhere; on Windows people know them with backslashes."""
    return orjson.dumps(path.replace("/", "\\") if sys.platform == "win32" else path)


def _exact(taken: Taken, index: int) -> bytes:
    raw = taken.exact.get(index)
    return b"" if raw is None else b',"original_base64":"%b"' % b2a_base64(raw, newline=False)


def _parse(line: bytes, origin: PreparedOrigin, near: int) -> tuple[Fields, int | None]:
    """With a PRI as the collector reads it; without one (as syslog daemons write files) what stands behind it."""
    priority, fields = parse_message(line, origin=origin, near=near)
    if priority is not None:
        return fields, priority
    if line.startswith(rfc5424.VERSION):
        return rfc5424.parse(line, zone=origin.zone, near=near), None
    return rfc3164.parse(line, zone=origin.zone, near=near), None


def _process(fields: Fields) -> bytes:
    process: dict[str, object] = {}
    if fields.app is not None:
        process["name"] = fields.app.decode("utf-8", "replace")
    if fields.procid is not None and fields.procid.isdigit() and len(fields.procid) <= 18:  # fits ECS' 64-bit pid
        process["pid"] = int(fields.procid)
    return b',"process":' + orjson.dumps(process) if process else b""


def _syslog(fields: Fields, priority: int | None) -> bytes:
    """log.syslog.*: only what the line has and no other field repeats."""
    found: dict[str, object] = {}
    if priority is not None:
        found = {"priority": priority, "facility": {"code": priority >> 3}, "severity": {"code": priority & 7}}
    if fields.app is not None:
        found["appname"] = fields.app.decode("utf-8", "replace")
    if fields.msgid is not None:
        found["msgid"] = fields.msgid.decode("utf-8", "replace")
    if fields.structured_data is not None:
        found["structured_data"] = orjson.Fragment(fields.structured_data)
    return b',"syslog":' + orjson.dumps(found) if found else b""

