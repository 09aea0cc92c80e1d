"""Which journal entries are wanted.

By unit as journalctl understands it: what a unit's processes say, and what those who are trusted with it (systemd, the
coredump handler) say about it. An excluded unit is only left out with its own words.
"""

import re
from collections.abc import Sequence
from fnmatch import translate

from ndagent.inputs.journald_export import Entry

_ABOUT = (b"UNIT", b"OBJECT_SYSTEMD_UNIT", b"COREDUMP_UNIT")
_TRUSTED_UID = b"0"


class Choice:
    """Conditions that all must hold; an empty one always does."""

    def __init__(
        self,
        *,
        units: Sequence[str],
        identifiers: Sequence[str],
        priority: int | None,
        exclude_units: Sequence[str],
    ) -> None:
        self._units = re.compile("|".join(map(translate, units)).encode()) if units else None
        self._identifiers = frozenset(name.encode() for name in identifiers)
        self._priorities = None if priority is None else frozenset(b"%d" % code for code in range(priority + 1))
        self._excluded = frozenset(unit.encode() for unit in exclude_units)

    def takes(self, entry: Entry) -> bool:
        """Whether the entry is wanted."""
        fields = entry.fields
        if fields.get(b"_SYSTEMD_UNIT") in self._excluded:
            return False
        if self._priorities is not None and fields.get(b"PRIORITY") not in self._priorities:
            return False
        if self._identifiers and fields.get(b"SYSLOG_IDENTIFIER") not in self._identifiers:
            return False
        return self._units is None or self._is_of_unit(fields)

    def _is_of_unit(self, fields: dict[bytes, bytes]) -> bool:
        names = [fields.get(b"_SYSTEMD_UNIT")]
        if fields.get(b"_UID") == _TRUSTED_UID:  # anybody can send the other fields
            names += [fields.get(name) for name in _ABOUT]
        return any(name is not None and self._units and self._units.match(name) for name in names)
