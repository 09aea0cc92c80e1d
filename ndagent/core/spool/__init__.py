"""The spool: one append-only log on disk per stream, written once, read by every output at its own pace.

This is the design; the modules keep it. Vector's disk_v2 and SQLite's WAL are the models.

Promises
    1. `append` returns only after the batch is written and synced. Kill -9 or pull the plug at any instruction: every
       batch whose `append` returned is read again, at least once, in order.
    2. Nothing lost is silent: per cursor, appended = delivered + pending + filtered + dead_lettered + quarantined +
       evicted at any moment, computed from sequences (position.py).
    3. A damaged disk, a full disk or a failing one never stops the spool for good and never needs `rm`.
    4. One dead reader never delays another; a reader never delays the commit thread.
    5. Start-up and memory do not depend on the backlog (one 44-byte read per 64 MiB file, and one file is scanned).
    6. No sequence names two events that anyone could have seen, so `<spool id>-<sequence>` is an event's name for ever.
Refuses: parsing (a body is bytes), deciding when an output is done, Windows (files.py is where that would go).

On disk, below `<state_dir>/spool/<stream>/`
    lock                                  held (flock) by the one process that has the spool open
    <base sequence>-<attempt>.seg         segments; layout in segment.py; they never change once the next one exists
    cursors/<output>.cursor               two slots of a page each; layout in position.py
    cursors/retired/                      cursors of outputs that the configuration no longer names
    quarantine/<segment>.<offset>         copies of bytes that are not a whole record

Who does what
    spool.py       gathers appends; while one commit runs in the commit thread, the next one fills up (group commit)
    writer.py      the commit thread: one writev, one fdatasync, the name of a new file synced before it counts
    tip.py         the newest records in memory, for outputs that keep up
    reader.py      everyone else: whole records from files, in a thread, bounded
    scan.py        the only code that walks a segment, for readers, recovery and tools alike
    room.py        which segments there are, who needs them, what is given up when space runs out
    trouble.py     why appends wait, said once
    recovery.py    what the directory says at start
    quarantine.py  what becomes of damaged bytes
    offline.py     ls, verify, export, replay, without opening the spool

Writing
    A segment is begun at every start, at `segment_bytes`, and after a failure; so the place after the last durable byte
    is never written twice. A record's header has its own CRC, which starts from the spool id: a body that rotted still
    tells how many events it held, and bytes that a sender made look like a record are not one.
    After a failed write or fdatasync the descriptor is dropped (pages may be marked clean), the segment cut at its last
    durable byte, and the same batch written to a new segment. *A segment ends where the next one begins*: if even the
    cut fails, readers stop at the next segment's base and never see what was left behind.
    ENOSPC is max_bytes by another name: make room or wait, and look again every second. For that the
    last segment is given up only after the disk was full for LAST_SEGMENT_SECONDS: it may be all that waits.

Reading
    Only behind the last sync (`durability: fsync`, `interval`) or the last write (`os`). With `os` a power cut may take
    back what was read, so every start of such a spool has a new spool id.
    What cannot be read shows as a jump in the sequences. Each cursor counts it as quarantined when it passes it; what
    was deleted under a cursor to make room it counts as evicted.

Cursors
    Saved by whoever moves them, after the output made its own side durable. Segments are held for the lesser of the
    settled and the saved position. A slot that cannot be written costs repeated events after a crash; where segments
    that only it holds are needed for space, they go, and a crash before the next good save counts them as evicted.
    A replay counts its events a second time, in `appended` too, so the law holds on.

Recovery
    The last segment with records is scanned, bodies and all. A torn tail (short record, or zeros) is cut off. A full
    record with a wrong CRC stays and is quarantined. A tail without a readable header is quarantined; one flipped bit
    in it is undone to learn its count, otherwise it counts as one event, and a new spool id begins. If a cursor is
    ahead of the tail, acknowledged data vanished (a restored backup, `durability: os`, a lying disk): sequences go on
    at the cursor, under a new id. Cursors are saved under the id of the newest segment, by which the next start knows
    them. What is kept is synced before it is read: a kill may have come between a write and its fdatasync.

Bounds (and their names): disk `max_bytes`; memory `tip_bytes` plus what each reader asks for (`batch_bytes`);
quarantine `quarantine_bytes`. Pending appends are bounded by their callers, each of whom waits for one.
"""

from ndagent.core.spool.config import SpoolConfig
from ndagent.core.spool.cursor import Cursor
from ndagent.core.spool.errors import SpoolClosed, SpoolLocked, UnknownFormat
from ndagent.core.spool.position import Account
from ndagent.core.spool.record import Record
from ndagent.core.spool.spool import Spool

__all__ = ["Account", "Cursor", "Record", "Spool", "SpoolClosed", "SpoolConfig", "SpoolLocked", "UnknownFormat"]
