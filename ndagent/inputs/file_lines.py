"""Bytes of a file to lines: a pure function from a piece that begins at the position to what is delivered of it.

Promises:
  * however a file is cut into pieces, the lines are the same, each once; what has no end yet is left for the next time,
    not kept in memory;
  * a line longer than `max_line_bytes` is delivered up to there, tagged _truncated, and the rest of it passed over;
  * text that the encoding does not allow gets U+FFFD, and its exact bytes stand beside it;
  * NUL bytes before a line (the hole that copytruncate leaves before a writer that does not append, or a block that a
    crash zeroed) are no part of it and are counted; while nothing stands behind them they are not passed;
  * a line's CR before its LF is no part of it, and an empty line is no event (inside a multi-line one it is).
Refuses: files, clocks.

A last line without an end is only taken when asked to (`take_rest`): it is tagged _truncated, and should its end come
later all the same, the rest becomes an event of its own, tagged _continued.
"""

import codecs
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import NamedTuple

from ndagent.inputs.file_identity import Within

TRUNCATED, CONTINUED = 1, 2

_BOMS = (
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_FAMILIES: dict[str, tuple[str, ...]] = {
    "utf-8": ("utf-8", "utf-16"),  # no UTF-8 text begins with UTF-16's mark
    "utf-16": ("utf-16",),
    "utf-32": ("utf-32",),
}
"""Whose marks are looked for, by the setting."""
_UNORDERED = {"utf-16": "utf-16-le", "utf-32": "utf-32-le"}
_NOT_FOR_FILES = {"unicode_escape", "raw_unicode_escape", "idna", "punycode", "utf-7", "undefined", "utf-8-sig"}


class Encoding(NamedTuple):
    """How a file's bytes are text: a codec's name, the bytes of its line end, and those of its byte order mark."""

    name: str
    line_end: bytes
    mark_bytes: int = 0


def check_encoding(name: str) -> str:
    """The codec's own name; raises ValueError for one that is not an encoding of text files."""
    try:
        known = codecs.lookup(name).name
        usable = "\n".encode(known).decode(known) == "\n" and known not in _NOT_FOR_FILES
    except (LookupError, UnicodeError):
        usable = False
    if not usable:
        raise ValueError(f"{name!r} is no encoding of text files; write utf-8, utf-16, latin-1, cp1252 or another one")
    return known


def encoding_of(name: str, head: bytes) -> Encoding:
    """The encoding of a file that begins with `head`; a byte order mark says more than the setting `name`."""
    families = _FAMILIES.get(name[:6].rstrip("-"), ())
    for mark, marked in _BOMS:
        if marked.startswith(families) and head.startswith(mark):
            return Encoding(marked, "\n".encode(marked), len(mark))
    name = _UNORDERED.get(name, name)
    return Encoding(name, "\n".encode(name))


class Multiline(NamedTuple):
    """Which lines belong together: `begins(line)` says whether a line is the first of an event."""

    begins: Callable[[str], bool]
    max_lines: int
    max_bytes: int


@dataclass(slots=True)
class Taken:
    """Events of one piece, in order: texts and the offsets of their first bytes, counted from the piece's beginning.

    `tags` and `exact` (the bytes of a text with replacements) are by index, where there are any. `used` bytes are
    passed, `within` is where that leaves the position; `has_rest` says that something waits for its end, and
    `has_more` that there are more lines than were asked for.
    """

    texts: list[str] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    tags: dict[int, int] = field(default_factory=dict)
    exact: dict[int, bytes] = field(default_factory=dict)
    used: int = 0
    within: Within = Within.NOTHING
    nul_bytes: int = 0
    has_rest: bool = False
    has_more: bool = False


class Splitter:
    """Takes pieces of files of one input apart; holds no state between them."""

    def __init__(self, *, max_line_bytes: int, multiline: Multiline | None = None) -> None:
        self._max_line_bytes = max_line_bytes
        self._multiline = multiline

    @property
    def piece_bytes(self) -> int:
        """A piece of this length always holds something to take or to pass over, or ends the file."""
        most = self._max_line_bytes + 8
        return most if self._multiline is None else most + self._multiline.max_bytes

    def take(
        self, data: bytes, encoding: Encoding, within: Within, *, most: int, take_rest: bool, take_group: bool
    ) -> Taken:
        """The events that begin in `data`, at most `most` lines of them.

        `take_rest`: what stands behind the last line end will have to wait no longer. `take_group`: nor will the last
        multi-line event.
        """
        taken = Taken(within=within)
        end, width = encoding.line_end, len(encoding.line_end)
        start = 0
        if within & Within.SKIPPED:
            start = _behind(data, end, 0)
            if start < 0:
                taken.used = len(data) // width * width
                return taken
            taken.within = Within.NOTHING
        raws = _split(data, end, start, most)
        bounds = list(accumulate((len(raw) + width for raw in raws), initial=start))
        rest_at = bounds.pop()
        rest = data[rest_at:] if len(raws) < most else b""
        nuls = _drop_nuls(raws, bounds, width) if 0 in data else []
        tags = self._cut_long(raws, encoding)
        if taken.within & Within.DELIVERED and raws:
            tags[0] = tags.get(0, 0) | CONTINUED
            taken.within = Within.NOTHING
        taken.used = rest_at
        taken.has_more = len(raws) >= most
        left = rest.lstrip(b"\0")
        if left:  # else it may be a hole with nothing behind it yet: what is written there must not be missed
            skipped = (len(rest) - len(left)) // width * width
            taken.used += skipped
            nuls.append((taken.used, skipped))
            rest = rest[skipped:]
        is_long = bool(left) and self._add_rest(rest, raws, bounds, tags, taken, encoding=encoding, wanted=take_rest)
        texts, exact = _decode(raws, encoding)
        if self._multiline is None:
            self._single(texts, bounds, tags, exact, taken)
        else:
            ends = [*bounds[1:], taken.used]
            is_last_taken = take_group or take_rest or is_long
            if self._grouped(_Lines(texts, bounds, ends, tags, exact), taken, take_group=is_last_taken):
                taken.within = within & Within.DELIVERED  # all of it is read again
        taken.nul_bytes = sum(length for passed, length in nuls if passed <= taken.used)
        taken.has_rest = taken.has_rest or taken.used < len(data)
        return taken

    def _cut_long(self, raws: list[bytes], encoding: Encoding) -> dict[int, int]:
        most = self._max_line_bytes
        if not raws or max(map(len, raws)) <= most:
            return {}
        tags = {}
        for index, raw in enumerate(raws):
            if len(raw.removesuffix(b"\r")) > most:
                raws[index] = whole_characters(raw[:most], encoding)
                tags[index] = TRUNCATED
        return tags

    def _add_rest(
        self, rest: bytes, raws: list[bytes], bounds: list[int], tags: dict[int, int], taken: Taken, *,
        encoding: Encoding, wanted: bool,
    ) -> bool:  # fmt: skip
        """What stands behind the last line end: too long (True), due, or left."""
        width = len(encoding.line_end)
        is_long = len(rest) > self._max_line_bytes + width
        if not is_long and not wanted:
            return False
        piece = rest[: self._max_line_bytes if is_long else len(rest) // width * width]
        whole = whole_characters(piece, encoding)
        tags[len(raws)] = TRUNCATED | (CONTINUED if taken.within & Within.DELIVERED else 0)
        raws.append(whole)
        bounds.append(taken.used)
        taken.used += len(rest) // width * width if is_long else len(whole)
        taken.within = Within.SKIPPED if is_long else Within.DELIVERED
        return is_long

    def _single(
        self, texts: list[str], bounds: list[int], tags: dict[int, int], exact: dict[int, bytes], taken: Taken
    ) -> None:
        if "" in texts:
            kept = [index for index, text in enumerate(texts) if text]
            moved = {before: now for now, before in enumerate(kept)}
            tags = {moved[index]: tag for index, tag in tags.items() if index in moved}
            exact = {moved[index]: raw for index, raw in exact.items() if index in moved}
            texts, bounds = [texts[index] for index in kept], [bounds[index] for index in kept]
        taken.texts, taken.offsets, taken.tags, taken.exact = texts, bounds, tags, exact

    def _grouped(self, lines: "_Lines", taken: Taken, *, take_group: bool) -> bool:
        """Lines to multi-line events; the last one is left unless it is full, or must not wait any longer.

        True if that leaves all there is.
        """
        rules = self._multiline
        assert rules is not None  # noqa: S101 - only called with one
        first = 0
        size = 0
        for index, text in enumerate(lines.texts):
            begins = rules.begins(text)
            is_full = index - first >= rules.max_lines or size + len(text) > rules.max_bytes
            is_full |= bool(lines.tags.get(index - 1, 0) & TRUNCATED)  # its rest is passed over: nothing may follow it
            if index > first and (begins or is_full):
                lines.join(first, index, taken, is_cut=not begins, begins=rules.begins)
                first, size = index, 0
            size += lines.ends[index] - lines.starts[index]
        if first == len(lines.texts):
            return False
        if take_group:
            lines.join(first, len(lines.texts), taken, is_cut=False, begins=rules.begins)
            return False
        taken.used = lines.starts[first]
        return first == 0


class _Lines(NamedTuple):
    texts: list[str]
    starts: list[int]
    ends: list[int]
    tags: dict[int, int]
    exact: dict[int, bytes]

    def join(self, first: int, last: int, taken: Taken, *, is_cut: bool, begins: Callable[[str], bool]) -> None:
        """One event of the lines from `first` to below `last`; none if they are all empty."""
        text = "\n".join(self.texts[first:last]).rstrip("\n")
        if not text:
            return
        tag = TRUNCATED if is_cut else 0
        tag |= 0 if begins(self.texts[first]) else CONTINUED
        for index in range(first, last) if self.tags else ():
            tag |= self.tags.get(index, 0)
        at = len(taken.texts)
        if tag:
            taken.tags[at] = tag
        if any(index in self.exact for index in range(first, last)) if self.exact else False:
            raws = [self.exact.get(index) or self.texts[index].encode() for index in range(first, last)]
            taken.exact[at] = b"\n".join(raws)
        taken.texts.append(text)
        taken.offsets.append(self.starts[first])


def _split(data: bytes, end: bytes, start: int, most: int) -> list[bytes]:
    """The ended lines from `start` on, at most `most`, without their ends."""
    if len(end) == 1:
        raws = data[start:].split(end, most) if start else data.split(end, most)
        raws.pop()
        return raws
    raws = []
    while len(raws) < most:
        behind = _behind(data, end, start)
        if behind < 0:
            break
        raws.append(data[start : behind - len(end)])
        start = behind
    return raws


def _behind(data: bytes, end: bytes, start: int) -> int:
    """Where the line that begins at `start` has passed its end (in whole units of wide encodings); -1: it has none."""
    at = data.find(end, start)
    while at >= 0 and (at - start) % len(end):
        at = data.find(end, at + 1)
    return at + len(end) if at >= 0 else -1


def _drop_nuls(raws: list[bytes], bounds: list[int], width: int) -> list[tuple[int, int]]:
    """Take NUL units off the lines' beginnings; where each run ended, and its length."""
    found = []
    for index, raw in enumerate(raws):
        if raw[:1] == b"\0":
            nuls = (len(raw) - len(raw.lstrip(b"\0"))) // width * width
            raws[index] = raw[nuls:]
            bounds[index] += nuls
            found.append((bounds[index], nuls))
    return found


def whole_characters(data: bytes, encoding: Encoding) -> bytes:
    """Without the beginning of a character that was cut off, where the encoding tells; never nothing of something."""
    width = len(encoding.line_end)
    if width > 1:
        return data[: len(data) // width * width]
    if encoding.name != "utf-8":
        return data
    for back in range(1, min(4, len(data)) + 1):
        byte = data[-back]
        if byte & 0xC0 == 0x80:
            continue
        needs = 2 if byte >> 5 == 0b110 else 3 if byte >> 4 == 0b1110 else 4 if byte >> 3 == 0b11110 else 1
        return data[:-back] if needs > back and len(data) > back else data
    return data


def _decode(raws: Sequence[bytes], encoding: Encoding) -> tuple[list[str], dict[int, bytes]]:
    """The lines' texts without their CR, and the exact bytes of those that are not text in this encoding."""
    joined = encoding.line_end.join(raws)
    exact: dict[int, bytes] = {}
    try:
        texts = joined.decode(encoding.name).split("\n")
    except UnicodeDecodeError:
        texts = []
    if len(texts) != len(raws):
        texts = [_decode_one(index, raw, encoding.name, exact) for index, raw in enumerate(raws)]
    if b"\r" in joined:
        texts = [text.removesuffix("\r") for text in texts]
        exact = {index: raw.removesuffix(b"\r") for index, raw in exact.items()}
    return texts, exact


def _decode_one(index: int, raw: bytes, name: str, exact: dict[int, bytes]) -> str:
    try:
        return raw.decode(name)
    except UnicodeDecodeError:
        exact[index] = raw
        return raw.decode(name, "replace")
