"""What can go wrong with a spool as a whole. Damaged data and failing disks are not here: the spool lives with them."""

from pathlib import Path


class SpoolClosed(RuntimeError):
    """The spool was closed: the batch was not acknowledged, the reader gets no more."""


class SpoolLocked(RuntimeError):
    """Another process has this spool open."""


class UnknownFormat(RuntimeError):
    """A later version of this program wrote this file; it is left alone, and the text says what to do."""

    def __init__(self, path: Path, *, what: str, found: int, known: int) -> None:
        super().__init__(
            f"{path}: {what} format {found}, this program reads up to {known}; start the newer version that wrote it, "
            "or give this one another state_dir (nothing needs deleting)"
        )
