"""By what a message's family is told: the program's name, how the text begins, the first structured-data id.

Promises: the first bytes decide, in constant time but for `contains`, which is one search in the message; the same
answer here and in the compiled twin (_devices.pxi). Refuses: regular expressions, and messages of more than
MAX_MESSAGE_BYTES: no device writes them, and a line must not become much longer than the message is.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ndagent.wire.ecs import Fields

MAX_MESSAGE_BYTES = 32768
"""Four times the longest that the families' devices send (8 KiB, F5 ASM)."""


@dataclass(frozen=True, slots=True)
class Signature:
    """All parts that are given must hold; at least one of `app`, `app_starts`, `starts`, `data` is.

    `app` is the whole name of the program, `app_starts` its first bytes, `starts` the message's, `data` those of the
    first structured-data id; the message ends with `ends`, and `contains` may stand anywhere in it.
    """

    app: bytes = b""
    app_starts: bytes = b""
    starts: bytes = b""
    ends: bytes = b""
    contains: bytes = b""
    data: bytes = b""

    def __post_init__(self) -> None:
        if not (self.app or self.app_starts or self.starts or self.data):
            raise ValueError(f"{self}: says nothing about the first bytes, so every message would have to be searched")
        if b"\\" in self.data or b'"' in self.data:
            raise ValueError(f"{self}: a structured-data id that JSON escapes is not compared right")

    @property
    def first(self) -> tuple[str, int]:
        """Where it is looked for, and the byte that must stand there first."""
        if self.app or self.app_starts:
            return "app", (self.app or self.app_starts)[0]
        return ("data", self.data[0]) if self.data else ("starts", self.starts[0])

    def matches(self, fields: Fields) -> bool:
        """Whether the message has all of it."""
        if (self.app or self.app_starts) and fields.app is None:
            return False
        return (
            (not self.app or fields.app == self.app)
            and (not self.app_starts or (fields.app or b"").startswith(self.app_starts))
            and (not self.data or (fields.structured_data or b"").startswith(b'{"' + self.data))
            and fields.message.startswith(self.starts)
            and fields.message.endswith(self.ends)
            and self.contains in fields.message
        )


class Finder:
    """The family of a message, by its number; signatures are grouped by where they look and by their first byte."""

    def __init__(self, signatures: Sequence[tuple[int, Signature]]) -> None:
        self._chains: dict[tuple[str, int], list[tuple[int, Signature]]] = {}
        for number, signature in signatures:
            self._chains.setdefault(signature.first, []).append((number, signature))

    def find(self, fields: Fields) -> int | None:
        """None where no signature fits. How the text begins says more than who wrote it, so that is asked first."""
        message, app, data = fields.message, fields.app, fields.structured_data
        if len(message) > MAX_MESSAGE_BYTES:
            return None
        found = self._look("starts", message[:1], fields) if message else None
        if found is None and app:
            found = self._look("app", app[:1], fields)
        if found is None and data is not None:
            found = self._look("data", data[2:3], fields)
        return found

    def _look(self, place: str, byte: bytes, fields: Fields) -> int | None:
        for number, signature in self._chains.get((place, byte[0]), ()):
            if signature.matches(fields):
                return number
        return None
