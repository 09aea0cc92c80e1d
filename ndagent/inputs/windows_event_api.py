"""The Windows event log as this input uses it: pywin32's win32evtlog, with its failures in one shape.

Promises: every failure of a call is an EventLogError that names the call, the reason and its number; handles close when
nothing refers to them any more (pywin32), subscriptions also by `close`. Nothing here waits longer than it is told to.
Refuses: keeping state, but for the providers' metadata, at most MAX_PROVIDERS of them.

Three things about pywin32 (read in its source, version 312) decide how it is used. EvtNext waits for ever unless told
otherwise. EvtRender ends the text at its first NUL, so an XML that does not end as one is rendered again through
wevtapi.dll itself. The number of an error is asked for after the interpreter's lock was taken again, so now and then it
is another call's: no number is taken to mean that all is well.
"""

import ctypes
import importlib
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

MAX_PROVIDERS = 256
"""Providers whose metadata is kept open; the one used longest ago is closed first."""
FAILED_PROVIDER_SECONDS = 300.0
"""A provider whose metadata could not be opened is not asked again for so long; it may be installed meanwhile."""
NEXT_TIMEOUT_MS = 1000
"""The most that EvtNext may take to say that there is nothing new."""
QUERY_TIMEOUT_MS = 10_000
"""The most that a query may take from one match to the next: each reads the channel's records one by one."""
_RENDER_BYTES = 1 << 16

NOT_THERE = frozenset({2, 3, 15007, 15000})
"""ERROR_FILE_NOT_FOUND, _PATH_NOT_FOUND, ERROR_EVT_CHANNEL_NOT_FOUND, _INVALID_CHANNEL_PATH."""
DENIED = 5
NO_SUCH_PLACE = frozenset({1168, 15011, 15012})
"""ERROR_NOT_FOUND, ERROR_EVT_QUERY_RESULT_STALE, _INVALID_POSITION: what a strict bookmark that leads nowhere gives."""
BATCH_TOO_BIG = 1734
"""RPC_S_INVALID_BOUND: the events of one EvtNext are too big together."""
BAD_QUERY = frozenset({15001, 15008, 15014, 15015, 15016, 15017, 15018, 15019, 15020, 15021})
"""ERROR_EVT_INVALID_QUERY and what its filter can have wrong."""
DIRECT_CHANNEL = 15009
"""ERROR_EVT_SUBSCRIPTION_TO_DIRECT_CHANNEL: analytic and debug channels have no subscriptions."""
SLOW = 1460
"""ERROR_TIMEOUT: a subscription has nothing now; a query has not read all there is."""
_NOTHING_NOW = frozenset({259, 4317})
"""ERROR_NO_MORE_ITEMS, and ERROR_INVALID_OPERATION: so says a subscription that is asked again without news. pywin32
means to pass over that one and does not always (its issue 2377). A handle that is of no use any more may say the same:
that is what the look for silence is for."""

_PROVIDER = re.compile(r"<Provider Name='([^'<]*)'")
_RECORD_ID = re.compile(r"RecordId=['\"](\d{1,20})['\"]")


class EventLogError(OSError):
    """A call failed; `number` is Windows' own."""

    def __init__(self, call: str, number: int, reason: str) -> None:
        super().__init__(f"{call}: {reason.rstrip('. ') or 'no reason given'} ({number})")
        self.number = number


class Subscription(NamedTuple):
    """An open subscription, and what is set when it has news."""

    handle: Any
    signal: Any


class Mark(NamedTuple):
    """A place in a channel: its bookmark, as Windows writes it, and the record's number in that."""

    bookmark: str
    record: int


class EventLog:
    """One per thread that reads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Raises ImportError where there is no pywin32."""
        self._log = importlib.import_module("win32evtlog")
        self._event = importlib.import_module("win32event")
        self._error: type[Exception] = importlib.import_module("pywintypes").error
        self._clock = clock
        self._providers: OrderedDict[str, tuple[Any, str, float]] = OrderedDict()

    def signal(self) -> Any:
        """An event of the manual kind, set."""
        return self._event.CreateEvent(None, True, True, None)

    def set(self, signal: Any) -> None:
        """Wake who waits for it."""
        self._event.SetEvent(signal)

    def reset(self, signal: Any) -> None:
        """From now on it is news."""
        self._event.ResetEvent(signal)

    def wait(self, signals: Sequence[Any], seconds: float) -> None:
        """Until one of them (64 at the most) is set, or for so long."""
        self._call("WaitForMultipleObjects", self._event.WaitForMultipleObjects, signals, False, int(seconds * 1000))

    def subscribe(self, channel: str, query: str, *, after: str | None, strict: bool = False) -> Subscription:
        """To what comes after the bookmark, or to all there is; `strict`: only if the bookmark's record is there."""
        log, signal = self._log, self.signal()
        arguments: dict[str, Any] = {"ChannelPath": channel, "SignalEvent": signal, "Query": query}
        if after is None:
            arguments["Flags"] = log.EvtSubscribeStartAtOldestRecord
        else:
            arguments["Bookmark"] = self._call("EvtCreateBookmark", log.EvtCreateBookmark, after)
            arguments["Flags"] = log.EvtSubscribeStartAfterBookmark | (log.EvtSubscribeStrict if strict else 0)
        return Subscription(self._call("EvtSubscribe", log.EvtSubscribe, **arguments), signal)

    def close(self, subscription: Subscription) -> None:
        """End it; the service may have done so already."""
        with suppress(self._error):
            subscription.handle.Close()

    def next(self, subscription: Any, count: int) -> Sequence[Any]:
        """Up to so many events of a subscription; none if there are none now."""
        try:
            return self._next(subscription, count, NEXT_TIMEOUT_MS)
        except EventLogError as error:
            if error.number != SLOW:
                raise
            return ()

    def _next(self, result: Any, count: int, timeout_ms: int) -> Sequence[Any]:
        try:
            found: Sequence[Any] = self._log.EvtNext(result, count, Timeout=timeout_ms)
        except self._error as error:
            failure = _failure("EvtNext", error)
            if failure.number in _NOTHING_NOW:
                return ()
            raise failure from None
        return found

    def xml(self, event: Any) -> str:
        """The event as Windows renders it."""
        text: str = self._call("EvtRender", self._log.EvtRender, event, self._log.EvtRenderEventXml)
        return text if text.endswith("</Event>") else self._whole(event, text)

    def mark(self, event: Any) -> Mark:
        """The place of an event."""
        bookmark = self._call("EvtCreateBookmark", self._log.EvtCreateBookmark)
        self._call("EvtUpdateBookmark", self._log.EvtUpdateBookmark, bookmark, event)
        text: str = self._call("EvtRender", self._log.EvtRender, bookmark, self._log.EvtRenderBookmark)
        number = _RECORD_ID.search(text)
        return Mark(text, int(number[1]) if number else 0)

    def select(
        self, channel: str, query: str, *, newest_first: bool = False, timeout_ms: int = QUERY_TIMEOUT_MS
    ) -> Iterator[Any]:
        """The channel's events now that match, one after the other. Raises EventLogError; SLOW: none came in time."""
        direction = self._log.EvtQueryReverseDirection if newest_first else self._log.EvtQueryForwardDirection
        flags = self._log.EvtQueryChannelPath | direction
        result = self._call("EvtQuery", self._log.EvtQuery, channel, flags, query)
        size = 1 if newest_first else 64
        while found := self._next(result, size, timeout_ms):
            yield from found

    def at(self, channel: str, bookmark: str, *, offset: int = 0) -> Iterator[Any]:
        """The channel's events from the bookmark's record on, or so many behind it. Raises EventLogError if it is gone.

        Windows finds a bookmark without reading the channel, while a query by number reads all of it.
        """
        log = self._log
        flags = log.EvtQueryChannelPath | log.EvtQueryForwardDirection
        result = self._call("EvtQuery", log.EvtQuery, channel, flags, "*")
        place = self._call("EvtCreateBookmark", log.EvtCreateBookmark, bookmark)
        self._call("EvtSeek", log.EvtSeek, result, offset, log.EvtSeekRelativeToBookmark | log.EvtSeekStrict, place)
        while found := self._next(result, 64 if offset else 1, QUERY_TIMEOUT_MS):
            yield from found

    def first(
        self, channel: str, query: str = "*", *, newest_first: bool = False, timeout_ms: int = QUERY_TIMEOUT_MS
    ) -> Any | None:
        """The oldest, or the newest, of them; None if there are none. Raises as `select` does."""
        return next(self.select(channel, query, newest_first=newest_first, timeout_ms=timeout_ms), None)

    def words(self, event: Any, xml: str) -> tuple[str, str]:
        """The XML with what the provider calls things (RenderingInfo), and "": or as it was, and why.

        What was forwarded may have it already.
        """
        if "<RenderingInfo" in xml:
            return xml, ""
        provider = _PROVIDER.search(xml)
        metadata, reason = self._metadata(provider[1]) if provider else (None, "it names no provider")
        if reason:
            return xml, reason
        try:
            rendered = self._log.EvtFormatMessage(metadata, event, self._log.EvtFormatMessageXml)
        except self._error as error:
            return xml, str(_failure("EvtFormatMessage", error))
        if not rendered.startswith("<Event") or not rendered.endswith("</Event>"):
            return xml, "what EvtFormatMessage gave is not whole"
        return rendered, ""

    def _metadata(self, provider: str) -> tuple[Any, str]:
        known = self._providers.get(provider)
        if known is not None and (not known[1] or self._clock() < known[2]):
            self._providers.move_to_end(provider)
            return known[:2]
        found, reason = None, ""
        try:
            found = self._log.EvtOpenPublisherMetadata(provider)
        except self._error as error:
            reason = str(_failure("EvtOpenPublisherMetadata", error))
        self._providers[provider] = (found, reason, self._clock() + FAILED_PROVIDER_SECONDS)
        self._providers.move_to_end(provider)
        if len(self._providers) > MAX_PROVIDERS:
            self._providers.popitem(last=False)
        return found, reason

    def _whole(self, event: Any, text: str) -> str:
        """Rendered by wevtapi.dll itself, NULs included; `text` where that does not work."""
        library = getattr(ctypes, "windll", None)
        if library is None:
            return text
        size, used, count = _RENDER_BYTES, ctypes.c_ulong(), ctypes.c_ulong()
        for _ in range(2):
            buffer = ctypes.create_string_buffer(size)
            place = ctypes.c_void_p(int(event)), self._log.EvtRenderEventXml, size, buffer
            if library.wevtapi.EvtRender(None, *place, ctypes.byref(used), ctypes.byref(count)):
                whole = buffer.raw[: used.value].decode("utf-16-le", "surrogatepass").rstrip("\0")
                return whole if len(whole) >= len(text) else text
            size = used.value
        return text

    def _call(self, name: str, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        try:
            return function(*arguments, **named)
        except self._error as error:
            raise _failure(name, error) from None


def _failure(call: str, error: Exception) -> EventLogError:
    """pywintypes.error has (number, name of the call, reason)."""
    number, _, reason = (*error.args, 0, "", "")[:3]
    return EventLogError(call, number if isinstance(number, int) else 0, str(reason))
