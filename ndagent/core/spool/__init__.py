"""The spool."""

from ndagent.core.spool.config import SpoolConfig
from ndagent.core.spool.cursor import Cursor
from ndagent.core.spool.errors import SpoolClosed, SpoolLocked, UnknownFormat
from ndagent.core.spool.position import Account
from ndagent.core.spool.record import Record
from ndagent.core.spool.spool import Spool

__all__ = ["Account", "Cursor", "Record", "Spool", "SpoolClosed", "SpoolConfig", "SpoolLocked", "UnknownFormat"]
