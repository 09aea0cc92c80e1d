"""Changes of files are told, those in directories that come later too, and a kernel that cannot watch is no end."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import watchfiles

from ndagent.core.watching import changes


@contextlib.asynccontextmanager
async def counted(directories: Callable[[], set[Path]], look_every_seconds: float = 60) -> AsyncIterator[list[None]]:
    """How often a change was told, while the watch runs."""
    told: list[None] = []

    async def listen() -> None:
        async for change in changes(directories, look_every_seconds=look_every_seconds):
            told.append(change)  # noqa: PERF401 - one by one, while the test looks on

    listening = asyncio.create_task(listen())
    try:
        yield told
    finally:
        listening.cancel()
        await asyncio.wait({listening})


async def until_told(told: list[None], write: Callable[[], object]) -> None:
    """Write again until it is told: the watch tells nobody when it has begun."""
    told.clear()
    async with asyncio.timeout(15):
        while not told:
            write()
            await asyncio.sleep(0.3)


async def test_a_saved_file_is_told(tmp_path: Path) -> None:
    """The ordinary case."""
    async with counted(lambda: {tmp_path}) as told:
        await until_told(told, lambda: (tmp_path / "a").write_text("x"))


async def test_a_directory_made_later_is_watched(tmp_path: Path) -> None:
    """Its parent tells of it; from then on it tells by itself."""
    later = tmp_path / "conf.d"

    def make() -> None:
        later.mkdir(exist_ok=True)
        (tmp_path / "beside").write_text("x")

    async with counted(lambda: {tmp_path, later}) as told:
        await until_told(told, make)
        await until_told(told, lambda: (later / "a").write_text("x"))
        (later / "a").unlink()
        later.rmdir()
        await until_told(told, make)
        await until_told(told, lambda: (later / "b").write_text("x"))


async def test_no_directory_at_all_is_looked_for_now_and_then(tmp_path: Path) -> None:
    """Nothing to watch is not a failure."""
    async with counted(lambda: {tmp_path / "missing"}, look_every_seconds=0.01) as told:
        async with asyncio.timeout(15):
            while len(told) < 2:
                await asyncio.sleep(0.01)


async def test_without_inotify_it_looks_and_says_so_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What the kernel says when fs.inotify.max_user_instances is used up."""

    def refuse(*_paths: object, **_options: object) -> Iterator[None]:
        raise OSError("OS file watch limit reached.")

    monkeypatch.setattr(watchfiles, "awatch", refuse)
    async with counted(lambda: {tmp_path}, look_every_seconds=0.01) as told:
        async with asyncio.timeout(15):
            while len(told) < 3:
                await asyncio.sleep(0.01)
    assert len(caplog.records) == 1
    assert "max_user_instances" in caplog.text
