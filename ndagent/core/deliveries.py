"""One Delivery for each configured output: built, kept over a reload where nothing changed, closed.

Promises: a configuration whose outputs cannot all be built leaves nothing of it open; one that hangs while it closes (a
file on a dead NFS server) keeps neither a reload nor a stop, hence no other output, waiting.
Refuses: knowing any plug by name (`build` does: plugs.builder over a registry), sending (the dispatcher's).
"""

import asyncio
import logging
import random
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from ndagent.core.dead_letters import DeadLetters
from ndagent.core.delivery import Delivery, wrap
from ndagent.core.interfaces import Output, Route
from ndagent.core.metrics import Metrics
from ndagent.core.settings import OutputConfig, Settings
from ndagent.core.spool.errors import UnknownFormat
from ndagent.core.supervision import StartError, in_words

log = logging.getLogger(__name__)

DIRECTORY = "dead_letters"
"""Below the state directory."""

CLOSE_SECONDS = 5.0
"""An output that takes longer goes on closing by itself; what it had not settled is sent again in any case."""

_closing: set["asyncio.Task[None]"] = set()  # nobody else holds on to them


class DeliveryBuilder:
    """`build` makes the plug of a name and its settings.

    `over` puts what every output has in common around its chain: it is given the chain and the output's name. `route`
    says which events it gets. `letters_command` is what a person types to look at dead letters.
    """

    def __init__(
        self,
        build: Callable[[str, OutputConfig], Output],
        *,
        state_dir: Path,
        metrics: Metrics,
        over: Callable[[Output, str], Output] = lambda chain, _name: chain,
        route: Callable[[str, OutputConfig], Route | None] = lambda _name, _settings: None,
        letters_command: str = "",
    ) -> None:
        self._build_plug = build
        self._state_dir = state_dir
        self._metrics = metrics
        self._over = over
        self._route = route
        self._letters_command = letters_command

    async def build(self, outputs: Mapping[str, Settings], kept: Mapping[str, Delivery]) -> dict[str, Delivery]:
        """One per output; those of `kept` whose settings did not change stay, with their open files and breakers.

        Raises StartError that names the output which cannot be built.
        """
        found: dict[str, Delivery] = {}
        for name, settings in outputs.items():
            assert isinstance(settings, OutputConfig)  # noqa: S101 - the registry's models all are
            old = kept.get(name)
            if old is not None and old.config == settings:
                found[name] = old
                continue
            try:
                found[name] = self._build(name, settings)
            except (OSError, ValueError, ImportError, UnknownFormat) as error:
                await close(without(found, kept))
                raise StartError(f"output {name}: {in_words(error)}") from error
        return found

    def _build(self, name: str, settings: OutputConfig) -> Delivery:
        loop = asyncio.get_running_loop()
        chain = wrap(
            self._build_plug(name, settings),
            name=name,
            config=settings,
            metrics=self._metrics,
            clock=loop.time,
            sleep=asyncio.sleep,
            random=random.random,
        )
        letters = DeadLetters(
            self._state_dir / DIRECTORY,
            output=name,
            max_bytes=settings.dead_letter_max_bytes,
            clock=time.time,
            metrics=self._metrics,
            command=self._letters_command,
        )
        letters.check_format()
        letters.note()
        return Delivery(
            self._over(chain, name),
            name=name,
            config=settings,
            dead_letters=letters,
            clock=loop.time,
            sleep=asyncio.sleep,
            random=random.random,
            route=self._route(name, settings),
            pace=chain.pace,
        )


def without(deliveries: Mapping[str, Delivery], others: Mapping[str, Delivery]) -> list[Delivery]:
    """Those that are not among the others."""
    return [one for name, one in deliveries.items() if others.get(name) is not one]


async def close(deliveries: Iterable[Delivery]) -> None:
    """Close them all, whatever one of them raises, and wait for that no longer than CLOSE_SECONDS."""
    closing = {asyncio.create_task(one.aclose(), name=f"closing {one.name}"): one.name for one in deliveries}
    if not closing:
        return
    for task in closing:
        _closing.add(task)
        task.add_done_callback(_closing.discard)
    done, late = await asyncio.wait(closing, timeout=CLOSE_SECONDS)
    for task in late:
        log.warning(
            "output %s hangs and is still not closed after %.0fs; it goes on closing by itself, nobody waits for it "
            "and nothing is lost", closing[task], CLOSE_SECONDS,
        )  # fmt: skip
    for task in done:
        error = None if task.cancelled() else task.exception()
        if error is not None:
            log.warning("output %s did not close well: %r; nothing is lost", closing[task], error)
