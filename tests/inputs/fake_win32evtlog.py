"""Windows' event log service as pywin32 shows it: the modules win32evtlog, win32event and pywintypes, with state.

Channels hold records with numbers and have room for so many; subscriptions deliver what matches their query, set their
signal and keep a place; bookmarks are Windows' own XML; a strict subscription refuses a bookmark whose record is gone;
a result set goes stale when the log is cleared. What goes wrong is asked for: records that a subscription never
delivers, a subscription that falls silent, providers without metadata, calls that fail, events that cannot be rendered.

Of XPath it understands what the input and the tests use; another query is refused as Windows refuses a malformed one.
"""

import importlib.util
import itertools
import re
import sys
import threading
import types
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from xml.sax.saxutils import escape

import pytest

NAMESPACE = "http://schemas.microsoft.com/win/2004/08/events/event"
_TERM = re.compile(r"(EventRecordID|EventID|Level)(>=|<=|=)(\d+)|TimeCreated\[timediff\(@SystemTime\) (>|<=) (\d+)\]")


class Failure(Exception):
    """pywintypes.error: number, name of the call, reason."""


@dataclass
class Record:
    """One event in a channel."""

    number: int
    xml: str
    written_at: datetime
    provider: str


@dataclass
class Log:
    """One channel."""

    name: str
    room: int = 1 << 30
    records: deque[Record] = field(default_factory=deque)
    next_number: int = 1
    generation: int = 0  # another one after it was cleared


@dataclass(eq=False)
class Handle:
    """What pywin32 gives for a handle; `what` is behind it."""

    what: Any
    is_open: bool = True

    def Close(self) -> None:  # noqa: N802 - pywin32's name
        self.is_open = False


@dataclass(eq=False)
class Results:
    """A query or a subscription."""

    log: Log
    matches: Callable[[Record], bool]
    generation: int
    is_reversed: bool = False
    signal: "Signal | None" = None
    after: int = 0  # the record last delivered
    is_silent: bool = False
    before: int | None = None  # for queries in reverse
    has_news: bool = True  # for subscriptions: since it last said that there is nothing
    is_filtered: bool = False


class Signal:
    """An event object."""

    def __init__(self, windows: "Windows", *, is_set: bool) -> None:
        self.windows = windows
        self.is_set = is_set


class Windows:
    """The service. Its methods that begin with a capital are the modules' functions."""

    def __init__(self) -> None:
        self.logs: dict[str, Log] = {}
        self.subscriptions: list[Results] = []
        self.providers: dict[str, str | int] = {}
        """Provider → the message it has for its events, or the number its metadata fails with; others have none."""
        self.failures: dict[str, deque[int]] = {}
        """Call → numbers with which it fails next."""
        self.denied: set[str] = set()
        self.unrenderable: set[tuple[str, int]] = set()
        self.undelivered: set[tuple[str, int]] = set()
        """(channel, number): subscriptions pass over them, though they are there."""
        self.is_strict_broken = False
        """Strict subscriptions refuse every bookmark, as some servers were seen to do."""
        self.slowness_ms = 0
        """How long a query other than * takes."""
        self.calls: dict[str, int] = {}
        self.changed = threading.Condition()

    # What happens on the machine

    def channel(self, name: str, *, room: int = 1 << 30) -> Log:
        """A channel comes into being."""
        return self.logs.setdefault(name.lower(), Log(name, room))

    def write(
        self, channel: str, *texts: str, provider: str = "Test-Provider", event_id: int = 1, ago: float = 0.0
    ) -> list[int]:
        """Events with one value each; their numbers."""
        data = [f"<EventData><Data Name='text'>{escape(text)}</Data></EventData>" for text in texts]
        return [self.write_payload(channel, one, provider=provider, event_id=event_id, ago=ago) for one in data]

    def write_payload(
        self,
        channel: str,
        payload: str,
        *,
        provider: str = "Test-Provider",
        event_id: int = 1,
        ago: float = 0.0,
        computer: str = "testhost",
        own_number: int | None = None,
    ) -> int:
        """One event with this payload; `own_number` is what a forwarded event says its number is."""
        with self.changed:
            log = self.channel(channel)
            at = datetime.now(UTC) - timedelta(seconds=ago)
            number = log.next_number
            log.next_number += 1
            xml = (
                f"<Event xmlns='{NAMESPACE}'><System><Provider Name='{provider}'/><EventID>{event_id}</EventID>"
                f"<Version>0</Version><Level>4</Level><Task>0</Task><Opcode>0</Opcode><Keywords>0x80000000000000"
                f"</Keywords><TimeCreated SystemTime='{at:%Y-%m-%dT%H:%M:%S.%f}0Z'/><EventRecordID>"
                f"{own_number or number}</EventRecordID><Correlation/><Execution ProcessID='4' ThreadID='8'/>"
                f"<Channel>{log.name}</Channel><Computer>{computer}</Computer><Security/></System>{payload}</Event>"
            )
            self._put(log, Record(number, xml, at, provider))
            return number

    def write_recorded(self, xml: str) -> int:
        """An event as a machine once wrote it, under the channel's next number."""
        channel, provider = re.search(r"<Channel>(.+)</Channel>", xml), re.search(r"Provider Name=['\"]([^'\"]+)", xml)
        assert channel is not None
        assert provider is not None
        with self.changed:
            log = self.channel(channel[1])
            number = log.next_number
            log.next_number += 1
            renumbered = re.sub(r"(?<=<EventRecordID>)\d+", str(number), xml)
            self._put(log, Record(number, renumbered, datetime.now(UTC), provider[1]))
            return number

    def _put(self, log: Log, record: Record) -> None:
        log.records.append(record)
        while len(log.records) > log.room:
            log.records.popleft()
        for one in self.subscriptions:
            if one.log is log and one.signal is not None and not one.is_silent:
                one.signal.is_set = one.has_news = True
        self.changed.notify_all()

    def clear(self, channel: str, *, restart: bool) -> None:
        """Somebody clears the log; `restart`: numbers begin anew. The Security log says so itself, System of others."""
        with self.changed:
            log = self.channel(channel)
            log.records.clear()
            log.generation += 1
            if restart:
                log.next_number = 1
        name = "Security" if channel == "Security" else "System"
        cleared = "http://manifests.microsoft.com/win/2004/08/windows/eventlog"
        about = "" if channel == "Security" else f"<Channel>{channel}</Channel>"
        payload = f"<UserData><LogFileCleared xmlns='{cleared}'><SubjectUserName>mallory</SubjectUserName>{about}"
        self.write_payload(
            name,
            f"{payload}</LogFileCleared></UserData>",
            provider="Microsoft-Windows-Eventlog",
            event_id=1102 if channel == "Security" else 104,
        )

    def lose(self, channel: str, *numbers: int) -> None:
        """Records vanish from the middle of the log."""
        with self.changed:
            log = self.channel(channel)
            log.records = deque(record for record in log.records if record.number not in numbers)

    def silence(self) -> None:
        """No subscription that there is now delivers anything any more."""
        with self.changed:
            for one in self.subscriptions:
                one.is_silent = True

    def fail(self, call: str, *numbers: int) -> None:
        """The next calls of this name fail with these numbers."""
        self.failures.setdefault(call, deque()).extend(numbers)

    # win32event

    def CreateEvent(self, _security: None, _is_manual: bool, is_set: bool, _name: None) -> Signal:  # noqa: N802
        return Signal(self, is_set=is_set)

    def SetEvent(self, signal: Signal) -> None:  # noqa: N802
        with self.changed:
            signal.is_set = True
            self.changed.notify_all()

    def ResetEvent(self, signal: Signal) -> None:  # noqa: N802
        with self.changed:
            signal.is_set = False

    def WaitForMultipleObjects(self, signals: list[Signal], _all: bool, milliseconds: int) -> int:  # noqa: N802
        assert len(signals) <= 64
        with self.changed:
            self.changed.wait_for(lambda: any(signal.is_set for signal in signals), milliseconds / 1000)
            return next((at for at, signal in enumerate(signals) if signal.is_set), 258)

    # win32evtlog

    def EvtSubscribe(  # noqa: N802
        self, ChannelPath: str, Flags: int, SignalEvent: Signal, Query: str, Bookmark: Handle | None = None  # noqa: N803
    ) -> Handle:
        self._may_fail("EvtSubscribe")
        with self.changed:
            log = self._log(ChannelPath, "EvtSubscribe")
            results = Results(log, self._matcher(Query), log.generation, signal=SignalEvent)
            if Flags & 3 == 1:
                results.after = log.next_number - 1
            elif Flags & 3 == 3:
                assert Bookmark is not None
                number = self._number_in(Bookmark)
                is_there = any(record.number == number for record in log.records if results.matches(record))
                if Flags & 0x10000 and (self.is_strict_broken or not is_there):
                    raise Failure(1168, "EvtSubscribe", "Element not found.")
                results.after = number
            SignalEvent.is_set = True
            self.subscriptions.append(results)
            self.changed.notify_all()
        return Handle(results)

    def EvtQuery(self, Path: str, Flags: int, Query: str) -> Handle:  # noqa: N802, N803
        self._may_fail("EvtQuery")
        assert Flags & 1, "not a channel"
        with self.changed:
            log = self._log(Path, "EvtQuery")
            results = Results(log, self._matcher(Query), log.generation, is_reversed=bool(Flags & 0x200))
            results.is_filtered = Query != "*"
            return Handle(results)

    def EvtSeek(self, ResultSet: Handle, Position: int, Flags: int, Bookmark: Handle) -> None:  # noqa: N802, N803
        self._may_fail("EvtSeek")
        assert Flags == 4 | 0x10000
        results: Results = ResultSet.what
        number = self._number_in(Bookmark)
        with self.changed:
            if self.is_strict_broken or number not in [record.number for record in results.log.records]:
                raise Failure(1168, "EvtSeek", "Element not found.")
        assert Position in (0, 1)
        results.after = number - 1 + Position

    def EvtNext(self, ResultSet: Handle, Count: int, Timeout: int = -1) -> tuple[Handle, ...]:  # noqa: N802, N803
        self._may_fail("EvtNext")
        assert Timeout >= 0, "it would wait for ever"
        assert ResultSet.is_open
        results: Results = ResultSet.what
        with self.changed:
            if results.generation != results.log.generation:
                raise Failure(15011, "EvtNext", "The query result is stale or invalid and must be recreated.")
            if results.is_filtered and Timeout < self.slowness_ms:
                raise Failure(1460, "EvtNext", "This operation returned because the timeout period expired.")
            found = [] if results.is_silent else list(itertools.islice(self._waiting(results), Count))
            if results.signal is not None and not found:
                results.has_news, had_news = False, results.has_news
                if not had_news:
                    raise Failure(4317, "EvtNext", "The operation identifier is not valid.")
        return tuple(Handle((results.log.name, record)) for record in found)

    def _waiting(self, results: Results) -> Iterator[Record]:
        """What this result set has next; moves its place."""
        for record in [*reversed(results.log.records)] if results.is_reversed else list(results.log.records):
            is_ahead = results.before is None or record.number < results.before
            if not (is_ahead if results.is_reversed else record.number > results.after):
                continue
            if results.signal is not None and (results.log.name, record.number) in self.undelivered:
                continue
            if results.matches(record):
                results.before = results.after = record.number
                yield record

    def EvtRender(self, Event: Handle, Flags: int) -> str:  # noqa: N802, N803
        self._may_fail("EvtRender")
        if Flags == 2:
            channel, number = Event.what
            if not channel:
                return "<BookmarkList>\r\n</BookmarkList>"
            bookmark = f"<Bookmark Channel='{escape(channel)}' RecordId='{number}' IsCurrent='true'/>"
            return f"<BookmarkList>\r\n  {bookmark}\r\n</BookmarkList>"
        assert Flags == 1
        channel, record = Event.what
        if (channel, record.number) in self.unrenderable:
            raise Failure(15005, "EvtRender", "The data of the event is not valid.")
        xml: str = record.xml
        return xml.partition("\0")[0]  # as pywin32 does

    def EvtCreateBookmark(self, BookmarkXML: str | None = None) -> Handle:  # noqa: N802, N803
        self._may_fail("EvtCreateBookmark")
        if BookmarkXML is None:
            return Handle(("", 0))
        channel = re.search(r"Channel='([^']*)'", BookmarkXML)
        number = re.search(r"RecordId='(\d+)'", BookmarkXML)
        if channel is None or number is None:
            raise Failure(15008, "EvtCreateBookmark", "The specified xml text was not well-formed.")
        return Handle((channel[1], int(number[1])))

    def EvtUpdateBookmark(self, Bookmark: Handle, Event: Handle) -> None:  # noqa: N802, N803
        self._may_fail("EvtUpdateBookmark")
        channel, record = Event.what
        Bookmark.what = (channel, record.number)

    def EvtOpenPublisherMetadata(self, PublisherIdentity: str) -> Handle:  # noqa: N802, N803
        self._may_fail("EvtOpenPublisherMetadata")
        found = self.providers.get(PublisherIdentity, 15002)
        if isinstance(found, int):
            raise Failure(found, "EvtOpenPublisherMetadata", "The publisher metadata cannot be found in the resource.")
        return Handle(found)

    def EvtFormatMessage(self, Metadata: Handle, Event: Handle, Flags: int) -> str:  # noqa: N802, N803
        self._may_fail("EvtFormatMessage")
        assert Flags == 9
        _, record = Event.what
        words = f"<RenderingInfo Culture='en-US'><Message>{escape(Metadata.what)}</Message></RenderingInfo></Event>"
        xml: str = record.xml
        return (xml.removesuffix("</Event>") + words).partition("\0")[0]

    def _log(self, path: str, call: str) -> Log:
        if path.lower() not in self.logs:
            raise Failure(15007, call, "The specified channel could not be found.")
        if path.lower() in self.denied:
            raise Failure(5, call, "Access is denied.")
        return self.logs[path.lower()]

    def _may_fail(self, call: str) -> None:
        self.calls[call] = self.calls.get(call, 0) + 1
        if self.failures.get(call):
            raise Failure(self.failures[call].popleft(), call, "It failed, as was asked for.")

    @staticmethod
    def _number_in(bookmark: Handle) -> int:
        return int(bookmark.what[1])

    def _matcher(self, query: str) -> Callable[[Record], bool]:
        if query == "*":
            return lambda record: True
        rest = _TERM.sub("", query)
        if not query.startswith("*[System[") or re.sub(r"[\[\]()* ]|System|and", "", rest):
            raise Failure(15001, "EvtQuery", "The specified query is invalid.")
        terms = list(_TERM.finditer(query))
        now = datetime.now(UTC)

        def matches(record: Record) -> bool:
            for term in terms:
                if term[4]:
                    age = (now - record.written_at).total_seconds() * 1000
                    if (age > int(term[5])) != (term[4] == ">"):
                        return False
                    continue
                said = re.search(rf"<{term[1]}>(\d+)<", record.xml)
                value = int(said[1]) if said else -1
                wanted = int(term[3])
                if not {"=": value == wanted, ">=": value >= wanted, "<=": value <= wanted}[term[2]]:
                    return False
            return True

        return matches

    # The modules

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let `import win32evtlog` find this."""
        constants = {
            "EvtSubscribeToFutureEvents": 1, "EvtSubscribeStartAtOldestRecord": 2, "EvtSubscribeStartAfterBookmark": 3,
            "EvtSubscribeStrict": 0x10000, "EvtQueryChannelPath": 1, "EvtQueryForwardDirection": 0x100,
            "EvtQueryReverseDirection": 0x200, "EvtSeekRelativeToBookmark": 4, "EvtSeekStrict": 0x10000,
            "EvtRenderEventXml": 1, "EvtRenderBookmark": 2, "EvtFormatMessageXml": 9,
        }  # fmt: skip
        functions = {name: getattr(self, name) for name in dir(self) if name.startswith("Evt")}
        events = {"CreateEvent", "SetEvent", "ResetEvent", "WaitForMultipleObjects"}
        contents: dict[str, dict[str, Any]] = {
            "win32evtlog": {**constants, **functions},
            "win32event": {name: getattr(self, name) for name in events},
            "pywintypes": {"error": Failure},
        }
        for name, members in contents.items():
            module = types.ModuleType(name)
            module.__spec__ = importlib.util.spec_from_loader(name, loader=None)
            module.__dict__.update(members)
            monkeypatch.setitem(sys.modules, name, module)
