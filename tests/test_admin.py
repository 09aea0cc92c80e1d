"""The doors for operators, under local users who mean no good."""

import asyncio
import contextlib
import logging
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator

import pytest
from prometheus_client import CollectorRegistry

from ndagent.core.settings import Listen
from ndcollector import admin
from ndcollector.admin import AdminServer

HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


class Daemon:
    """One that is ready and has nothing to tell."""

    def not_ready_because(self) -> list[str]:
        return []

    def ledger(self) -> dict[str, object]:
        return {}

    async def replay(self, *, output: str, stream: str | None, start: int, until: int | None) -> dict[str, object]:
        return {}


@pytest.fixture
async def port() -> AsyncIterator[int]:
    """The TCP door's port."""
    server = AdminServer(daemon=Daemon(), registry=CollectorRegistry())
    await server.listen(Listen("127.0.0.1", 0))
    yield server.port
    await server.aclose()


async def ask(port: int, request: bytes) -> bytes:
    """One request and the whole answer."""
    async with asyncio.timeout(10):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        with contextlib.closing(writer):
            writer.write(request)
            return await reader.read()


async def test_connections_that_say_nothing_do_not_keep_the_monitoring_out(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Limit: _MAX_CONNECTIONS; the oldest goes, so that neither files nor memory of the daemon are for the taking."""
    monkeypatch.setattr(admin, "_MAX_CONNECTIONS", 5)
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(8)]
        for one in silent:
            one.setblocking(False)
        assert b" 200 OK" in await ask(port, HEALTH)
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(10):
            for pushed_out in silent[:4]:
                with contextlib.suppress(ConnectionResetError):
                    assert await loop.sock_recv(pushed_out, 1) == b""
        with pytest.raises(BlockingIOError):
            silent[-1].recv(1)


async def test_what_is_no_http_is_answered_and_not_logged(port: int, caplog: pytest.LogCaptureFixture) -> None:
    """A traceback for each line of nonsense would fill the journal."""
    assert b" 400 Bad Request" in await ask(port, b"GET /health HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n")
    assert b" 400 Bad Request" in await ask(port, b"\x16\x03\x01\r\n\r\n")
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can take on groups")
def test_supplementary_groups_of_a_caller_are_known() -> None:
    """`usermod -aG ndcollector alice` is how alice becomes an operator."""
    program = (
        "import socket; from ndcollector.admin import _groups; "
        "left, right = socket.socketpair(); print(sorted(_groups(left)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], extra_groups=[54321, 54322], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[54321, 54322]"
