"""The file in which a netflow input keeps its exporters' templates over a restart (layout: wire/netflow/state.py).

Promises: it is whole or the old one; a file that is damaged, too long, of another version or not to be had costs a
warning and the wait for the exporters' next announcement, never the start. Refuses: saving what did not change.
"""

import asyncio
import logging
from pathlib import Path

from ndagent.core.spool.files import Files, replace_whole
from ndagent.core.waiting import to_its_end
from ndagent.wire.netflow.decoder import FlowDecoder
from ndagent.wire.netflow.state import MAX_STATE_BYTES, pack, restore


class TemplateFile:
    """See the module; `log` is its input's."""

    def __init__(self, path: Path, *, files: Files, log: logging.Logger) -> None:
        self._path = path
        self._files = files
        self._log = log
        self._changes = 0

    async def restore(self, decoder: FlowDecoder, *, now: float) -> None:
        """Read it; what cannot be read is said, and the exporters announce their templates anew."""
        try:
            data = await asyncio.to_thread(self._read)
            found = restore(decoder.templates, data, now=now) if data else 0
        except (OSError, ValueError) as error:
            self._log.warning(
                "%s cannot be used: %s; records wait until their exporters announce their templates again",
                self._path, error,
            )
        else:
            if found:
                self._log.info("%d templates of exporters are known from before", found)
        self._changes = decoder.templates.changes

    async def save(self, decoder: FlowDecoder, *, now: float) -> None:
        """Write it, if anything changed; a disk that refuses is said, and costs a wait after the next start."""
        if decoder.templates.changes == self._changes:
            return
        changes, data = decoder.templates.changes, pack(decoder.templates, now=now)
        try:
            await to_its_end(asyncio.to_thread(self._write, data))
        except OSError as error:
            self._log.warning("%s cannot be saved: %s; it is tried again in a minute", self._path, error)
        else:
            self._changes = changes

    def _read(self) -> bytes:
        try:
            fd = self._files.open_read(self._path)
        except FileNotFoundError:
            return b""
        try:
            size = self._files.size(self._path)
            if size > MAX_STATE_BYTES:
                raise ValueError(f"{size} bytes; at most {MAX_STATE_BYTES} are read")
            return self._files.pread(fd, size, 0)
        finally:
            self._files.close(fd)

    def _write(self, data: bytes) -> None:
        self._files.make_directory(self._path.parent)
        replace_whole(self._files, self._path, data)
