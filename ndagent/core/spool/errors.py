"""What can go wrong with a spool as a whole. Damaged data and failing disks are not here: the spool lives with them."""


class SpoolClosed(RuntimeError):  # noqa: N818 - names the state, as asyncio.QueueFull does
    """The spool was closed: the batch was not acknowledged, the reader gets no more."""


class SpoolLocked(RuntimeError):  # noqa: N818 - names the state, as asyncio.QueueFull does
    """Another process has this spool open."""


class UnknownFormat(RuntimeError):  # noqa: N818 - names the state, as asyncio.QueueFull does
    """A later version of this program wrote this spool."""
