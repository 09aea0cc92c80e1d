"""What operating systems do differently with files, under one set of names; two modules hold what differs.

    create open_read open_write     descriptors that no child inherits; on Windows others may rename and delete the file
    open_followed                   somebody else's file, to read: never blocks, never in its owner's way
    pread pwritev                   at an offset, whatever the descriptor's own position is
    sync_data sync_directory        return when the data, or the names in a directory, are on the device
    replace                         put a file in another's place; the name itself is durable after `sync_directory`
    lock                            exclusive, until the descriptor is closed; of a process that dies it comes free
    next_data                       where something else than a hole may stand next (OSError ENXIO: nowhere)

Promises: each is one system call or an obvious few, and fails with its OSError. On POSIX the names are those of `os`,
with nothing in between. Refuses: anything else that differs (users: process_user.py, signals: daemon.py).
"""

import sys

if sys.platform == "win32":
    from ndagent.core.windows_files import (
        create,
        lock,
        next_data,
        open_followed,
        open_read,
        open_write,
        pread,
        pwritev,
        replace,
        sync_data,
        sync_directory,
    )
else:
    from ndagent.core.posix_files import (
        create,
        lock,
        next_data,
        open_followed,
        open_read,
        open_write,
        pread,
        pwritev,
        replace,
        sync_data,
        sync_directory,
    )

__all__ = [
    "create",
    "lock",
    "next_data",
    "open_followed",
    "open_read",
    "open_write",
    "pread",
    "pwritev",
    "replace",
    "sync_data",
    "sync_directory",
]
