"""What end-to-end tests share: a collector that runs, with its own PKI; and both loops for connections.

Tests of connections run on asyncio's own loop and on uvloop: their transports differ where it hurts.
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import uvloop
from collector_site import Site


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Both loops for every asynchronous test here."""
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """A running collector with a file output; it must have stopped well at the end."""
    found = Site(tmp_path)
    with found.collector:
        yield found
