"""What systemd is told of a start that takes long."""

import asyncio
import itertools
import logging
import os
import socket
from collections.abc import Iterator

import pytest

from ndagent.core.notify import START_SECONDS, Notifier


@pytest.fixture
def systemd(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """Its socket; nothing is ever waited for."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as made:
        made.bind(f"\0nd-notify-{os.getpid()}")
        made.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", f"@nd-notify-{os.getpid()}")
        yield made


def heard(systemd: socket.socket) -> list[str]:
    """What it was told until now."""
    found = []
    while True:
        try:
            found.append(systemd.recv(4096).decode())
        except BlockingIOError:
            return found


async def test_a_start_is_waited_for_while_the_loop_turns_and_not_for_ever(
    systemd: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    """Each message asks for more time than passes until the next; after an hour it is a hang, and said."""
    caplog.set_level(logging.WARNING)
    passed, asked, over = 0.0, [], asyncio.Event()

    async def sleep(seconds: float) -> None:
        nonlocal passed
        asked.append((passed, heard(systemd)))
        passed += seconds
        if passed >= START_SECONDS:
            over.set()
        await asyncio.sleep(0)

    async with Notifier().starting(sleep=sleep):
        async with asyncio.timeout(30):
            await over.wait()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    gaps = [later - earlier for (earlier, _), (later, _) in itertools.pairwise(asked)]
    said = {message for _, messages in asked for message in messages}
    assert said == {"EXTEND_TIMEOUT_USEC=60000000"}
    assert all(messages for _, messages in asked)
    assert max(gaps) < 60
    assert passed == START_SECONDS
    assert [entry.levelname for entry in caplog.records] == ["WARNING", "ERROR"]


@pytest.mark.usefixtures("systemd")
async def test_nobody_is_asked_once_the_start_is_over() -> None:
    """What comes then would extend a reload or a stop."""
    steps: list[float] = []

    async def sleep(seconds: float) -> None:
        steps.append(seconds)
        await asyncio.sleep(0)

    async with Notifier().starting(sleep=sleep):
        while len(steps) < 2:
            await asyncio.sleep(0)
    taken = len(steps)
    for _ in range(5):
        await asyncio.sleep(0)
    assert len(steps) == taken
