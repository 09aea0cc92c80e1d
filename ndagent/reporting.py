"""What this agent says of itself: to its collector (wire/status.py) and to `ndagent status` on this machine.

Promises: the collector hears within `status_every` of a new run, and as often from then on; `status.json` in the state
directory is rewritten whole every FILE_SECONDS and says when, so that a reader can tell a stale one; a collector that
does not answer costs the next report, nothing else.
Refuses: deciding anything.
"""

import asyncio
import logging
import math
import os
import socket
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import orjson

from ndagent import __version__
from ndagent.core.interfaces import Unavailable
from ndagent.core.ledger import Bookkeeper
from ndagent.core.settings import Settings
from ndagent.core.spool import Spool
from ndagent.identity import sweep, write_private
from ndagent.membership import Membership
from ndagent.outputs.collector import NAME, Collector
from ndagent.wire.status import MAX_INPUTS, AgentStatus, InputState, InputStatus, PolicyStatus, Shed, SpoolStatus

log = logging.getLogger(__name__)

FILE_SECONDS = 5.0
STATUS_FILE = "status.json"
_MESSAGE_CHARACTERS = 500
_AGAIN_SECONDS = 10.0


@dataclass(slots=True)
class Reloads:
    """How often a reload was asked for, up to which of these it was answered, and why the last one was refused."""

    asked: int = 0
    answered: int = 0
    refusal: str = ""


class Reporter:
    """Gathers from the parts that are handed in.

    `failing` gives why inputs do not run, by name, `troubles` what those that run cannot do; `oldest` when the oldest
    event of a stream that waits was taken, 0 for none.
    """

    def __init__(
        self,
        *,
        run_id: str,
        spools: Mapping[str, Spool],
        bookkeeper: Bookkeeper,
        membership: Membership,
        collector: Callable[[], Collector],
        inputs: Callable[[], Mapping[str, Settings]],
        failing: Callable[[], Mapping[str, str]],
        troubles: Callable[[], Mapping[str, str]],
        policy: Callable[[], PolicyStatus | None],
        shed: Callable[[], tuple[Shed, ...]],
        oldest: Callable[[str], int],
        reloads: Reloads,
        max_bytes: int,
        state_dir: Path,
    ) -> None:
        self._run_id = run_id
        self._spools = spools
        self._bookkeeper = bookkeeper
        self._membership = membership
        self._collector = collector
        self._inputs = inputs
        self._failing = failing
        self._troubles = troubles
        self._policy = policy
        self._shed = shed
        self._oldest = oldest
        self._reloads = reloads
        self._max_bytes = max_bytes
        self._path = state_dir / STATUS_FILE
        self._writing = asyncio.Lock()

    def status(self) -> AgentStatus:
        """The report as of now."""
        identity = self._membership.identity
        return AgentStatus(
            run_id=self._run_id,
            sent_at_ns=time.time_ns(),
            version=__version__,
            os="windows" if sys.platform == "win32" else sys.platform,
            hostname=socket.gethostname(),
            spools=tuple(self._spool_status(stream, spool) for stream, spool in self._spools.items()),
            inputs=tuple(self._input_status()),
            shed=self._shed(),
            policy=self._policy(),
            trust_bundle=identity.trust_bundle if identity else "",
            certificate_not_after=identity.not_after if identity else 0,
            endpoint=self._collector().endpoint,
        )

    async def run(self, every_seconds: Callable[[], float]) -> None:
        """Tell the collector, until cancelled; sooner than `every_seconds` where it did not hear the last one."""
        while True:
            longest = math.inf if await self.tell() else _AGAIN_SECONDS
            await asyncio.sleep(min(every_seconds(), longest))

    async def run_file(self) -> None:
        """Keep the local file current, until cancelled."""
        while True:
            await self.write_file()
            await asyncio.sleep(FILE_SECONDS)

    async def write_file(self) -> None:
        """Write it now; where the disk does not let us, the old one stays."""
        async with self._writing:  # or an older report could be put in place of a newer one
            await asyncio.to_thread(self._write, self._report())

    async def tell(self) -> bool:
        """Report now; whether a collector heard it."""
        if self._membership.identity is None:
            return False
        try:
            await self._collector().report(self.status().to_json())
        except Unavailable as error:
            log.debug("status not told: %s", error.reason)  # the output itself says that nothing answers
            return False
        return True

    def _report(self) -> bytes:
        """The local file; gathered on the loop, where nothing changes meanwhile."""
        identity = self._membership.identity
        ledger = self._bookkeeper.snapshot()
        plain = {
            "pid": os.getpid(),
            "agent_id": identity.agent_id if identity else None,
            "group": identity.group if identity else None,
            "ledger": ledger.text,
            "adds_up": ledger.adds_up,
            "reloads": asdict(self._reloads),
            **asdict(self.status()),
        }
        return orjson.dumps(plain, option=orjson.OPT_INDENT_2)

    def _write(self, report: bytes) -> None:
        with suppress(OSError):  # a full disk is the spool's to tell
            sweep(self._path.parent)
            write_private(self._path, report, sync=False)

    def _spool_status(self, stream: str, spool: Spool) -> SpoolStatus:
        cursor = spool.cursors.get(NAME)
        return SpoolStatus(
            stream=stream,
            spool_id=spool.spool_id,
            pending_events=cursor.account().pending if cursor else 0,
            bytes=spool.total_bytes,
            max_bytes=self._max_bytes,
            oldest_at_ns=self._oldest(stream),
        )

    def _input_status(self) -> list[InputStatus]:
        lines = {line.input: line for line in self._bookkeeper.snapshot().inputs}
        failing, troubles = self._failing(), self._troubles()
        found = []
        for name, settings in islice(self._inputs().items(), MAX_INPUTS):
            line, why = lines.get(name), failing.get(name, "")
            state: InputState = "failed" if why else "running"
            found.append(
                InputStatus(
                    name=name,
                    type=getattr(settings, "type", name),
                    state=state,
                    received=line.received if line else 0,
                    dropped=sum(line.dropped.values()) if line else 0,
                    message="".join(filter(str.isprintable, why or troubles.get(name, "")))[:_MESSAGE_CHARACTERS],
                )
            )
        return found
