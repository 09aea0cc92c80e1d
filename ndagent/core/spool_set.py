"""A process's spools, one for each stream: which there are, opening them, and what a failure to open means.

Promises: a stream whose directory is there is opened though nothing feeds it now: what waits in it is still owed.
Refuses: knowing streams by name.
"""

import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ndagent.core.process_user import process_user
from ndagent.core.spool import Spool, SpoolLocked, UnknownFormat
from ndagent.core.supervision import StartError, in_words

DIRECTORY = "spool"
"""Below the state directory."""

_STREAM = re.compile(r"[a-z0-9_]+")  # a file system of its own for the spools brings a lost+found along


def streams_on_disk(state_dir: Path) -> set[str]:
    """Streams that have a spool there."""
    with suppress(FileNotFoundError, NotADirectoryError, PermissionError):  # opening a spool says it better
        entries = (state_dir / DIRECTORY).iterdir()
        return {entry.name for entry in entries if entry.is_dir() and _STREAM.fullmatch(entry.name)}
    return set()


async def open_spool(state_dir: Path, stream: str, options: Mapping[str, Any]) -> Spool:
    """`Spool.open` for this stream, with its other arguments; raises StartError that names place and remedy."""
    directory = state_dir / DIRECTORY / stream
    try:
        return await Spool.open(directory, stream=stream, **options)
    except (SpoolLocked, UnknownFormat) as error:
        raise StartError(f"spool {error}") from error
    except OSError as error:
        raise StartError(
            f"spool {directory}: {in_words(error)}; is state_dir right, and may {process_user()} write there?"
        ) from error
