"""A dead-letter file without some of its letters: written beside the old one, synced, and put in its place.

Promises: a crash at any point leaves the old file or the new one, whole; what is appended meanwhile is in the new one;
appends wait only while what came since is copied. A full disk leaves the old file as it was (OSError). A file that a
person moved, cut or replaced stays as they left it (LettersChanged): what came since is nowhere else.
Refuses: two at a time on one file (the desk's lock, or its own turn in the daemon, sees to that).
"""

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from ndagent.core.dead_letters import DeadLetters, sync_directory
from ndcollector.dead_letters.letters import Letter, lines
from ndcollector.pki.store import adopt

UNFINISHED = ".rewriting"

Leaves = Callable[[int, bytes], Letter | None]
"""The letter in the line at this offset, if it leaves."""

Fits = Callable[[BinaryIO], bool]
"""Whether this open file is the one that somebody looked at."""


class LettersChanged(Exception):
    """These letters are not those that were looked at. Nothing was changed."""


def rewrite(store: DeadLetters, leaves: Leaves, *, end: int, fits: Fits) -> int:
    """Drop the lines before `end` that leave; how many events that were. Blocks: call it in a thread.

    What `store.gone_bytes` stood for has to be among them. Raises OSError, LettersChanged.
    """
    path = store.path
    beside = path.with_name(path.name + UNFINISHED)
    try:
        with path.open("rb") as old, beside.open("wb") as new:
            if not fits(old):
                raise LettersChanged
            adopt(new.fileno(), path.parent)
            os.fchmod(new.fileno(), 0o640)
            left, at = _copy(old, new, leaves, end)
            _settle(new)
            with store.still():
                if not _is_still(path, old, at):
                    raise LettersChanged
                old.seek(at)
                shutil.copyfileobj(old, new)
                _settle(new)
                _take_its_place(beside, path, is_empty=new.tell() == 0)
                store.gone_bytes = 0
    except FileNotFoundError as error:
        raise LettersChanged from error
    finally:
        with suppress(FileNotFoundError):
            beside.unlink()
    return left


def _copy(old: BinaryIO, new: BinaryIO, leaves: Leaves, end: int) -> tuple[int, int]:
    """How many events left, and where the last line judged ends: `end` may lie in one that was being written."""
    left = at = 0
    for offset, line in lines(old, 0, end):
        at = offset + len(line)
        letter = leaves(offset, line)
        if letter is None:
            new.write(line)
        else:
            left += letter.events
    return left, at


def _is_still(path: Path, old: BinaryIO, at: int) -> bool:
    """Whether the name still leads to this file, and it still has what was copied."""
    status = os.fstat(old.fileno())
    return os.path.samestat(status, path.stat()) and status.st_size >= at


def _settle(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _take_its_place(beside: Path, path: Path, *, is_empty: bool) -> None:
    if is_empty:
        path.unlink()
    else:
        beside.replace(path)
    sync_directory(path.parent)
