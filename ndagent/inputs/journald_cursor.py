"""Where an entry stands in the journal: journald's cursor, read for what it says.

    s=<sequence id>;i=<hex number>;b=<boot id>;m=<hex monotonic>;t=<hex realtime>;x=<hex hash of the contents>

`s` and `i` come from the file that holds the entry: journald copies entries from /run to /var with new numbers, and a
journal that was moved aside begins a new `s`. `b`, `m`, `t` and `x` belong to the entry and stay. Within one `s` the
numbers have no holes (journald counts over all files that it writes), so a hole is entries that are not there any more.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Cursor:
    """A cursor's parts; `text` is what journalctl takes."""

    text: str
    sequence_id: str
    number: int
    identity: tuple[str, str, str, str]

    @classmethod
    def parse(cls, text: str) -> "Cursor":
        """Raises ValueError for what is none."""
        parts = dict(part.partition("=")[::2] for part in text.split(";"))
        try:
            identity = (parts["b"], parts["m"], parts["t"], parts["x"])
            number = int(parts["i"], 16)
        except KeyError as error:
            raise ValueError(f"{text!r} is no cursor of a journal") from error
        return cls(text, parts["s"], number, identity)

    def is_same_entry(self, other: "Cursor") -> bool:
        """Whether both mean one entry, whichever file it is in."""
        return self.identity == other.identity

    def missing_before(self, later: "Cursor") -> int | None:
        """Entries that were between this one and the later one; None where the numbers cannot tell."""
        if self.sequence_id != later.sequence_id or later.number <= self.number:
            return None
        return later.number - self.number - 1
