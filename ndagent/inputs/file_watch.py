"""What happens to files, as the kernel tells it (inotify(7)), or by asking where it does not.

Promises: a file that appears, or is renamed, under a wanted or a rotated name is opened at once, so that it can be read
to its end however soon it is removed; writing is noticed when the reader has time for it, and costs nothing until then
(a hundred writes are one event). Where no watch can be had (limits, network file systems, other systems) everything
still works, by looking every `poll_interval`: that is said once, with the remedy.
Refuses: deciding anything: it opens, wakes and names what has changed.

Two inotify instances, because the names of new files must be read off at once and the writes must not.
"""

import asyncio
import errno
import logging
import os
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING

from ndagent.core.system_files import open_followed
from ndagent.footprint import pretending, stand_in
from ndagent.inputs.file_paths import filesystem_of

if TYPE_CHECKING:
    from asyncinotify import Event, Inotify, Watch

NETWORK = frozenset({"nfs", "nfs4", "cifs", "smb3", "ceph", "9p", "afs", "fuse.sshfs", "fuse.glusterfs", "glusterfs"})
MAX_ARRIVALS = 256
"""Files opened on arrival that no look has taken up yet; beyond that the next look finds them by itself."""
_DRAIN_EVENTS = 4096
_MOUNTS = Path("/proc/self/mountinfo")


class Watcher:
    """Made on the running loop. `opens(path)` says which names are worth opening on arrival."""

    def __init__(self, name: str, opens: Callable[[str], bool], *, use_inotify: bool) -> None:
        self.wake = asyncio.Event()
        self.has_structure_changed = False
        self.is_polling = not use_inotify or sys.platform != "linux"
        """Whether changes must be asked for, at least in some directories."""
        self._opens = opens
        self._log = logging.getLogger(name)
        self._arrivals: list[tuple[str, int]] = []
        self._names: Inotify | None = None
        self._writes: Inotify | None = None
        self._watches: dict[str, tuple[Watch, Watch]] = {}
        self._reading: asyncio.Task[None] | None = None
        self._refused: set[str] = set()
        self._listens_to_writes = False
        if use_inotify and sys.platform == "linux":
            self._begin()

    def _begin(self) -> None:
        try:
            inotify = _load_inotify()
            self._names = inotify(cache_size=64)
            self._writes = inotify(cache_size=64, sync_timeout=0)
        except (OSError, ImportError) as error:
            self._fall_back(error)
            return
        self._reading = asyncio.create_task(self._read_names(self._names))

    def _fall_back(self, error: Exception) -> None:
        if not self.is_polling:
            self.is_polling = True
            self._log.warning(
                "no inotify watch can be had (%s): files are looked at every poll_interval instead, nothing is lost; "
                "raise fs.inotify.max_user_watches and max_user_instances (sysctl)", error,
            )

    async def aclose(self) -> None:
        """Stop watching."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.wait({self._reading})  # it takes its descriptor off the loop, before that is another file's
        if self._writes is not None:
            asyncio.get_running_loop().remove_reader(self._writes.fd)
        for inotify in (self._names, self._writes):
            if inotify is not None:
                inotify.close()
        for _, fd in self.take_arrivals():
            os.close(fd)

    def check(self) -> None:
        """Raise what ended the reading of names, if anything did."""
        if self._reading is not None and self._reading.done():
            self._reading.result()

    def watch(self, directories: Collection[str]) -> bool:
        """Watch exactly these directories; whether any is new (what happened in it before must be looked for)."""
        if self._names is None or self._writes is None:
            return False
        from asyncinotify import Mask

        for gone in self._watches.keys() - set(directories):
            self._unwatch(gone)
        names = Mask.CREATE | Mask.MOVE | Mask.DELETE | Mask.DELETE_SELF | Mask.MOVE_SELF | Mask.ATTRIB | Mask.ONLYDIR
        has_new = False
        for directory in sorted(set(directories) - self._watches.keys() - self._refused):
            try:
                first = self._names.add_watch(directory, names)
                self._watches[directory] = first, self._writes.add_watch(directory, Mask.MODIFY | Mask.ONLYDIR)
                has_new = True
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.ENOTDIR):
                    continue  # gone already
                self._refused.add(directory)
                self._fall_back(error)
        if has_new:
            self._ask_of_network_files(directories)
        return has_new

    def _ask_of_network_files(self, directories: Collection[str]) -> None:
        try:
            mounts = _MOUNTS.read_text("utf-8", "surrogateescape")
        except OSError:
            return
        kinds = {filesystem_of(os.path.realpath(one), mounts) for one in directories}
        if kinds & NETWORK and not self.is_polling:
            self.is_polling = True
            self._log.info("a network file system tells nobody what other machines write: looking every poll_interval")

    def _unwatch(self, directory: str) -> None:
        for inotify, watch in zip((self._names, self._writes), self._watches.pop(directory), strict=True):
            if inotify is not None and any(watch is one for one in inotify.watches):
                try:
                    inotify.rm_watch(watch)
                except OSError:  # the kernel has dropped it with the directory
                    continue

    # ---- names, at once

    async def _read_names(self, inotify: "Inotify") -> None:
        while True:
            self._named(await inotify.get())

    def _named(self, event: "Event") -> None:
        from asyncinotify import Mask

        self.has_structure_changed = True
        self.wake.set()
        if event.mask & (Mask.IGNORED | Mask.MOVE_SELF | Mask.DELETE_SELF) and event.watch is not None:
            directory = str(event.watch.path)
            if directory in self._watches:
                self._unwatch(directory)
            return
        if event.mask & Mask.ISDIR or event.name is None or event.watch is None:
            return
        if event.mask & (Mask.CREATE | Mask.MOVED_TO):
            path = f"{str(event.watch.path).rstrip('/')}/{event.name}"
            if self._opens(path) and len(self._arrivals) < MAX_ARRIVALS:
                self._open(path)

    def _open(self, path: str) -> None:
        try:
            if not Path(path).is_file():  # never open a device for the effect that it may have
                return
            fd = open_followed(path)
        except OSError:
            return  # the next look says why
        self._arrivals.append((path, fd))

    def take_arrivals(self) -> list[tuple[str, int]]:
        """Paths and descriptors of files that appeared; the caller closes them."""
        arrivals, self._arrivals = self._arrivals, []
        return arrivals

    # ---- writes, when there is time

    def listen(self) -> None:
        """Wake when something was written."""
        if self._writes is not None and not self._listens_to_writes:
            self._listens_to_writes = True
            asyncio.get_running_loop().add_reader(self._writes.fd, self._was_written)

    def _was_written(self) -> None:
        if self._writes is not None:
            asyncio.get_running_loop().remove_reader(self._writes.fd)
        self._listens_to_writes = False
        self.wake.set()

    def take_written(self) -> tuple[set[str], bool]:
        """Paths written to since the last time, and whether events were lost (then anything may have been)."""
        found: set[str] = set()
        has_lost = False
        if self._writes is None:
            return found, has_lost
        from asyncinotify import Mask

        for _ in range(_DRAIN_EVENTS):
            if (event := self._writes.sync_get()) is None:
                break
            has_lost |= bool(event.mask & Mask.Q_OVERFLOW)
            if event.watch is not None and event.name is not None:
                found.add(f"{str(event.watch.path).rstrip('/')}/{event.name}")
        return found, has_lost


def _load_inotify() -> "type[Inotify]":
    """Not everywhere, and not needed to poll: raises ImportError.

    To find the C library it would run ldconfig, or a compiler, and hold up the loop meanwhile. The one that this
    process is linked with will do, which it takes when it finds none.
    """
    import ctypes

    stand = stand_in("ctypes.util", find_library=lambda _: None)
    with pretending({stand.__name__: stand}):
        if is_ours := sys.modules[stand.__name__] is stand:
            ctypes.util = stand
        try:
            from asyncinotify import Inotify
        finally:
            if is_ours:
                del ctypes.util
    return Inotify
