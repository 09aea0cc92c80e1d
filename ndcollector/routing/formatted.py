"""An output that is given events in another form than ECS: innermost, so that all around it sees events.

Promises: sends start in the order of their calls, however many are under way; a batch that cannot be formatted is
rejected, which the machine bisects: one event that a format cannot show is a dead letter, and holds up no other.
"""

import asyncio
import logging
import time
from concurrent.futures import Executor

from ndagent.core.decoding import INLINE_BYTES
from ndagent.core.interfaces import Output, Rejected
from ndagent.core.log import Throttle
from ndagent.wire.record import EventBatch
from ndcollector.formats import Formatter

log = logging.getLogger(__name__)


class Formatted:
    """See the module; `threads` is where batches that are not small are formatted."""

    def __init__(self, output: Output, formatter: Formatter, threads: Executor) -> None:
        self._output = output
        self._formatter = formatter
        self._threads = threads
        self._turn = asyncio.Lock()
        self._throttle = Throttle(60.0, clock=time.monotonic)

    async def send(self, events: EventBatch) -> None:
        """As the wrapped output; raises Rejected for what cannot be formatted."""
        async with self._turn:
            formatted = await self._format(events)
        await self._output.send(formatted)

    async def _format(self, events: EventBatch) -> EventBatch:
        try:
            if len(events.ndjson) <= INLINE_BYTES:
                return self._formatter(events)
            return await asyncio.get_running_loop().run_in_executor(self._threads, self._formatter, events)
        except MemoryError:
            raise  # says nothing about the events: they are sent again
        except Exception as error:
            if self._throttle.allow("bug") is not None:
                log.exception("an event cannot be formatted and becomes a dead letter; please report this traceback")
            raise Rejected(f"format_failed: {type(error).__name__}: {error}") from error

    async def sync(self) -> None:
        """As the wrapped output."""
        await self._output.sync()

    async def aclose(self) -> None:
        """As the wrapped output."""
        await self._output.aclose()
