"""An input for tests of policy: takes paths, reads nothing."""

import asyncio

from ndagent.core.interfaces import Accept, Input
from ndagent.core.settings import Settings


class Config(Settings):
    """As an input of files may look."""

    type: str = "file"
    paths: tuple[str, ...] = ()


class Idle:
    """Runs, and hands over nothing."""

    async def start(self) -> None:
        """There is nothing to open."""

    async def run(self, accept: Accept) -> None:
        """Wait to be cancelled."""
        await asyncio.Event().wait()


def build(name: str, config: Config, context: object) -> Input:
    """See ndagent.inputs."""
    return Idle()
