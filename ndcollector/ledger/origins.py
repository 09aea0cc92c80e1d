"""Senders by name and number: certificate identity or address, as `Origin.identity` says.

Promises: at most `most` names of senders, whatever they call themselves; a long one is cut and keeps apart by a hash;
none can take one of the names in parentheses, under which events stand that are nobody's. A packed origin (one per
connection) is unpacked once, while it is among the last few thousand.
Refuses: forgetting a name; a device that left is what an auditor asks about.
"""

import hashlib
import logging
from collections.abc import Iterable, Mapping

from ndagent.wire.record import CorruptBody, Origin

log = logging.getLogger("ledger")

UNKNOWN, OTHERS, UNREADABLE, REPEATS, VANISHED = range(5)
PSEUDO = ("(unknown)", "(others)", "(unreadable)", "(repeats)", "(vanished)")
"""Whose record was gone before it was counted · beyond `most` · damaged on disk · sent again by an operator · lost with
a power cut after it was counted."""

LONGEST_NAME = 256
"""A subject of a certificate has no limit of its own; most are below a hundred."""
_HASH_DIGITS = 16
_CACHED_BLOBS = 65_536


class Origins:
    """Numbers from 0 on, the first ones those of PSEUDO; `names` are those that are known already."""

    def __init__(self, most: int, names: Iterable[str] = ()) -> None:
        self.names = list(PSEUDO)
        self._numbers: dict[str, int] = {}
        self._by_blob: dict[bytes, int] = {}
        self._most = most
        self._said = False
        for name in names:
            self._numbers[name] = len(self.names)
            self.names.append(name)

    def __len__(self) -> int:
        return len(self.names)

    def number(self, blob: bytes) -> int:
        """Of a packed origin; a new name gets a new number while there is room."""
        found = self._by_blob.get(blob)
        if found is None:
            found = self._of_name(_identity(blob))
            if len(self._by_blob) >= _CACHED_BLOBS:
                self._by_blob.clear()
            self._by_blob[blob] = found
        return found

    def numbered(self, counts: Mapping[bytes, int]) -> dict[int, int]:
        """Counts by packed origin, by number."""
        found: dict[int, int] = {}
        for blob, count in counts.items():
            number = self.number(blob)
            found[number] = found.get(number, 0) + count
        return found

    def _of_name(self, name: str | None) -> int:
        if name is None:
            return UNKNOWN
        found = self._numbers.get(name)
        if found is not None:
            return found
        if len(self.names) - len(PSEUDO) >= self._most:
            if not self._said:
                log.warning(
                    "%d senders are in the ledger, further ones are counted together as %s; raise ledger.max_origins",
                    self._most, PSEUDO[OTHERS],
                )  # fmt: skip
            self._said = True
            return OTHERS
        self._numbers[name] = len(self.names)
        self.names.append(name)
        return self._numbers[name]


def _identity(blob: bytes) -> str | None:
    try:
        return name_of(Origin.unpack(blob).identity)
    except CorruptBody:
        return None


def name_of(identity: str) -> str:
    """As it stands in the ledger: bounded, and never one of PSEUDO."""
    name = f'"{identity}"' if identity.startswith("(") else identity
    name = name.encode("utf-8", "replace").decode()  # lone surrogates are no text for SQLite
    if len(name) <= LONGEST_NAME:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:_HASH_DIGITS]
    return f"{name[: LONGEST_NAME - _HASH_DIGITS - 1]}…{digest}"
