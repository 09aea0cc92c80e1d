"""One Windows event, as its XML, as one line of ECS JSON.

Promises: a pure function of the XML and what the input says beside it; whatever the XML is, a line comes out. All that
the System part says and all data of the event stands below `winlog.*` as Elastic's agents name it; what the table
(winevent_table.py) knows about the event stands in ECS's own fields as well. `@timestamp` is TimeCreated with its 100
nanoseconds. XML that had to be repaired or searched is marked (tags, error.message) and stands in event.original; where
it had what UTF-8 cannot carry, exactly, as UTF-16LE, in event.original_base64.
Refuses: I/O, clocks; looking up accounts, parameters (%%1234) and messages: the input brings the provider's words in.
"""

import re
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import orjson

from ndagent.wire.winevent import Event, parse
from ndagent.wire.winevent_names import AUDIT_FAILURE, AUDIT_SUCCESS, KEYWORDS, LEVELS, OPCODES
from ndagent.wire.winevent_table import Meaning, meaning_of
from ndagent.wire.winevent_values import READERS, name, number

_MOMENT = re.compile(r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d:\d\d)(\.\d{1,9})?Z?")
_DATASETS = {
    "security": "windows.security",
    "system": "windows.system",
    "application": "windows.application",
    "setup": "windows.setup",
    "microsoft-windows-sysmon/operational": "windows.sysmon_operational",
    "microsoft-windows-powershell/operational": "windows.powershell_operational",
    "powershellcore/operational": "windows.powershell_operational",
}
_SUMMARY_CHARS = 1024
"""Of the data, in `message`, where the provider has no words for the event."""
_USERS = ("user", "effective"), ("user", "target"), ("user", "changes"), ("user",)
_ADDRESSES = ("source", "destination")
_HASHED = ("process", "file", "dll")


@dataclass(frozen=True, slots=True)
class Rules:
    """What all events of an input have in common. `base` holds `ecs`, `agent` and `host`."""

    base: Mapping[str, Any]
    keep_original: Literal["always", "on_error", "never"] = "on_error"
    max_value_chars: int = 65536
    max_original_chars: int = 262144


def event_line(xml: str, *, created: str, rules: Rules, channel: str = "", unrendered: str = "") -> bytes:
    """The event, LF included.

    `created` is RFC 3339; `channel` is where it was read, should the XML not say; `unrendered` is why the provider has
    no words for it, empty if nobody asked or it has.
    """
    event = parse(xml, max_value_chars=rules.max_value_chars)
    system = event.system
    winlog = _winlog(event, channel)
    provider, code = system.get("Provider.Name", ""), system.get("EventID", "")
    about: dict[str, Any] = {
        "kind": "event",
        "module": "windows",
        "dataset": _DATASETS.get(winlog.get("channel", "").lower(), "windows.event"),
        "created": created,
    }
    if code:
        about["code"] = code
    if provider:
        about["provider"] = provider
    document: dict[str, Any] = {
        "@timestamp": _moment(system.get("TimeCreated.SystemTime", "")) or created,
        **rules.base,
        "event": about,
        "message": "",
        "log": {"level": _level(system.get("Level", ""))},
        "winlog": winlog,
    }
    computer = system.get("Computer", "")
    if computer and not _is_same_host(computer, rules.base.get("host", {}).get("hostname", "")):
        document["host"] = {"hostname": computer, "name": computer}
    _outcome(system.get("Keywords", ""), event.keywords, about)
    meaning = meaning_of(provider, code)
    if meaning is not None:
        _apply(meaning, event, document)
    _related(document)
    document["message"] = event.rendering.get("Message") or _summary(event, winlog)
    _mark(event, document, unrendered)
    _keep(xml, event, document, rules, is_marked="tags" in document)
    return orjson.dumps(document) + b"\n"


def _moment(text: str) -> str | None:
    """SystemTime, which is RFC 3339 in UTC already, if there is such a time."""
    found = _MOMENT.fullmatch(text)
    if found is None:
        return None
    try:
        datetime.fromisoformat(f"{found[1]}T{found[2]}")
    except ValueError:
        return None
    return f"{found[1]}T{found[2]}{found[3] or ''}Z"


def _is_same_host(computer: str, hostname: str) -> bool:
    """Windows writes the whole name in its own case, the agent may know the first label only."""
    one, other = computer.lower(), hostname.lower()
    return one == other or one.partition(".")[0] == other or one == other.partition(".")[0]


def _level(text: str) -> str:
    return LEVELS.get(text, text or "information")


def _winlog(event: Event, channel: str) -> dict[str, Any]:
    """The System part, the data, and the provider's names of things."""
    system, rendering = event.system, event.rendering
    found: dict[str, Any] = {
        "api": "wineventlog",
        "channel": system.get("Channel") or channel,
        "provider_name": system.get("Provider.Name"),
        "provider_guid": system.get("Provider.Guid"),
        "event_id": system.get("EventID"),
        "record_id": system.get("EventRecordID"),
        "version": number(system.get("Version", "")) or None,
        "computer_name": system.get("Computer"),
        "level": rendering.get("Level") or system.get("Level"),
        "task": rendering.get("Task") or system.get("Task"),
        "opcode": rendering.get("Opcode") or OPCODES.get(system.get("Opcode", ""), system.get("Opcode")),
        "keywords": event.keywords or _keywords(system.get("Keywords", "")),
        "activity_id": system.get("Correlation.ActivityID"),
        "related_activity_id": system.get("Correlation.RelatedActivityID"),
        "event_data": event.data,
        "user_data": event.user_data,
    }
    if "Provider.EventSourceName" in system:
        found["provider_source"] = system["Provider.EventSourceName"]
    process = number(system.get("Execution.ProcessID", ""))
    if process is not None:
        found["process"] = {"pid": process}
        thread = number(system.get("Execution.ThreadID", ""))
        if thread is not None:
            found["process"]["thread"] = {"id": thread}
    if system.get("Security.UserID"):
        found["user"] = {"identifier": system["Security.UserID"]}
    return {key: value for key, value in found.items() if value}


def _keywords(text: str) -> list[str]:
    """The names of the bits that all providers share; the number where there is another."""
    mask = number(text) if text else 0
    if mask is None:  # the top bit: Windows' own channels
        try:
            mask = int(text, 16) & (2**63 - 1)
        except ValueError:
            return []
    names = [word for bit, word in KEYWORDS.items() if mask & bit]
    return names or ([text] if mask else [])


def _outcome(mask_text: str, keywords: list[str], about: dict[str, Any]) -> None:
    """Auditing's own word: the keyword, by its bit; names may be in any language."""
    try:
        mask = int(mask_text, 16) if mask_text else 0
    except ValueError:
        mask = 0
    if mask & AUDIT_SUCCESS or (not mask and "Audit Success" in keywords):
        about["outcome"] = "success"
    elif mask & AUDIT_FAILURE or (not mask and "Audit Failure" in keywords):
        about["outcome"] = "failure"


def _apply(meaning: Meaning, event: Event, document: dict[str, Any]) -> None:
    about = document["event"]
    about["action"] = meaning.action
    about["category"] = meaning.categories
    about["type"] = meaning.types
    data = event.data or event.user_data
    for sources, path, reader in meaning.copies:
        for source in sources:
            value = data.get(source)
            if not isinstance(value, str) or not value:
                continue
            found = READERS[reader](value)
            if found is not None:
                _place(document, path, found)
                break


def _place(document: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    place = document
    for step in path[:-1]:
        place = place.setdefault(step, {})
    place.setdefault(path[-1], value)


def _related(document: dict[str, Any]) -> None:
    """Names, addresses and hashes of the event in one place each, to be searched by."""
    found: dict[str, Any] = {}
    if "user" in document:
        users = [_at(document, (*path, "name")) for path in _USERS]
        if names := sorted({user for user in users if user}):
            found["user"] = names
    addresses = {document[side]["ip"] for side in _ADDRESSES if side in document and "ip" in document[side]}
    addresses.update(document.get("dns", {}).get("resolved_ip", ()))
    if addresses:
        found["ip"] = sorted(addresses)
    digests = [value for part in _HASHED for value in (_at(document, (part, "hash")) or {}).values()]
    if digests:
        found["hash"] = sorted(set(digests))
    if found:
        document["related"] = found


def _at(document: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    place: Any = document
    for step in path:
        place = place.get(step)
        if place is None:
            return None
    return place


def _summary(event: Event, winlog: Mapping[str, Any]) -> str:
    """What stands for the message where the provider has no words: who, which, and the data as far as it fits."""
    head = f"{winlog.get('provider_name') or winlog.get('channel') or 'Windows'} event {winlog.get('event_id') or '?'}"
    data = event.data or event.user_data
    parts, size = [], 0
    for key, value in data.items():
        if not isinstance(value, str) or name(value) is None:
            continue
        part = value if key.startswith("param") else f"{key}={value}"
        size += len(part) + 2
        if size > _SUMMARY_CHARS:
            parts.append("…")
            break
        parts.append(part)
    return f"{head}: {'; '.join(parts)}" if parts else head


def _mark(event: Event, document: dict[str, Any], unrendered: str) -> None:
    tags, faults = [], []
    if event.fault:
        tags.append("_parse_failure")
        faults.append(f"not well-formed XML: {event.fault}")
    elif event.is_repaired:
        tags.append("_repaired")
        faults.append("characters that XML does not have were replaced")
    if unrendered:
        tags.append("_unrendered")
        faults.append(f"the provider has no words for it: {unrendered}")
    if event.payload == "ProcessingErrorData":
        tags.append("_template_error")
        faults.append("the provider's template does not fit the event's data")
    if event.is_cut:
        tags.append("_truncated")
    if tags:
        document["tags"] = tags
    if faults:
        document["error"] = {"message": "; ".join(faults)}


def _keep(xml: str, event: Event, document: dict[str, Any], rules: Rules, *, is_marked: bool) -> None:
    """event.original, by the policy; an XML of absurd size is cut there."""
    if rules.keep_original == "never" or (rules.keep_original == "on_error" and not is_marked):
        return
    about = document["event"]
    text = xml[: rules.max_original_chars]
    if len(text) < len(xml) and "_truncated" not in document.setdefault("tags", []):
        document["tags"].append("_truncated")
    if not event.fault and not event.is_repaired:
        about["original"] = text
        return
    exact = text.encode("utf-16-le", "surrogatepass")
    about["original"] = exact.decode("utf-16-le", "replace")
    if about["original"] != text:
        about["original_base64"] = b64encode(exact).decode()
