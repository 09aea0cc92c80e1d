"""Reading a JSON object that a peer sent: each field by name, with its type and its limit.

Promises: what does not fit raises BadDocument that names the field and what was expected, never its content (it may be
a secret); nothing is converted ("5" is not 5, true is not 1); text has no control characters, so that it can be shown
on a terminal. Keys that nobody asks for are passed over: a newer peer may say more.
Refuses: I/O. The size of the whole is checked before it is parsed.
"""

from collections.abc import Iterator
from typing import Any, TypeGuard

import orjson


class BadDocument(ValueError):
    """A peer's document that does not have the promised shape; the text is fit to be sent back to it."""


class Fields:
    """One JSON object; `where` is its place in the document, for messages ("host", "spools[3]")."""

    def __init__(self, value: object, where: str = "") -> None:
        if not isinstance(value, dict):
            raise BadDocument(f"{where or 'the document'}: is not an object")
        self._value: dict[str, Any] = value
        self._where = f"{where}." if where else ""

    @classmethod
    def parse(cls, data: bytes, *, max_bytes: int) -> "Fields":
        """The object in these bytes; raises BadDocument for more than `max_bytes` and for what is no JSON object."""
        if len(data) > max_bytes:
            raise BadDocument(f"the document has {len(data)} bytes, {max_bytes} are allowed")
        try:
            return cls(orjson.loads(data))
        except orjson.JSONDecodeError as error:
            raise BadDocument(f"not JSON: {error.msg} at byte {error.pos}") from None

    def has(self, name: str) -> bool:
        """Whether the field is there and not null."""
        return self._value.get(name) is not None

    def text(self, name: str, *, at_most: int, default: str | None = None) -> str:
        """Printable text of up to `at_most` characters; not empty, unless that is its default."""
        value = self._get(name, default)
        if value == default and default is not None:
            return default
        if not isinstance(value, str) or not 0 < len(value) <= at_most or not value.isprintable():
            raise self._bad(name, f"1 to {at_most} printable characters")
        return value

    def lines(self, name: str, *, at_most: int) -> str:
        """ASCII text of several lines (PEM)."""
        value = self._get(name, None)
        if not isinstance(value, str) or not 0 < len(value) <= at_most or not value.isascii():
            raise self._bad(name, f"1 to {at_most} ASCII characters")
        return value

    def integer(self, name: str, *, low: int = 0, high: int = 2**63 - 1, default: int | None = None) -> int:
        """A whole number between the two limits, both allowed."""
        value = self._get(name, default)
        if not _is_integer(value) or not low <= value <= high:
            raise self._bad(name, f"a whole number from {low} to {high}")
        return value

    def number(self, name: str, *, low: float, high: float) -> float:
        """A number between the two limits, both allowed."""
        value = self._get(name, None)
        if not (_is_integer(value) or isinstance(value, float)) or not low <= value <= high:
            raise self._bad(name, f"a number from {low:g} to {high:g}")
        return float(value)

    def nested(self, name: str) -> "Fields":
        """The object under this name."""
        return Fields(self._get(name, None), f"{self._where}{name}")

    def each(self, name: str, *, at_most: int) -> "Iterator[Fields]":
        """The objects in a list; a list that is not there is empty."""
        for index, one in enumerate(self._list(name, at_most)):
            yield Fields(one, f"{self._where}{name}[{index}]")

    def texts(self, name: str, *, count: int, at_most: int) -> tuple[str, ...]:
        """A list of up to `count` printable texts; one that is not there is empty."""
        found = self._list(name, count)
        if not all(isinstance(one, str) and 0 < len(one) <= at_most and one.isprintable() for one in found):
            raise self._bad(name, f"a list of 1 to {at_most} printable characters each")
        return tuple(found)

    def _list(self, name: str, count: int) -> list[Any]:
        value = self._value.get(name)
        if value is None:
            return []
        if not isinstance(value, list) or len(value) > count:
            raise self._bad(name, f"a list of up to {count}")
        return value

    def _get(self, name: str, default: object) -> Any:
        value = self._value.get(name)
        return default if value is None else value

    def _bad(self, name: str, expected: str) -> BadDocument:
        if self._value.get(name) is None:
            return BadDocument(f"{self._where}{name}: is missing ({expected})")
        return BadDocument(f"{self._where}{name}: must be {expected}")


def _is_integer(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)
