"""What can go wrong with a spool as a whole. Damaged data and failing disks are not here: the spool lives with them."""


class SpoolClosed(RuntimeError):
    """The spool was closed: the batch was not acknowledged, the reader gets no more."""


class SpoolLocked(RuntimeError):
    """Another process has this spool open."""


class UnknownFormat(RuntimeError):
    """A later version of this program wrote this spool."""
