"""The inputs that run: started, exchanged by a reload, stopped.

Promises: a change that cannot be is refused before anything is given up: addresses that are not ours yet are tried
first. Should a new input fail all the same, the old ones are put back, and one whose address was taken meanwhile is
tried again until it has it. A stop waits until what was read is durable.
Refuses: knowing any plug by name (`build` does: plugs.builder over a registry).
"""

import asyncio
import logging
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ndagent.core import messages
from ndagent.core.interfaces import Accept, Input
from ndagent.core.listening import try_address
from ndagent.core.progress import Signs
from ndagent.core.settings import Listen, Settings, listen_addresses, transport_of
from ndagent.core.supervision import StartError, Supervised, in_words
from ndagent.wire.record import Batch

log = logging.getLogger(__name__)

STOP_SECONDS = 10.0
"""How long an input may take to make durable what it has read, when it is stopped."""


@dataclass(slots=True)
class _Accepts:
    """What one input hands over: how much is on its way into the spool, and how much arrived."""

    under_way: int = 0
    done: int = 0


@dataclass(frozen=True, slots=True)
class _Running:
    settings: Settings
    plug: Input
    accepts: _Accepts
    supervised: Supervised

    def signs(self) -> Signs:
        """An input that ended by itself has all its work before it."""
        own: Any = getattr(self.plug, "signs", None)  # an input may have more to show than what it hands over
        found: Signs = own() if own is not None else Signs(False, 0)
        if self.supervised.failure is not None:
            return Signs(False, found.done)  # it is being started again
        has_work = found.has_work or self.accepts.under_way > 0 or self.supervised.has_ended
        return Signs(has_work, found.done + self.accepts.done)


class Intake:
    """All inputs of one daemon; `build` makes one of its name and settings, `accept` is where it hands its batches."""

    def __init__(self, accept: Accept, *, build: Callable[[str, Settings], Input]) -> None:
        self._accept = accept
        self._build = build
        self._wanted: Mapping[str, Settings] = {}
        self._running: dict[str, _Running] = {}

    def __len__(self) -> int:
        return len(self._running)

    def not_running(self) -> Iterator[str]:
        """Why data would not be taken now, input by input."""
        for name, why in self.failures().items():
            yield f"input {name} {why}"

    def failures(self) -> dict[str, str]:
        """Those that do not run now, and why."""
        found: dict[str, str] = {}
        for name in self._wanted:
            running = self._running.get(name)
            if running is None:
                found[name] = "has not started"
            elif running.supervised.failure is not None:
                found[name] = f"is not running: {running.supervised.failure}"
            elif running.supervised.has_ended:
                found[name] = "is not running: it ended by itself, please report this"
        return found

    def troubles(self) -> dict[str, str]:
        """What those that run say is wrong all the same, such as a file that they may not read."""
        said = {name: getattr(running.plug, "trouble", str)() for name, running in self._running.items()}
        return {name: trouble for name, trouble in said.items() if trouble}

    def signs(self) -> Iterator[tuple[str, Signs]]:
        """Of each input, by name: see core/progress.py."""
        for name, running in self._running.items():
            yield f"input {name}", running.signs()

    async def start(self, wanted: Mapping[str, Settings], *, patient: Container[str] = ()) -> None:
        """Start them all; raises StartError that names the one that cannot. Those before it keep running: stop them.

        One of the `patient` that cannot start is tried again until it has.
        """
        self._wanted = wanted
        for name, settings in wanted.items():
            await (self._put_back if name in patient else self._start)(name, settings)

    async def change(self, wanted: Mapping[str, Settings]) -> None:
        """Exchange those that changed, the others go on undisturbed; raises StartError, and then nothing changed."""
        old = {name: running.settings for name, running in self._running.items()}
        changed = [name for name, settings in wanted.items() if old.get(name) != settings]
        await self._try_addresses({name: wanted[name] for name in changed})
        replaced = [name for name, settings in old.items() if wanted.get(name) != settings]
        await self._stop(replaced)
        try:
            for name in changed:
                await self._start(name, wanted[name])
        except BaseException:
            await self._stop([name for name in changed if name in self._running])
            for name in replaced:
                await self._put_back(name, old[name])
            raise
        self._wanted = wanted

    async def stop(self) -> None:
        """Stop them all, side by side."""
        await self._stop(list(self._running))

    async def _start(self, name: str, settings: Settings) -> None:
        plug = self._build(name, settings)
        try:
            await plug.start()
        except OSError as error:
            raise StartError(f"input {name}: {in_words(error)}") from error
        self._run(name, settings, plug)

    def _run(self, name: str, settings: Settings, plug: Input) -> None:
        accepts = _Accepts()

        async def accept(batch: Batch) -> None:
            accepts.under_way += 1
            try:
                await self._accept(batch)
                accepts.done += 1
            finally:
                accepts.under_way -= 1

        supervised = Supervised(f"input {name}", lambda: plug.run(accept), fields={"input": name})
        self._running[name] = _Running(settings, plug, accepts, supervised)

    async def _put_back(self, name: str, settings: Settings) -> None:
        try:
            await self._start(name, settings)
        except StartError:
            self._run(name, settings, self._build(name, settings))  # starts by itself, and says so until it has

    async def _try_addresses(self, new: Mapping[str, Settings]) -> None:
        """Raise StartError for an address that somebody else has; one on a port of ours comes free when we move."""
        ours = {place for running in self._running.values() for _, place in _places(running.settings)}
        for name, settings in new.items():
            for address, place in _places(settings):
                if place in ours:
                    continue
                try:
                    await try_address(address, transport_of(settings))
                except OSError as error:
                    raise StartError(f"input {name}: {in_words(error)}") from error

    async def _stop(self, names: list[str]) -> None:
        stopping = {name: self._running.pop(name).supervised for name in names}
        in_time = await asyncio.gather(*(one.stop(STOP_SECONDS) for one in stopping.values()))
        for name, well in zip(stopping, in_time, strict=True):
            if not well:
                log.error(
                    "input %s was cut off after %.0fs because the spool did not take what it had read; what that cost "
                    "is counted in nd_input_dropped_events_total. Give the spool room: spool.max_bytes, or the disk",
                    name, STOP_SECONDS, extra={**messages.EVENTS_LOST_AT_STOP, "input": name},
                )


def _places(settings: Settings) -> list[tuple[Listen, tuple[str, int]]]:
    """Each address, with the transport and port of it that only one of us can have."""
    transport = transport_of(settings)
    return [(address, (transport, address.port)) for _, address in listen_addresses(settings)]
