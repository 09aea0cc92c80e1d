"""By what a message's family is told: the program's name, how the text begins, the first structured-data id.

Promises: the first bytes decide, in constant time but for `contains`, which is one search in the message; the same
answer here and in the compiled twin (_devices.pxi). Refuses: regular expressions, and messages of more than
MAX_MESSAGE_BYTES: no device writes them, and a line must not become much longer than the message is.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ndagent.wire.ecs import Fields

MAX_MESSAGE_BYTES = 32768
"""Four times the longest that the families' devices send (8 KiB, F5 ASM)."""


Place = Literal["message", "app and message", "app", "data"]


@dataclass(frozen=True, slots=True)
class Signature:
    """All parts that are given must hold; at least one of `app`, `app_starts`, `starts`, `data` is.

    `app` is the whole name of the program, `app_starts` its first bytes, `starts` the message's, `data` those of the
    first structured-data id; the message ends with `ends`, and `contains` may stand anywhere in it (a rare
    byte in front makes the search fast).
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
    def place(self) -> Place:
        """Where it is looked for."""
        if self.app or self.app_starts:
            return "app and message" if self.starts else "app"
        return "data" if self.data else "message"

    @property
    def first(self) -> bytes:
        """The byte, or of "app and message" the two, that must stand there first."""
        parts = {"app": self.app or self.app_starts, "data": self.data, "message": self.starts}
        return b"".join(parts[part][:1] for part in self.place.split(" and "))

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
    """The family of a message, by its number; signatures are grouped by where they look and what stands there first."""

    def __init__(self, signatures: Sequence[tuple[int, Signature]]) -> None:
        self._chains: dict[tuple[Place, bytes], list[tuple[int, Signature]]] = {}
        for number, signature in signatures:
            self._chains.setdefault((signature.place, signature.first), []).append((number, signature))

    def find(self, fields: Fields) -> int | None:
        """None where no signature fits. How the text begins says more than who wrote it, so that is asked first."""
        if len(fields.message) > MAX_MESSAGE_BYTES:
            return None
        message, app = fields.message[:1], (fields.app or b"")[:1]
        data = (fields.structured_data or b"")[2:3]  # behind {"
        asked: tuple[tuple[Place, bytes], ...] = (
            ("message", message),
            ("app and message", app + message),
            ("app", app),
            ("data", data),
        )
        for key in asked:
            for number, signature in self._chains.get(key, ()):
                if signature.matches(fields):
                    return number
        return None
