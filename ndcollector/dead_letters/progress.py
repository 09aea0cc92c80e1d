"""How far a replay of dead letters is: `<output>.replay` beside the letters, so that a restart goes on from there.

    {"to": …, "wanted": {…}, "at": …, "end": …, "mark": digest, "gone_bytes": …, "replayed": …, …}

Letters before `at` that are wanted have left: the far side took them, or they stand behind `end` as dead letters again.
They are in the file until it is written anew at the end of the replay.

Promises: `save` is atomic and durable; a progress fits only the very file that it was begun for: the bytes before `end`
are compared, for a person may have moved the file, and a crash between the new file and the end of this one leaves a
progress that is none any more (what left moved those bytes). Where it does not fit, letters stay and may be sent twice.
"""

import hashlib
import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO, Self

import orjson

from ndagent.core.dead_letters import sync_directory, whole_lines_end
from ndcollector import __version__
from ndcollector.dead_letters.letters import Letter, Wanted, parse
from ndcollector.dead_letters.rewrite import Leaves
from ndcollector.pki.store import adopt

SUFFIX = ".replay"
_MARK_BYTES = 4096


@dataclass(slots=True)
class Progress:
    """See the module."""

    to: str
    wanted: dict[str, str]
    end: int
    mark: str
    at: int = 0
    gone_bytes: int = 0
    gone_events: int = 0
    replayed: int = 0
    refused: int = 0
    version: str = __version__

    @classmethod
    def begun(cls, file: BinaryIO, *, to: str, wanted: dict[str, str]) -> Self:
        """Of all letters in this file: up to the last whole line, for the next append cuts what is behind it."""
        end = whole_lines_end(file.fileno())
        return cls(to, wanted, end=end, mark=_mark(file, end))

    def fits(self, file: BinaryIO) -> bool:
        """Whether it is of this file."""
        return os.fstat(file.fileno()).st_size >= self.end and _mark(file, self.end) == self.mark

    def leaves(self) -> Leaves:
        """Which lines of the file have left."""
        wanted, at = Wanted.read(self.wanted), self.at

        def leaves(offset: int, line: bytes) -> Letter | None:
            letter = parse(offset, line) if offset < at else None
            return letter if wanted(letter) else None

        return leaves

    def save(self, letters: Path) -> None:
        """Durable when it returns; raises OSError."""
        path = progress_path(letters)
        beside = path.with_name(path.name + ".new")
        with beside.open("wb") as file:
            adopt(file.fileno(), path.parent)
            file.write(orjson.dumps(asdict(self)))
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
        sync_directory(path.parent)


def progress_path(letters: Path) -> Path:
    """Where the progress of a replay of these letters stands."""
    return letters.with_name(letters.name.removesuffix(".ndjson") + SUFFIX)


def load(letters: Path) -> Progress | None:
    """The progress of a replay of this file; None where there is none, or one that does not fit."""
    try:
        progress = Progress(**orjson.loads(progress_path(letters).read_bytes()))
        Wanted.read(progress.wanted)
        if "where" in progress.wanted and progress.version != __version__:
            return None  # another version may read the expression otherwise, and take for sent what was not
        with letters.open("rb") as file:
            return progress if progress.at <= progress.end and progress.fits(file) else None
    except (FileNotFoundError, orjson.JSONDecodeError, TypeError, ValueError):
        return None


def forget(letters: Path) -> None:
    """The replay is over; raises OSError."""
    with suppress(FileNotFoundError):
        progress_path(letters).unlink()
    sync_directory(letters.parent)


def _mark(file: BinaryIO, end: int) -> str:
    """Letters have their time and sequence in them, so no other file has these bytes there."""
    start = max(0, end - _MARK_BYTES)
    file.seek(start)
    return hashlib.blake2b(file.read(end - start), digest_size=16).hexdigest()
