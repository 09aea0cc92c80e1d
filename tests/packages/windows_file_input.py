"""Under wine: the input `file` on files as Windows programs write them. Run by test_windows_files.py, by pytest there.

A program that writes a log mostly lets others read it and not rename it; one that rotates renames or removes what it
has just closed, whoever reads it. So we must be in nobody's way.
"""

from pathlib import Path

import pytest
from file_site import Memory, append, running


@pytest.fixture
def memory() -> Memory:
    return Memory()


async def test_a_writer_that_keeps_its_file_open_is_followed(tmp_path: Path, memory: Memory) -> None:
    log = tmp_path / "app.log"
    with log.open("ab", buffering=0) as writer:
        async with running(memory, log) as site:
            for number in range(5):
                writer.write(f"line {number}\r\n".encode())
                await site.until(lambda number=number: len(memory.events) == number + 1)
    assert memory.messages == [f"line {number}" for number in range(5)]


async def test_events_name_the_file_as_windows_does(tmp_path: Path, memory: Memory) -> None:
    log = tmp_path / "app.log"
    append(log, "one")
    async with running(memory, tmp_path / "*.LOG") as site:
        await site.until_messages("one")
    assert memory.events[0]["log"]["file"]["path"] == str(log)
    assert "\\" in str(log)


async def test_rotation_by_renaming_is_not_held_up_and_loses_nothing(tmp_path: Path, memory: Memory) -> None:
    """Files that we have open are renamed again and again, a new one begins: each line came once."""
    log, expected = tmp_path / "app.log", []
    async with running(memory, log) as site:
        for turn in range(12):
            lines = [f"{turn}-{number}" for number in range(5)]
            append(log, *lines)
            expected += lines
            if turn % 3 == 0:
                await site.until(lambda last=lines[-1]: last in memory.messages)
            for number in range(turn, 0, -1):
                Path(f"{log}.{number}").rename(f"{log}.{number + 1}")
            log.rename(f"{log}.1")
        await site.until(lambda: len(memory.messages) >= len(expected))
    assert sorted(memory.messages) == sorted(expected)
    assert memory.troubles == []


async def test_a_restart_knows_a_file_that_was_renamed_meanwhile(tmp_path: Path, memory: Memory) -> None:
    """By the file's index, which is what an inode is here."""
    log = tmp_path / "app.log"
    append(log, "one", "two")
    async with running(memory, tmp_path / "app.log*") as site:
        await site.until_messages("one", "two")
    append(log, "three")
    log.rename(tmp_path / "app.log.1")
    append(log, "four")
    async with running(memory, tmp_path / "app.log*") as site:
        await site.until_messages("one", "two", "three", "four")
    assert memory.troubles == []


async def test_a_log_in_utf_16_is_read_whatever_pieces_it_comes_in(tmp_path: Path, memory: Memory) -> None:
    """As SQL Server and many installers write them: a mark, two bytes a character, CR LF."""
    log = tmp_path / "ERRORLOG"
    text = "2026-11-26 Anmeldung für 'öffentlich' fehlgeschlagen\r\nzweite Zeile €\r\n\U0001f512 dritte\r\n"
    data = b"\xff\xfe" + text.encode("utf-16-le")
    async with running(memory, log) as site:
        with log.open("ab", buffering=0) as writer:
            for at in range(0, len(data), 7):
                writer.write(data[at : at + 7])
                if at % 35 == 0:
                    await site.until_quiet()
        await site.until(lambda: len(memory.messages) == 3)
    assert memory.messages == text.split("\r\n")[:-1]


async def test_a_file_written_anew_in_place_is_read_from_its_beginning(tmp_path: Path, memory: Memory) -> None:
    log = tmp_path / "app.log"
    append(log, "first long line of the old file", "second")
    async with running(memory, log) as site:
        await site.until(lambda: len(memory.messages) == 2)
        log.write_bytes(b"new\n")
        await site.until(lambda: "new" in memory.messages)
