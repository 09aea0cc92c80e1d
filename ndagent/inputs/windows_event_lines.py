"""The events that the input makes itself: of records that are missing, and of a log that was cleared.

A gap is of kind pipeline_error: events were lost. A cleared log is an event, whatever was still unread in it; how many
that were is said where the numbers tell. Refuses: I/O, clocks.
"""

from collections.abc import Mapping
from typing import Any

import orjson

OVERWRITTEN = "overwritten"
"""The log was full, and its oldest records made room, before they were read."""
MISSING = "missing"
"""Older and newer records are there, these are not."""
UNREADABLE = "unreadable"
"""The record is there, and Windows cannot render it."""


def gap_line(
    channel: str, *, first: int, last: int | None, reason: str, created: str, base: Mapping[str, Any], why: str = ""
) -> bytes:
    """The records from `first` to `last` are gone; None where only the first is known."""
    count = None if last is None else last - first + 1
    words = {OVERWRITTEN: "overwritten before they were read", MISSING: "not in the log", UNREADABLE: "unreadable"}
    records = "records" if count is None else f"{count} record{'s' if count > 1 else ''}"
    gap: dict[str, Any] = {"first_record_id": str(first)}
    if count is not None:
        gap |= {"last_record_id": str(last), "records": count}
    document = _own(channel, created, base, kind="pipeline_error", action="events_lost", reason=reason)
    document["message"] = f"{channel}: {records} from number {first} on: {words[reason]}{f' ({why})' if why else ''}"
    document["winlog"]["gap"] = gap
    return orjson.dumps(document) + b"\n"


def cleared_line(
    channel: str, *, last_read: int, unread: int | None, created: str, base: Mapping[str, Any]
) -> bytes:
    """The log was cleared after record `last_read` was read; `unread` of its records were not, None if unknown."""
    document = _own(channel, created, base, kind="event", action="log_cleared", reason="log_cleared")
    document["event"] |= {"category": ["configuration"], "type": ["deletion"]}
    about: dict[str, Any] = {"last_record_id": str(last_read)}
    if unread is not None:
        about["unread_records"] = unread
    document["message"] = f"{channel}: the log was cleared; its last record read was number {last_read}" + (
        f", {unread} after it were not" if unread else ""
    )
    document["winlog"]["cleared"] = about
    return orjson.dumps(document) + b"\n"


def _own(channel: str, created: str, base: Mapping[str, Any], **about: str) -> dict[str, Any]:
    return {
        "@timestamp": created,
        **base,
        "message": "",
        "event": {"module": "windows", "dataset": "windows.event", "created": created, **about},
        "winlog": {"channel": channel},
    }
