"""Tests of connections run on asyncio's own loop and on uvloop: their transports differ where it hurts."""

import asyncio
from collections.abc import Callable, Mapping

import pytest
import uvloop


def pytest_asyncio_loop_factories(item: pytest.Item) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]] | None:
    """Both loops for test_syslog_tls*.py, the default for every other file."""
    if item.path.name.startswith("test_syslog_tls"):
        return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
    return None
