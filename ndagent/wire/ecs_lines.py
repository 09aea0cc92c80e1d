"""Lines that are ECS events already: passed through as they came, or completed; both twins of the decoder call this.

Promises:
  * a JSON object that has `@timestamp` and an `event.id` leaves as exactly the bytes it came in: the first spool that
    took an event names it, and the same event keeps its id over any number of collectors;
  * one that lacks either gets it: the receive time, an id of this spool. Only then (or where line breaks stand between
    its tokens, or something before its brace) is a line written anew: same keys, order and values, no white space;
  * an id that claims this very spool is replaced: such an event comes around a second time, or is forged, and outputs
    find out where they stand from the ids that this spool gave;
  * an agent's event (its origin has an agent's certificate) is written anew with what the collector knows better:
    `agent.id` is the certificate's, `event.ingested` our receive time, `agent.clock_skew_seconds` how far the agent's
    clock was ahead where that is SKEW_TOLD_SECONDS or more; its id stays only if its own spool gave it, and then
    `ndcollector.position` says where it stands in this spool: outputs that must find their place again go by it;
  * an event that came over a way without acknowledgement has the tag _unacknowledged;
  * a line that an input of this process wrote (Flags.OWN) gets its id without being parsed (event_names.py); it leaves
    with the same members and values as by parsing, only that `event.id` stands first in `event`;
  * what is no JSON object becomes an event with tag _parse_failure, the text in `message` and, by `keep_original`, in
    `event.original`. One line out for each line in, each valid JSON that begins with its brace.
Refuses: checking the event against ECS, believing its `source` or `observer` (they are the first collector's words),
sorting its keys.

`priorities` holds log.syslog.priority where the codes of facility and severity say the same, for whoever asks the array
asks for all three; `keys` and the host's place come from host.hostname (host.name without one), else the key is that of
source.ip, else of the origin.
"""

from array import array
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from ndagent.wire.ecs import (
    MAX_HOST_BYTES,
    Fields,
    LineContext,
    PreparedOrigin,
    Voucher,
    base36,
    build_line,
    partition_key,
)
from ndagent.wire.event_names import NO_KEY, NameLines
from ndagent.wire.record import NO_PRIORITY, Flags, Framing

_KNOWN_FLAGS = 3  # TRUNCATED | FRAMING_ERROR
_UNACKNOWLEDGED = int(Flags.UNACKNOWLEDGED)
_OWN = int(Flags.OWN)
UNACKNOWLEDGED_TAG = "_unacknowledged"
_FLAT_HOST = "host.hostname"
_VOUCHED = ("agent.id", "agent.clock_skew_seconds", "event.id", "event.ingested", "ndcollector.position")
SKEW_TOLD_SECONDS = 2
"""Less is the network's delay and the queue before the spool."""


class EcsLines:
    """Lines and the arrays parallel to them, growing line by line; `failures` of them are wrapped ones."""

    def __init__(
        self,
        *,
        sequence: int,
        spool_id: str,
        context: LineContext,
        origins: Sequence[PreparedOrigin],
        name_lines: NameLines,
    ) -> None:
        self._name_lines = name_lines
        self.first = sequence
        self._spool_id = spool_id
        self._own = f"{spool_id}-"
        self._context = context
        self._prepared = origins
        self._received = context.received.decode()
        self.lines: list[bytes] = []
        self.priorities = bytearray()
        self.host_offsets, self.host_lengths = array("I"), array("H")
        self.keys, self.origins = array("I"), array("I")
        self.failures = 0

    def add(self, messages: Sequence[bytes], *, flags: int, index: int) -> None:
        """One line for each message of one section."""
        origin = self._prepared[index]
        for raw in messages:
            document = _object(raw)
            if document is None:
                self._wrap(raw, flags=flags & _KNOWN_FLAGS, origin=origin)
            else:
                self._pass(raw, document, origin=origin, tag=UNACKNOWLEDGED_TAG if flags & _UNACKNOWLEDGED else None)
            self.origins.append(index)

    def add_own(self, payload: bytes, *, count: int, framing: int, flags: int, index: int) -> bool:
        """Take a section that our own input wrote; False, and nothing is done, where it must be parsed all the same."""
        origin = self._prepared[index]
        if flags != _OWN or framing != Framing.LF or origin.voucher is not None:
            return False
        found = self._name_lines(payload, count, self._spool_id.encode(), self.first + len(self.lines))
        if found is None:
            return False
        lines, keys = found
        self.lines += lines
        self.priorities += bytes((NO_PRIORITY,)) * count
        self.host_offsets.frombytes(bytes(4 * count))
        self.host_lengths.frombytes(bytes(2 * count))
        self.origins.extend(array("I", [index]) * count)
        self.keys.extend(keys if NO_KEY not in keys else [origin.key if key == NO_KEY else key for key in keys])
        return True

    def _pass(self, raw: bytes, document: dict[str, Any], *, origin: PreparedOrigin, tag: str | None) -> None:
        if tag is not None:
            _add_tag(document, tag)
        if origin.voucher is not None:
            self._vouch(document, origin.voucher)
        as_it_came = self._complete(document, vouched=origin.voucher is not None)
        as_it_came = as_it_came and origin.voucher is None and tag is None
        if not as_it_came or raw[0] != 0x7B or b"\n" in raw or b"\r" in raw:
            raw = orjson.dumps(document)
        host = _host(document)
        offset = length = 0
        if host is not None:
            text = orjson.dumps(host)
            offset = raw.find(text) + 1  # any place with this text will do: readers look at nothing else
            if not offset:  # written with other escapes
                raw = orjson.dumps(document)
                offset = raw.find(text) + 1
            length = len(text) - 2
            if length > MAX_HOST_BYTES or _FLAT_HOST in document:  # the event must be asked which of them counts
                offset = length = 0
        self.lines.append(raw + b"\n")
        self.priorities.append(priority_of(document))
        self.host_offsets.append(offset)
        self.host_lengths.append(length)
        self.keys.append(_key(document, host, origin))

    def _vouch(self, document: dict[str, Any], voucher: Voucher) -> None:
        """Write into an agent's event what its certificate and our clock say."""
        for name in _VOUCHED:
            document.pop(name, None)  # a second spelling, which receivers would take for the same field
        agent = document["agent"] = {**_member(document, "agent"), "id": voucher.agent_id}
        agent.pop("clock_skew_seconds", None)
        if abs(voucher.clock_skew_seconds) >= SKEW_TOLD_SECONDS:
            agent["clock_skew_seconds"] = voucher.clock_skew_seconds
        event = document["event"] = {**_member(document, "event"), "ingested": self._received}
        identity = event.get("id")
        if isinstance(identity, str) and voucher.id_prefix and identity.startswith(voucher.id_prefix):
            document["ndcollector"] = {"position": self._place()}
        else:
            event.pop("id", None)
            document.pop("ndcollector", None)

    def _complete(self, document: dict[str, Any], *, vouched: bool) -> bool:
        """Give the event what it lacks; whether that was nothing."""
        event = document.get("event")
        identity = event.get("id") if isinstance(event, dict) else None
        named = isinstance(identity, str) and identity != "" and not identity.startswith(self._own)
        time = document.get("@timestamp")
        timed = isinstance(time, str) and time != ""
        forged = str(_member(document, "ndcollector").get("position")).startswith(self._own) and not vouched
        if forged:
            del document["ndcollector"]  # only an agent's event is given one, by us
        if named and timed:
            return not forged
        if not timed:
            document["@timestamp"] = self._received
        if not named:
            known = event if isinstance(event, dict) else {}
            document["event"] = {**known, "id": self._place()}
        return False

    def _place(self) -> str:
        """The name of the event at hand in this spool."""
        return self._own + base36(self.first + len(self.lines)).decode()

    def _wrap(self, raw: bytes, *, flags: int, origin: PreparedOrigin) -> None:
        line = build_line(
            Fields(raw, error=b"not a JSON object" if raw else b"empty message"),
            raw=raw,
            priority=None,
            flags=flags,
            sequence=self.first + len(self.lines),
            context=self._context,
            origin=origin,
        )
        self.lines.append(line.json)
        self.priorities.append(NO_PRIORITY)
        self.host_offsets.append(0)
        self.host_lengths.append(0)
        self.keys.append(origin.key)
        self.failures += 1


def _object(raw: bytes) -> dict[str, Any] | None:
    """The JSON object, None where it is none; orjson refuses NaN, lone surrogates, bad UTF-8 and endless nesting."""
    try:
        found = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return None
    return found if isinstance(found, dict) else None


def _member(document: dict[str, Any], name: str) -> dict[str, Any]:
    """The object of that name, an empty one where there is none."""
    found = document.get(name)
    return found if isinstance(found, dict) else {}


def _add_tag(document: dict[str, Any], tag: str) -> None:
    tags = document.get("tags", [])
    tags = tags if isinstance(tags, list) else [tags]
    document["tags"] = [*(one for one in tags if one != tag), tag]


def _host(document: dict[str, Any]) -> str | None:
    host = _member(document, "host")
    name = host.get("hostname") or host.get("name")
    return name if isinstance(name, str) and name else None


def priority_of(document: Mapping[str, Any]) -> int:
    """What an event has in EventBatch.priorities: its PRI, unless it says something else by facility or severity."""
    try:
        syslog = document["log"]["syslog"]
        priority, facility, severity = syslog["priority"], syslog["facility"]["code"], syslog["severity"]["code"]
    except (KeyError, TypeError):
        return NO_PRIORITY
    if type(priority) is not int or type(facility) is not int or type(severity) is not int:  # True and 1.0 equal 1
        return NO_PRIORITY
    is_one = 0 <= priority <= 191 and facility == priority >> 3 and severity == priority & 7
    return priority if is_one else NO_PRIORITY


def _key(document: dict[str, Any], host: str | None, origin: PreparedOrigin) -> int:
    if host is not None:
        return partition_key(host.encode())
    source = document.get("source")
    address = source.get("ip") if isinstance(source, dict) else None
    return partition_key(address.encode()) if isinstance(address, str) and address else origin.key
