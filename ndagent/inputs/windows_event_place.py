"""Where a channel was read to: one part of the input's checkpoint, and what an event's own numbers say.

A channel's part is JSON: the bookmark as Windows writes it, the record's number and time. The time tells whether the
record that has this number now is the one that was read: a cleared log may number anew. A part without a bookmark says
that all of the channel is ahead, and whether its numbers begin at 1, so that the first that comes shows a hole.
"""

import re
from dataclasses import dataclass

import orjson

_RECORD = re.compile(r"<EventRecordID>(\d{1,20})</EventRecordID>")
_MOMENT = re.compile(r"<TimeCreated SystemTime=['\"]([^'\"<]{1,40})['\"]")


@dataclass(frozen=True, slots=True)
class Place:
    """After the record with this number and time; the whole channel is ahead where `bookmark` is empty.

    `is_new`: then, its first record is number 1, as in a channel that was made or cleared meanwhile. Where that is not
    known of a cleared one, `record` is the last of before: a number up to that says that they begin at 1.
    """

    bookmark: str = ""
    record: int = 0
    moment: str = ""
    is_new: bool = False

    def pack(self) -> bytes:
        """The part's bytes."""
        return orjson.dumps([1, self.bookmark, self.record, self.moment, self.is_new])

    @classmethod
    def unpack(cls, data: bytes) -> "Place":
        """Inverse of `pack`; raises ValueError."""
        found = orjson.loads(data)
        kinds = [type(one) for one in found] if isinstance(found, list) else []
        if kinds != [int, str, int, str, bool] or found[0] != 1:
            raise ValueError("not a channel's place")
        return cls(*found[1:])


def key_of(channel: str) -> bytes:
    """The part's key: Windows does not mind the case of a channel's name."""
    return channel.lower().encode()


def record_of(xml: str) -> int | None:
    """The event's number in its channel; None where it says none."""
    found = _RECORD.search(xml)
    return int(found[1]) if found else None


def moment_of(xml: str) -> str:
    """When it was written, as it says; empty where it does not."""
    found = _MOMENT.search(xml)
    return found[1] if found else ""


def written_bookmark(channel: str, number: int) -> str:
    """A bookmark of this record, written as Windows writes one; for the record that Windows gives none of."""
    name = channel.replace("&", "&amp;").replace("<", "&lt;").replace("'", "&apos;")
    return f"<BookmarkList>\r\n  <Bookmark Channel='{name}' RecordId='{number}' IsCurrent='true'/>\r\n</BookmarkList>"
