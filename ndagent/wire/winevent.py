"""The XML that Windows renders an event as (the "Event" schema of Windows event logs), read into an Event.

Promises: whatever text comes in, an Event comes out, in linear time and with bounded memory. Well-formed XML is read by
expat; a document with a DOCTYPE is never given to it (entities cannot be declared, so none expands); what XML 1.0
forbids (NUL, other controls, lone surrogates, character references to them) becomes U+FFFD and the document is read
again; what is still no XML (cut short, say) is searched for the fields of the System part and the data it has, and
`fault` says what was wrong. Values above `max_value_chars` are cut, more than MAX_FIELDS and nesting past MAX_DEPTH are
left out; `is_cut` says so.
Refuses: I/O, clocks, and knowing what events mean (see winevent_ecs.py).

What Windows writes: `System` (who, what, when), then one of `EventData` (Data elements, named by the provider's
template or not, ComplexData, Binary), `UserData` (the provider's own XML), `DebugData`, `BinaryEventData` or
`ProcessingErrorData` (the template did not fit the data), and `RenderingInfo` with the provider's words where they were
asked for or came with a forwarded event.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from xml.etree.ElementTree import Element, ParseError, XMLParser

MAX_FIELDS = 1024
"""Data elements of one event that are read; Windows' own limit of inserts is 99, of properties in a template 256."""
MAX_DEPTH = 16
"""Elements within each other in UserData."""

_NAMESPACE = "{http://schemas.microsoft.com/win/2004/08/events/event}"
_FORBIDDEN = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What is not a Char of XML 1.0, section 2.2."""
_REFERENCE = re.compile(r"&#(?:x([0-9A-Fa-f]{1,8})|([0-9]{1,9}));")
_BARE_AMPERSAND = re.compile(r"&(?!(?:amp|lt|gt|quot|apos|#[0-9]{1,9}|#x[0-9A-Fa-f]{1,8});)")
_ENTITIES = {"amp": "&", "lt": "<", "gt": ">", "quot": '"', "apos": "'"}
_ENTITY = re.compile(r"&(amp|lt|gt|quot|apos);")
_PAYLOADS = ("EventData", "UserData", "DebugData", "BinaryEventData", "ProcessingErrorData")
_SYSTEM_FIELD = re.compile(
    r"<(EventID|Version|Level|Task|Opcode|Keywords|EventRecordID|Channel|Computer)(?:\s[^<>]*)?>([^<]*)<"
)
_SYSTEM_TAG = re.compile(r"<(Provider|TimeCreated|Correlation|Execution|Security|EventID)\s([^<>]*)>")
_ATTRIBUTE = re.compile(r"""([A-Za-z]+)\s*=\s*(?:'([^'<]*)'|"([^"<]*)")""")
_DATA = re.compile(r"""<Data(?:\s+Name\s*=\s*(?:'([^'<>]*)'|"([^"<>]*)"))?\s*>([^<]*)""")


@dataclass(slots=True)
class Event:
    """One event's fields as text, empty where it does not say. `data` and `user_data` hold text, lists and maps."""

    system: dict[str, str] = field(default_factory=dict)
    """Of the System part: the elements by name, and attributes as Element.Attribute (TimeCreated.SystemTime)."""
    data: dict[str, Any] = field(default_factory=dict)
    user_data: dict[str, Any] = field(default_factory=dict)
    payload: str = ""
    """The name of the element the data came in."""
    rendering: dict[str, str] = field(default_factory=dict)
    """What the provider calls things: Message, Level, Task, Opcode, Channel, Provider."""
    keywords: list[str] = field(default_factory=list)
    fault: str = ""
    """Why the XML could not be read as it was; empty if it could."""
    is_repaired: bool = False
    """Characters that XML does not have were replaced."""
    is_cut: bool = False


def parse(xml: str, *, max_value_chars: int) -> Event:
    """The event; never raises, whatever the text is."""
    event = Event()
    try:
        _read(_tree(xml), event, max_value_chars)
    except (ParseError, ValueError) as error:
        event = Event(fault=_in_words(error))
        clean = _cleaned(xml)
        try:
            _read(_tree(clean), event, max_value_chars)
            event.is_repaired, event.fault = True, ""
        except (ParseError, ValueError):
            event = Event(fault=event.fault, is_repaired=clean != xml)
            _search(clean, event, max_value_chars)
    return event


def _in_words(error: Exception) -> str:
    return "characters that UTF-8 does not have" if isinstance(error, UnicodeError) else str(error)


def _tree(xml: str) -> Element:
    """Raises ParseError (a SyntaxError), or ValueError for text that is not to be given to expat."""
    if "<!DOCTYPE" in xml:
        raise ValueError("a DOCTYPE, which an event never has")
    parser = XMLParser(encoding="utf-8")  # noqa: S314 - without a DOCTYPE there is nothing to expand or to fetch
    parser.feed(xml.encode())
    root: Element = parser.close()
    if _name(root.tag) != "Event":
        raise ValueError(f"<{_name(root.tag)[:64]}> where <Event> should be")
    return root


def _cleaned(xml: str) -> str:
    """The text with U+FFFD for what cannot be in XML, and ampersands that begin nothing written as such."""

    def checked(match: "re.Match[str]") -> str:
        code = int(match[1], 16) if match[1] else int(match[2])
        is_char = code <= 0x10FFFF and not _FORBIDDEN.match(chr(code))
        return match[0] if is_char else "\ufffd"

    text = _FORBIDDEN.sub("\ufffd", xml.rstrip("\0"))
    return _BARE_AMPERSAND.sub("&amp;", _REFERENCE.sub(checked, text))


def _name(tag: str) -> str:
    if tag.startswith(_NAMESPACE):
        return tag[len(_NAMESPACE) :]
    return tag.rpartition("}")[2]


def _read(root: Element, event: Event, limit: int) -> None:
    for part in root:
        name = _name(part.tag)
        if name == "System":
            _read_system(part, event.system, limit)
        elif name == "RenderingInfo":
            _read_rendering(part, event, limit)
        elif name in _PAYLOADS:
            event.payload = name
            if name == "EventData":
                _read_data(part, event, limit)
            else:
                event.user_data = _read_user_data(part, event, limit)


def _read_system(part: Element, system: dict[str, str], limit: int) -> None:
    for element in part:
        name = _name(element.tag)
        if element.text:
            system[name] = element.text[:limit]
        for key, value in element.items():
            system[f"{name}.{_name(key)}"] = value[:limit]


def _read_rendering(part: Element, event: Event, limit: int) -> None:
    for element in part:
        name = _name(element.tag)
        if name == "Keywords":
            event.keywords = [word.text for word in element if word.text][:MAX_FIELDS]
        elif element.text:
            event.rendering[name] = _cut(element.text, event, limit)


def _read_data(part: Element, event: Event, limit: int) -> None:
    """Named data by name, the others as param1, param2, …; a name that comes twice has a list."""
    data, unnamed = event.data, 0
    for number, element in enumerate(part):
        if number >= MAX_FIELDS:
            event.is_cut = True
            return
        name = element.get("Name")
        if name is None:
            kind = _name(element.tag)
            if kind == "Data":
                unnamed += 1
                name = f"param{unnamed}"
            else:
                name = kind
        value: Any = element.text or ""
        if len(element):
            value = _value(element, event, limit, 1)
        elif len(value) > limit:
            value = _cut(value, event, limit)
        _put(data, name, value)


def _put(place: dict[str, Any], name: str, value: Any) -> None:
    if name not in place:
        place[name] = value
    elif isinstance(place[name], list):
        place[name].append(value)
    else:
        place[name] = [place[name], value]


def _cut(value: str, event: Event, limit: int) -> str:
    if len(value) <= limit:
        return value
    event.is_cut = True
    return value[:limit]


def _read_user_data(part: Element, event: Event, limit: int) -> dict[str, Any]:
    """What the provider's own element has, and its name as `xml_name`."""
    inner = next(iter(part), None) if event.payload == "UserData" else part
    if inner is None:
        return {}
    value = _value(inner, event, limit, 1)
    fields = value if isinstance(value, dict) else {"value": value}
    return {"xml_name": _name(inner.tag), **fields} if inner is not part else fields


def _value(element: Element, event: Event, limit: int, depth: int) -> Any:
    """Text of an element without children, a map of the others'; attributes but Name, its key, stand beside them."""
    if not len(element) and not element.attrib.keys() - {"Name"}:
        return _cut(element.text or "", event, limit)
    if depth >= MAX_DEPTH:
        event.is_cut = True
        return ""
    fields: dict[str, Any] = {_name(key): _cut(value, event, limit) for key, value in element.items() if key != "Name"}
    for number, child in enumerate(element):
        if number >= MAX_FIELDS:
            event.is_cut = True
            break
        _put(fields, child.get("Name") or _name(child.tag), _value(child, event, limit, depth + 1))
    if element.text and element.text.strip():
        fields["value"] = _cut(element.text, event, limit)
    return fields


def _search(xml: str, event: Event, limit: int) -> None:
    """Fields of text that is no XML, where they look as Windows writes them. Each pattern passes over it once."""
    system_end = xml.find("</System>")
    head = xml if system_end < 0 else xml[:system_end]
    for match in _limited(_SYSTEM_FIELD, head):
        event.system.setdefault(match[1], _unescaped(match[2])[:limit])
    for match in _limited(_SYSTEM_TAG, head):
        for attribute in _limited(_ATTRIBUTE, match[2]):
            value = _unescaped(attribute[2] or attribute[3] or "")[:limit]
            event.system.setdefault(f"{match[1]}.{attribute[1]}", value)
    if system_end < 0:
        return
    unnamed = 0
    for match in _limited(_DATA, xml[system_end:]):
        name = match[1] or match[2]
        if not name:
            unnamed += 1
            name = f"param{unnamed}"
        _put(event.data, _unescaped(name), _cut(_unescaped(match[3]), event, limit))
        event.payload = "EventData"


def _limited(pattern: "re.Pattern[str]", text: str) -> Iterator["re.Match[str]"]:
    for number, match in enumerate(pattern.finditer(text)):
        if number >= MAX_FIELDS:
            return
        yield match


def _unescaped(text: str) -> str:
    def character(match: "re.Match[str]") -> str:
        return chr(int(match[1], 16) if match[1] else int(match[2]))  # `_cleaned` left none that is no character

    return _ENTITY.sub(lambda match: _ENTITIES[match[1]], _REFERENCE.sub(character, text))
