"""Finds what must not leave in a text, and puts something else there.

    finder = Finder(["card_number", "secret", "badge [0-9]+"])          raises ValueError that says what is wrong
    finder.redact("pan 4111 1111 1111 1111", "[redacted]")               "pan [redacted]"

Promises: time linear in the text (RE2, see ndagent/wire/where_match.py) and memory bounded, whatever text and patterns;
a text that would grow to more than MAX_GROWTH times its size and GROWTH_BYTES is replaced as a whole.
Refuses: events (redaction.py), and telling a secret that nothing marks as one from other text.
"""

import difflib
import re
from collections.abc import Iterator, Sequence
from typing import Any

import re2

from ndagent.wire.where_match import MAX_PATTERN, MAX_PATTERN_BYTES
from ndcollector.routing.secret_patterns import (
    BARE_ENDINGS,
    CARD_NUMBER,
    CARD_RUN,
    GROUPS,
    NAMED,
    Span,
    cards_in,
    end_of_bare,
)

MAX_PATTERNS = 16
MAX_GROWTH = 2
GROWTH_BYTES = 1024
_OWN_PATTERN_BYTES = 8 << 20
_ESCAPED = r"\\u|original_base64"
"""A line with one of these may hold a find that its bytes do not show."""
_ANCHORS = "^$"
"""What matches at a text's ends may not match where texts are joined."""
_IS_A_NAME = re.compile(r"[a-z][a-z_]*")
_SURROGATE = re.compile("[\udc80-\udcff]")


class Finder:
    """Compiled once; safe to use from any thread."""

    def __init__(self, patterns: Sequence[str]) -> None:
        names, own = _sorted_out(patterns)
        self._cards = CARD_NUMBER in names
        found = [(name, text) for name in names for text in NAMED[name].patterns if text != CARD_RUN]
        self._patterns = [_Pattern(text, is_bare=text.endswith(BARE_ENDINGS)) for name, text in found]
        self._patterns += [_Pattern(text, is_bare=False) for text in own]
        texts = [text for _, text in found] + own + ([CARD_RUN] if self._cards else [])
        self._any = _compiled("|".join(f"(?:{text.replace('?P<secret>', '?:')})" for text in texts), own=False)
        self._is_joinable = not any(set(_ANCHORS) & set(text) or r"\A" in text or r"\z" in text for text in own)
        self._run = _compiled(CARD_RUN, own=False)
        hints = [f"(?:{NAMED[name].hint})" for name in names]
        self.hint = None if own else _compiled("|".join([*dict.fromkeys(hints), _ESCAPED]), own=False)

    def spans(self, text: bytes) -> list[Span]:
        """Where in this UTF-8 text there is something, from left to right, none touching another."""
        if self._any.search(text) is None:
            return []
        found = [span for pattern in self._patterns for span in pattern.spans(text)]
        if self._cards:
            found += self._card_spans(text)
        return list(_merged(sorted(found)))

    def may_be_in(self, texts: Sequence[str]) -> bool:
        """False only where there is nothing in any of them: one search for all, as far as the patterns allow it."""
        if not self._is_joinable:
            return True
        return self._any.search("\n".join(texts).encode("utf-8", "replace")) is not None

    def redact(self, text: str, replacement: str) -> str:
        """The text without what is found; the very same object where nothing is."""
        data = text.encode("utf-8", "replace")
        spans = self.spans(data)
        if not spans:
            return text
        new = _spliced(data, spans, replacement.encode())
        return replacement if _grew(len(data), len(new)) else new.decode("utf-8", "replace")

    def redact_exact(self, raw: bytes, replacement: str) -> bytes:
        """As `redact` for bytes that need not be UTF-8: those that are not stay as they are."""
        text = raw.decode("utf-8", "surrogateescape")  # one character for each byte that is none
        data = _SURROGATE.sub("\N{REPLACEMENT CHARACTER}", text).encode()
        spans = list(_in_characters(data, self.spans(data)))
        if not spans:
            return raw
        new = _spliced(text, spans, replacement).encode("utf-8", "surrogateescape")
        return replacement.encode() if _grew(len(raw), len(new)) else new

    def _card_spans(self, text: bytes) -> Iterator[Span]:
        for run in self._run.finditer(text):
            start, end = run.span()
            fraction = start > 1 and text[start - 1 : start] == b"." and text[start - 2 : start - 1].isdigit()
            for low, high in cards_in(text[start:end], after_decimal_point=fraction):
                yield start + low, start + high


class _Pattern:
    """One pattern; of those that `is_bare` only the beginning is found by it, the end by end_of_bare."""

    def __init__(self, text: str, *, is_bare: bool) -> None:
        self._pattern = _compiled(text, own=True)
        self._group = self._pattern.groupindex.get(b"secret", 0)
        self._is_bare = is_bare

    def spans(self, text: bytes) -> Iterator[Span]:
        at = 0
        while at <= len(text) and (found := self._pattern.search(text, at)) is not None:
            start, end = found.span(self._group)
            if self._is_bare:
                end = end_of_bare(text, start)
            if end > start:
                yield start, end
            at = max(found.end(), end, at + 1)


def _sorted_out(patterns: Sequence[str]) -> tuple[list[str], list[str]]:
    """The names, groups taken apart, and the regular expressions; raises ValueError."""
    names: dict[str, None] = {}
    own: list[str] = []
    for text in patterns:
        if text in NAMED or text in GROUPS:
            names.update(dict.fromkeys(GROUPS.get(text, (text,))))
        else:
            check_pattern(text)
            own.append(text)
    return list(names), own


def check_pattern(text: str) -> str:
    """A pattern's name, or a regular expression that finds something; raises ValueError."""
    known = sorted([*NAMED, *GROUPS])
    if text in known:
        return text
    if _IS_A_NAME.fullmatch(text):
        near = difflib.get_close_matches(text, known, n=1)
        remedy = f"did you mean '{near[0]}'?" if near else f"there are: {', '.join(known)}"
        raise ValueError(f"{text!r} is no pattern's name; {remedy} (a word as a regular expression: (?:{text}))")
    if _compiled(text, own=True).search(b"") is not None:
        raise ValueError(f"{text!r} finds nothing everywhere: it matches the empty text")
    return text


def _compiled(pattern: str, *, own: bool) -> Any:
    """RE2 over UTF-8 bytes, with a user's limits for what is a user's own; raises ValueError."""
    if own and len(pattern) > MAX_PATTERN:
        raise ValueError(f"the pattern is longer than {MAX_PATTERN} characters")
    options = re2.Options()
    options.max_mem = MAX_PATTERN_BYTES if own else _OWN_PATTERN_BYTES
    options.log_errors = False  # they would go to the daemon's stderr
    options.never_capture = not own
    try:
        return re2.compile(pattern.encode("utf-8", "replace"), options)
    except re2.error as error:
        (reason,) = error.args
        raise ValueError(reason.decode("utf-8", "replace") if isinstance(reason, bytes) else str(reason)) from None


def _merged(spans: Sequence[Span]) -> Iterator[Span]:
    """Ascending spans with those that overlap or touch made one."""
    last: Span | None = None
    for start, end in spans:
        if last is not None and start <= last[1]:
            last = last[0], max(last[1], end)
            continue
        if last is not None:
            yield last
        last = start, end
    if last is not None:
        yield last


def _spliced(text: Any, spans: Sequence[Span], replacement: Any) -> Any:
    pieces, at = [], 0
    for start, end in spans:
        pieces += [text[at:start], replacement]
        at = end
    return text[:0].join([*pieces, text[at:]])


def _in_characters(data: bytes, spans: Sequence[Span]) -> Iterator[Span]:
    """Spans of bytes as spans of characters."""
    at = characters = 0
    for start, end in spans:
        begin = characters + len(data[at:start].decode("utf-8", "replace"))
        characters = begin + len(data[start:end].decode("utf-8", "replace"))
        at = end
        yield begin, characters


def _grew(old_bytes: int, new_bytes: int) -> bool:
    return new_bytes > MAX_GROWTH * old_bytes + GROWTH_BYTES
