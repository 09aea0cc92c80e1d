"""What the sources have for the ledger's next transaction."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from ndcollector.sources.table import Key


class SourceChanges(NamedTuple):
    """Rows (see rows.py), keys that are gone, and what was said (see alerts.py)."""

    rows: Sequence[tuple[Any, ...]]
    gone: Sequence[Key]
    said: tuple[str, int] | None
    everything: bool = False  # the rows are all there are
