"""A desk of dead letters over two outputs whose far sides do what a test tells them."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from ndagent.core.dead_letters import DeadLetters
from ndagent.core.delivery import Delivery, wrap
from ndagent.core.interfaces import Rejected
from ndagent.core.metrics import Metrics
from ndagent.core.settings import BreakerConfig, RetryConfig
from ndagent.wire.codec import make_decoder
from ndagent.wire.ecs import DecodeSettings
from ndcollector.audit import Audit
from ndcollector.dead_letters.desk import Desk
from ndcollector.dead_letters.letters import Wanted
from ndcollector.routing.config import RoutedConfig
from tests.far_side import FarSide

WAIT_SECONDS = 20


class Setting:
    """A desk over outputs `archive` and `other`, each with a far side of its own."""

    def __init__(self, directory: Path, **config: Any) -> None:
        self.directory = directory
        self.metrics = Metrics()
        self.coming: Callable[[str, str, str, int], bool] = lambda *_place: False
        self.far: dict[str, FarSide] = {}
        self.deliveries: dict[str, Delivery] = {}
        settings = {"retry": RetryConfig(initial=0.001, maximum=0.01), "breaker": BreakerConfig(failures=10**6)}
        for name in ("archive", "other"):
            self.far[name] = FarSide()
            self.deliveries[name] = self.make_delivery(name, RoutedConfig(type="test", **{**settings, **config}))
        self.desk = self.make_desk()

    def make_delivery(self, name: str, config: RoutedConfig) -> Delivery:
        loop = asyncio.get_running_loop()
        plumbing: dict[str, Any] = {"clock": loop.time, "sleep": asyncio.sleep, "random": lambda: 1.0}
        output = wrap(self.far[name], name=name, config=config, metrics=self.metrics, **plumbing)
        letters = DeadLetters(
            self.directory / "dead_letters",
            output=name,
            max_bytes=config.dead_letter_max_bytes,
            clock=lambda: 1_800_000_000.0,
            metrics=self.metrics,
            command="ndcollector dlq",
        )
        return Delivery(output, name=name, config=config, dead_letters=letters, pace=output.pace, **plumbing)

    def make_desk(self) -> Desk:
        return Desk(
            self.directory / "dead_letters",
            deliveries=lambda: self.deliveries,
            decoder=lambda: make_decoder(DecodeSettings(observer_name="collector-1")),
            is_coming=lambda *place: self.coming(*place),  # noqa: PLW0108 - tests set another one
            metrics=self.metrics,
            audit=Audit(self.directory, by="daemon", clock=lambda: 0.0),
        )

    async def replay(self, output: str = "archive", *, to: str | None = None, **wanted: str) -> dict[str, Any]:
        """One from begin to end."""
        await self.desk.replay(output, wanted=Wanted.read(wanted), to=to, uid=0)
        return await self.ended(output)

    async def ended(self, output: str = "archive") -> dict[str, Any]:
        await until(lambda: self.figures(output)["last_replay"] is not None)
        found: dict[str, Any] = self.figures(output)["last_replay"]
        return found

    def figures(self, output: str = "archive") -> dict[str, Any]:
        return next(one for one in self.desk.plain() if one["output"] == output)

    def value(self, name: str) -> float:
        return self.metrics.registry.get_sample_value(name, {"output": "archive"}) or 0


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_SECONDS):
        while not condition():
            await asyncio.sleep(0.002)


@asynccontextmanager
async def running(setting: Setting) -> AsyncIterator[Setting]:
    setting.desk.open()
    setting.desk.begin()
    try:
        await until(lambda: setting.figures()["events"] is not None)
        yield setting
    finally:
        await setting.desk.aclose()


def refusing(guilty: Callable[[int], bool], reason: str = "still wrong") -> Callable[[list[int]], None]:
    def judge_them(found: list[int]) -> None:
        reasons = {index: reason for index, sequence in enumerate(found) if guilty(sequence)}
        if reasons:
            raise Rejected("some", reasons=reasons, response="400")

    return judge_them
