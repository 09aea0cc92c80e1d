"""What tests of the https input share: both loops, since their transports differ where it hurts; and a site."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvloop
from https_site import Serve, Site


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Both loops for every asynchronous test here."""
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@pytest.fixture
def serve(tmp_path: Path) -> Serve:
    """`async with serve(accept_timeout=0.2) as site`: an https input that runs; options of Site, limits among them."""

    @asynccontextmanager
    async def serving(**options: Any) -> AsyncIterator[Site]:
        site = Site(tmp_path, **options)
        await site.start()
        try:
            yield site
        finally:
            await site.stop()

    return serving
