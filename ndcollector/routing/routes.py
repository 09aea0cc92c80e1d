"""Routes for outputs: each one's engine, called where it holds up nobody.

Promises: a small batch is routed at once on the loop, a larger one in one of THREADS threads, so that the loop reads
on; an output without where, sample and transform has no route and pays nothing. Refuses: keeping events.
"""

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from ndagent.core.decoding import INLINE_BYTES, Decoding
from ndagent.core.interfaces import Output, Route, Routed
from ndagent.core.settings import OutputConfig
from ndagent.wire.codec import make_decoder
from ndagent.wire.ecs import DecodeSettings
from ndagent.wire.record import EventBatch
from ndcollector.formats import formatter
from ndcollector.routing.config import RoutedConfig
from ndcollector.routing.engine import make_engine
from ndcollector.routing.formatted import Formatted

THREADS = 2
"""Python works in one of them at a time; the second takes over while the first is in orjson or RE2."""


class Routes:
    """Makes routes; one per process, whose threads they share."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="route")

    def route(self, _name: str, config: OutputConfig) -> Route | None:
        """The route of an output with these settings; None where it gets everything as it is."""
        engine = make_engine(config) if isinstance(config, RoutedConfig) else None
        if engine is None:
            return None

        async def route(events: EventBatch) -> Routed:
            if len(events.ndjson) <= INLINE_BYTES:
                return engine(events)
            return await asyncio.get_running_loop().run_in_executor(self._threads, engine, events)

        return route

    def formatting(self, build: Callable[[str, OutputConfig], Output]) -> Callable[[str, OutputConfig], Output]:
        """`build`, whose outputs are given events in the form that their settings ask for."""

        def formatted(name: str, config: OutputConfig) -> Output:
            output = build(name, config)
            form = formatter(config.format) if isinstance(config, RoutedConfig) else None
            return output if form is None else Formatted(output, form, self._threads)

        return formatted

    def close(self) -> None:
        """Let the threads end."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def originals(outputs: Mapping[str, OutputConfig], settings: DecodeSettings, shared: Decoding) -> dict[str, Decoding]:
    """By name, the decoding of outputs that need messages as they came, where the shared one does not keep them."""
    names = [name for name, config in outputs.items() if isinstance(config, RoutedConfig) and config.needs_originals]
    if not names or settings.keep_original == "always":
        return {}
    return dict.fromkeys(names, shared.beside(make_decoder(replace(settings, keep_original="always"))))
