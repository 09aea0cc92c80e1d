"""The step `redact`: what a Finder finds in an event's texts, keys and long numbers; what fields named as secrets hold.

Promises:
  * without `fields`, every text of the event is looked at, however deep, and every key; with `fields`, these and the
    raw message: event.original, and event.original_base64, whose bytes are looked at as the text they are;
  * a number of nine digits or more is looked at as text; a field whose name says that it is a secret (`password`,
    `api_key`) loses its whole value where `secret` or `password` is asked for;
  * `@timestamp`, `event.created`, `event.id` and `ndcollector.position` are left: receivers and outputs go by them, and
    a time that does not look like one is text like any other.
Refuses: secrets that an event's lines share, such as a private key of which each line is a message.
"""

import re
from binascii import Error, a2b_base64, b2a_base64
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ndcollector.routing.finder import Finder
from ndcollector.routing.paths import Event, Pattern
from ndcollector.routing.secret_patterns import GROUPS, PASSWORD, names_a_secret

REPLACEMENT = "[redacted]"
_RAW = ("event.original", "event.original_base64")
_BASE64 = "original_base64"
_LONG_NUMBER = 10**8
_KEYS_CACHED = 4096
_MAX_CACHED_KEY = 64
_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9:.]{5,18}(?:[Zz]|[+-][0-9]{2}:?[0-9]{2})?")
_LEFT_AS_IS: Mapping[str, frozenset[str]] = {
    "": frozenset({"@timestamp"}), "event": frozenset({"id", "created"}), "ndcollector": frozenset({"position"}),
}  # fmt: skip
"""By the object around them, "" for the event itself."""
_NOTHING: frozenset[str] = frozenset()


class _Place(NamedTuple):
    """An object or list to look into: what in it is left, whether it is the event itself, or inside a secret."""

    node: Any
    left: frozenset[str] = _NOTHING
    is_event: bool = False
    is_secret: bool = False


class Redaction:
    """Compiled once; safe to use from any thread."""

    def __init__(self, patterns: Sequence[str], *, fields: Sequence[str], replacement: str) -> None:
        self._finder = Finder(patterns)
        self._fields = [Pattern(field) for field in (*fields, *_RAW)] if fields else []
        self._replacement = replacement
        self._by_name = PASSWORD in patterns or any(PASSWORD in GROUPS.get(one, ()) for one in patterns)
        self._known: dict[str, tuple[str, bool]] = {}
        self.hint = self._finder.hint

    def apply(self, event: Event) -> bool:
        """Change the event; whether there was anything to change."""
        if not self._fields:
            return not self._is_clean(event) and self._inside(_Place(event, _LEFT_AS_IS[""], is_event=True))
        changed = False

        def value(old: Any) -> Any:
            nonlocal changed
            if isinstance(old, dict | list):
                changed |= self._inside(_Place(old))
                return old
            new = self._scalar(old)
            changed |= new is not old
            return new

        def raw(old: Any) -> Any:
            nonlocal changed
            new = self._exact(old) if isinstance(old, str) else value(old)
            changed |= new is not old
            return new

        for field in self._fields:
            field.change(event, raw if str(field).endswith(_BASE64) else value)
        return changed

    def _is_clean(self, event: Event) -> bool:
        """Whether one quick look over everything tells that there is nothing to find."""
        texts: list[str] = []
        waiting: list[Any] = [event]
        while waiting:
            node = waiting.pop()
            if isinstance(node, dict):
                for key in node:
                    clean, names_secret = self._key(key)
                    if names_secret or clean != key or key.endswith(_BASE64):
                        return False
                node = node.values()
            for value in node:
                if isinstance(value, str):
                    texts.append(value)
                elif isinstance(value, dict | list):
                    waiting.append(value)
                elif _is_long(value):
                    texts.append(repr(value))
        return not self._finder.may_be_in(texts)

    def _inside(self, top: _Place) -> bool:
        """Everything below, without recursion: an event may be a thousand levels deep."""
        changed = False
        waiting = [top]
        while waiting:
            place = waiting.pop()
            node = place.node
            if isinstance(node, dict):
                changed |= self._keys(node)
            for key, old in list(node.items() if isinstance(node, dict) else enumerate(node)):
                is_secret = place.is_secret or (isinstance(key, str) and self._key(key)[1])
                if isinstance(old, dict | list):
                    left = _LEFT_AS_IS.get(key, _NOTHING) if place.is_event else _NOTHING
                    waiting.append(_Place(old, left, is_secret=is_secret))
                    continue
                if key in place.left and (key not in _TIMES or _is_time(old)):
                    continue
                new = self._new(key, old, is_secret=is_secret)
                if new is not old:
                    node[key] = new
                    changed = True
        return changed

    def _new(self, key: Any, old: Any, *, is_secret: bool) -> Any:
        if is_secret and old not in ("", None) and not isinstance(old, bool):
            return self._replacement
        if isinstance(old, str) and isinstance(key, str) and key.endswith(_BASE64):
            return self._exact(old)
        return self._scalar(old)

    def _scalar(self, old: Any) -> Any:
        """The value without what is found; the very same object where nothing is."""
        if isinstance(old, str):
            return self._finder.redact(old, self._replacement)
        if not _is_long(old):
            return old
        text = repr(old)
        new = self._finder.redact(text, self._replacement)
        return old if new == text else new

    def _exact(self, old: str) -> str:
        """Base64 of the message's own bytes; what is none is text, as is what only looks so (a card's digits do)."""
        try:
            raw = a2b_base64(old.encode("ascii"), strict_mode=True)
        except (Error, ValueError):
            return self._finder.redact(old, self._replacement)
        new = self._finder.redact_exact(raw, self._replacement)
        text = old if new is raw else b2a_base64(new, newline=False).decode()
        return self._finder.redact(text, self._replacement)

    def _keys(self, node: dict[str, Any]) -> bool:
        """A sender chooses keys, too, such as the names of structured data."""
        if all(self._key(key)[0] == key for key in node):
            return False
        entries = list(node.items())
        node.clear()
        numbers: dict[str, int] = {}
        for key, value in entries:
            name = clean = self._key(key)[0]
            while name in node:
                numbers[clean] = numbers.get(clean, 1) + 1
                name = f"{clean}_{numbers[clean]}"
            node[name] = value
        return True

    def _key(self, key: str) -> tuple[str, bool]:
        """A key without what is found in it, and whether it names a secret; the same few come over and over."""
        known = self._known.get(key)
        if known is None:
            known = self._finder.redact(key, self._replacement), self._by_name and names_a_secret(key)
            if len(key) <= _MAX_CACHED_KEY and len(self._known) < _KEYS_CACHED:
                self._known[key] = known
        return known


_TIMES = ("@timestamp", "created")


def _is_long(value: object) -> bool:
    """A number that may be somebody's."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) >= _LONG_NUMBER


def _is_time(value: object) -> bool:
    return isinstance(value, str) and _TIME.fullmatch(value) is not None
