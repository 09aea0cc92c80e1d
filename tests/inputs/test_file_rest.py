"""What has no end yet: half lines, multi-line events, other encodings, long lines; and restarts in their midst."""

import pytest
from file_site import Memory, append, running

STACKS = {"pattern": r"^\S", "flush_after": 0.4}


@pytest.fixture
def memory():
    return Memory()


def add(path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)


async def test_a_half_line_waits_for_its_end(tmp_path, memory):
    """However many times it is looked at."""
    log = tmp_path / "app.log"
    async with running(memory, log) as site:
        for piece in (b"one\nt", b"w", b"o", b"\nthr"):
            add(log, piece)
            await site.until_quiet()
        await site.until_messages("one", "two")
    async with running(memory, log) as site:
        add(log, b"ee\n")
        await site.until_messages("one", "two", "three")


async def test_a_half_line_that_waits_too_long_is_delivered_and_its_end_too(tmp_path, memory):
    """Also over a restart between the two."""
    log = tmp_path / "app.log"
    add(log, b"one\nhalf a l")
    async with running(memory, log, close_partial_after=0.3) as site:
        await site.until_messages("one", "half a l")
        assert memory.events[1]["tags"] == ["_truncated"]
        assert site.value("nd_input_truncated_events_total") == 1
    async with running(memory, log, close_partial_after=0.3) as site:
        add(log, b"ine\nnext\n")
        await site.until_messages("one", "half a l", "ine", "next")
    assert memory.events[2]["tags"] == ["_continued"]
    assert [event["log"]["offset"] for event in memory.events] == [0, 4, 12, 16]


async def test_a_multi_line_event_in_the_midst_of_a_restart_is_whole(tmp_path, memory):
    """Its bytes were not passed before it was."""
    log = tmp_path / "app.log"
    settings = {"multiline": {**STACKS, "flush_after": 30.0}}
    append(log, "error: first", "  at a", "  at b", "error: second", "  at c")
    async with running(memory, log, **settings) as site:
        await site.until_messages("error: first\n  at a\n  at b")
    append(log, "  at d", "error: third")
    async with running(memory, log, **settings) as site:
        await site.until_messages("error: first\n  at a\n  at b", "error: second\n  at c\n  at d")
        assert memory.events[1]["log"]["offset"] == 27


async def test_the_last_multi_line_event_is_complete_when_nothing_was_added_for_a_while(tmp_path, memory):
    """And lines that follow later are an event, tagged."""
    log = tmp_path / "app.log"
    append(log, "error", "  at a")
    async with running(memory, log, multiline=STACKS) as site:
        await site.until_messages("error\n  at a")
        append(log, "  at b", "next")
        await site.until_messages("error\n  at a", "  at b", "next")
    assert memory.events[1]["tags"] == ["_continued"]


async def test_lines_that_continue_are_another_way_to_say_it(tmp_path, memory):
    """A pattern for the lines that belong to the one before."""
    log = tmp_path / "app.log"
    append(log, "a", "> b", "c")
    async with running(memory, log, multiline={"pattern": "^>", "match": "continues", "flush_after": 0.3}) as site:
        await site.until_messages("a\n> b", "c")


@pytest.mark.parametrize("name", ["utf-16-le", "utf-16-be"])
async def test_utf16_with_its_mark_is_read_as_it_grows(tmp_path, memory, name):
    """Half characters wait; a restart remembers what the mark said."""
    log = tmp_path / "app.log"
    data = ("\ufeff" + "größe ☃\nzwei\n").encode(name)
    async with running(memory, log) as site:
        add(log, data[:11])
        await site.until_quiet()
        add(log, data[11:])
        await site.until_messages("größe ☃", "zwei")
    async with running(memory, log) as site:
        add(log, "drei\n".encode(name))
        await site.until_messages("größe ☃", "zwei", "drei")
    assert memory.events[0]["log"]["offset"] == 2
    assert memory.troubles == []


async def test_bytes_that_are_no_text_survive(tmp_path, memory):
    """As at the collector: a replacement character to read, the exact bytes beside it."""
    log = tmp_path / "app.log"
    add(log, b"caf\xe9\nfine\n")
    async with running(memory, log) as site:
        await site.until_messages("caf\ufffd", "fine")
    assert memory.events[0]["event"]["original_base64"] == "Y2Fm6Q=="
    assert "original_base64" not in memory.events[1]["event"]


async def test_latin1_is_read_when_told(tmp_path, memory):
    """Any bytes are text in it."""
    log = tmp_path / "app.log"
    add(log, b"caf\xe9\r\n")
    async with running(memory, log, encoding="latin-1") as site:
        await site.until_messages("café")


async def test_a_line_longer_than_any_piece_is_cut_and_the_next_is_whole(tmp_path, memory):
    """A megabyte without an end, a restart in its midst, and memory for one piece."""
    log = tmp_path / "app.log"
    add(log, b"z" * 1_000_000)
    async with running(memory, log, max_line_bytes=1000) as site:
        await site.until_messages("z" * 1000)
        await site.until_quiet()
    add(log, b"z" * 1_000_000 + b"\nnext\n")
    async with running(memory, log, max_line_bytes=1000) as site:
        await site.until_messages("z" * 1000, "next")
    assert memory.events[0]["tags"] == ["_truncated"]
    assert memory.events[1]["log"]["offset"] == 2_000_001


async def test_empty_lines_are_no_events_and_do_not_hold_up_others(tmp_path, memory):
    """A hundred thousand of them, more than one batch of lines."""
    log = tmp_path / "app.log"
    add(log, b"one\n" + b"\n" * 100_000 + b"two\r\n\r\n")
    async with running(memory, log) as site:
        await site.until_messages("one", "two")


async def test_a_preallocated_file_is_read_as_it_fills(tmp_path, memory):
    """Its size does not change, and NUL bytes that nothing follows are not passed."""
    log = tmp_path / "app.log"
    log.write_bytes(b"one\n" + b"\0" * 4000)
    async with running(memory, log) as site:
        await site.until_messages("one")
        with log.open("r+b") as file:
            file.seek(4)
            file.write(b"two\n")
        await site.until_messages("one", "two")
