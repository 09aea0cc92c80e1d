"""Whether one file is a copy of another: of what it is, of what it was before it was cut, or of its text, compressed.

Promises: content decides, at the beginning and at the end of what is compared, never size or time. A file that has
nothing in it is no copy yet. Refuses: names (file_table.py asks only about those that rotation could have made).
"""

import os

from ndagent.core.system_files import pread
from ndagent.inputs.file_gzip import GzipText
from ndagent.inputs.file_identity import HEAD_BYTES, Place
from ndagent.inputs.file_tail import Tail


def is_beginning(copy_fd: int, fd: int) -> bool:
    """Whether one file's content is how another begins, by its first and its last bytes."""
    size = os.fstat(copy_fd).st_size
    last = max(size - HEAD_BYTES, 0)
    return size > 0 and all(
        pread(copy_fd, HEAD_BYTES, at) == pread(fd, min(HEAD_BYTES, size - at), at) for at in (0, last)
    )


def was_beginning(tail: Tail, other: Tail) -> bool:
    """The same of what the other was before it was cut, by what is remembered of it."""
    begins = pread(tail.fd, HEAD_BYTES, 0)
    was_short = 0 < len(begins) < other.head.length and other.first.startswith(begins)
    if not other.head.length or not (was_short or other.head.fits(begins)):
        return False
    is_cut = os.fstat(other.fd).st_size < other.place.position or not other.head.fits(pread(other.fd, HEAD_BYTES, 0))
    is_shorter = os.fstat(tail.fd).st_size < other.place.position  # we have read what came after the copy was made
    return is_cut and (is_shorter or _holds(tail.fd, other.place))


def is_continued(fd: int, tail: Tail) -> bool:
    """Whether an open file is the one that is remembered, unchanged as far as it was read."""
    return tail.head.fits(pread(fd, HEAD_BYTES, 0)) and (tail.place.position == 0 or _holds(fd, tail.place))


def _holds(fd: int, place: Place) -> bool:
    """Whether the bytes before this place are what they were when it was reached in another file."""
    length = place.mark.length
    return length > 0 and place.mark.fits(pread(fd, length, place.position - length))


def text_of(text: GzipText, others: list[Tail]) -> Tail | None:
    """The one whose content a compressed file holds; its text is read up to where that one was."""
    head = text.at(0, HEAD_BYTES)
    for other in sorted(others, key=lambda other: other.place.position):
        position, mark, _ = other.place
        before = position - mark.length
        is_candidate = mark.length and before >= text.position and other.head.length and other.head.fits(head)
        if is_candidate and mark.fits(text.at(before, mark.length)):
            return other
    return None
