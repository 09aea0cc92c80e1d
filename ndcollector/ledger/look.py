"""The ledger where no daemon runs: the file as it is, brought up to the spools in memory, as the next start would.

Promises: only reads; what a kill left between ledger, spools and cursors is counted here as it will be at the start.
Refuses: a live daemon's files (its admin socket answers better).
"""

import itertools
from collections.abc import Callable
from pathlib import Path

from ndagent.core.spool.files import Files, OsFiles
from ndagent.core.spool.offline import summarise
from ndagent.core.spool.position import Position
from ndagent.core.spool.recovery import likely_id, load_cursors
from ndagent.core.spool.scan import list_segments
from ndagent.core.spool.segment import spool_id_text
from ndcollector.ledger.counting import count_range
from ndcollector.ledger.ledger import take_up_count
from ndcollector.ledger.opening import Opened, SpoolView, open_stream
from ndcollector.ledger.origins import Origins
from ndcollector.ledger.report import Page, Report
from ndcollector.ledger.store import FILE, Loaded, Store


def look(state_dir: Path, *, max_origins: int, clock: Callable[[], float], files: Files | None = None) -> Report:
    """Everything as the next start would find it. Raises LedgerError, OSError."""
    files = files or OsFiles()
    path = state_dir / FILE
    loaded, closed = Loaded(), []
    if path.exists():
        store = Store(path.resolve(), read_only=True)
        try:
            loaded, closed = store.load(), store.closed()
        finally:
            store.close()
    origins = Origins(max_origins, loaded.names)
    numbers = itertools.count(loaded.next_number)
    known = {stream.stream: stream for stream in loaded.streams}
    pages = []
    for directory in _spools(state_dir):
        view = _view(files, directory)
        jobs = [job for job in loaded.to_count if job.stream == view.stream]
        opened = open_stream(known.get(view.stream), jobs, view, number=numbers.__next__, now=clock())
        for job in opened.jobs:
            take_up_count(opened.stream, job, count_range(files, directory, job.first, job.end), origins)
        for account in opened.stream.accounts.values():
            wanted = opened.stream.recount(account)
            if wanted is not None:
                wanted.take_up(origins.numbered(count_range(files, directory, wanted.first, wanted.end).events))
        pages.append(Page(opened.stream, view.next_sequence, _cursors(view, opened)))
    return Report(pages, names=origins.names, jobs=[], dropped=loaded.dropped, closed=closed)


def _spools(state_dir: Path) -> list[Path]:
    root = state_dir / "spool"
    return sorted(entry for entry in root.iterdir() if (entry / "cursors").is_dir()) if root.is_dir() else []


def _view(files: Files, directory: Path) -> SpoolView:
    slots = load_cursors(files, directory / "cursors")
    segments = list_segments(files, directory, likely_id(slots))
    saved = {name: one.saved for name, one in slots.items()}
    ids = {segment.spool_id for segment in segments} or {one.spool_id for one in saved.values() if one}
    known = frozenset(spool_id_text(one) for one in ids if one)
    end = summarise(directory, files).next_sequence
    first = segments[0].base if segments else end
    cursors = {
        name: (one.position.evicted_to(first) if one else Position(first, first), one) for name, one in saved.items()
    }
    return SpoolView(directory.name, known, tuple(sorted(known)), first, end, cursors)


def _cursors(view: SpoolView, opened: Opened) -> dict[str, Position]:
    return {name: opened.resumed.get(name, position) for name, (position, _) in view.cursors.items()}
