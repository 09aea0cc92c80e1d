"""Log lines are one line each, whatever a peer put into them, in the form that their reader needs; and not too many."""

import json
import logging
import os
import sys
from pathlib import Path

import orjson
import pytest

from ndagent.core import log as logs
from ndagent.core.log import JournalFormatter, JsonFormatter, ReadableFormatter, Throttle


def record(message: str, level: int = logging.WARNING, **fields: object) -> logging.LogRecord:
    """As a logger makes it."""
    made = logging.LogRecord("syslog_tls", level, __file__, 1, message, (), None)
    vars(made).update(fields)
    return made


def test_json_has_time_level_logger_message_and_the_fields() -> None:
    """What a log collector reads from journald."""
    line = json.loads(JsonFormatter().format(record("refused", peer="192.0.2.7")))
    assert line.pop("time").endswith("+00:00")
    assert line == {"level": "WARNING", "logger": "syslog_tls", "message": "refused", "peer": "192.0.2.7"}


def test_a_traceback_stays_on_its_line_in_json() -> None:
    """One event of the journal, not fifty."""
    made = record("failed", exc_info=(ValueError, ValueError("bug"), None))
    text = JsonFormatter().format(made)
    assert "\n" not in text
    assert "ValueError: bug" in json.loads(text)["exception"]


@pytest.mark.parametrize(
    ("given", "shown"),
    [(os.fsdecode(b"caf\xe9"), "caf\\udce9"), ([os.fsdecode(b"\xe9")], ["\\udce9"]), ({1: "x"}, {"1": "x"})],
)
def test_what_json_cannot_say_loses_no_line(given: object, shown: object) -> None:
    """File names are bytes, and need not be UTF-8; a strict reader takes the line all the same."""
    line = orjson.loads(JsonFormatter().format(record("cannot read", about=given)))
    assert (line["message"], line["about"]) == ("cannot read", shown)


@pytest.mark.parametrize(
    ("level", "priority"), [(logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6), (logging.DEBUG, 7)]
)
def test_journald_is_told_the_priority(level: int, priority: int) -> None:
    """`journalctl -p warning` is how people look for trouble."""
    assert JournalFormatter().format(record("x", level)).startswith(f"<{priority}>{{")


def test_a_terminal_gets_no_control_characters() -> None:
    """A peer's name must not move the cursor or forge a line."""
    text = ReadableFormatter().format(record("refused \x1b[2J", peer="a\nb"))
    assert text.endswith("WARNING syslog_tls: refused \\x1b[2J  peer=a\\x0ab")


def test_the_form_follows_who_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file gets JSON; the stream that systemd connected to journald gets JSON with its priority."""
    with (tmp_path / "log").open("w") as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)
        status = (tmp_path / "log").stat()
        journal = {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}
        assert type(logs.formatter_for({})) is JsonFormatter
        assert type(logs.formatter_for({"JOURNAL_STREAM": "1:2"})) is JsonFormatter  # inherited, stderr redirected
        assert type(logs.formatter_for(journal)) is JournalFormatter


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_key_speaks_once_in_its_time_and_then_says_what_was_left_unsaid() -> None:
    """Two peers do not silence each other."""
    clock = Clock()
    throttle = Throttle(60, clock=clock)
    assert [throttle.allow("a"), throttle.allow("b"), throttle.allow("a"), throttle.allow("a")] == [0, 0, None, None]
    clock.now = 59.9
    assert throttle.allow("a") is None
    clock.now = 60
    assert [throttle.allow("a"), throttle.allow("b")] == [3, 0]


def test_ten_thousand_keys_share_what_one_peer_may_not_have() -> None:
    """A peer with a /64 of addresses has a new one for each refusal; a table that forgets would let each speak."""
    clock = Clock()
    throttle = Throttle(60, max_keys=100, clock=clock)

    def lines() -> list[int]:
        found = [throttle.allow(number % 10_000) for number in range(20_000)]
        return [silenced for silenced in found if silenced is not None]

    assert lines() == [0] * 101
    clock.now = 60
    told = lines()
    assert len(told) == 101
    assert max(told) == 20_000 - 2 * 100 - 1  # the shared turn tells of all but the keys that had their own
    assert len(throttle._seen) == 100


def test_a_key_whose_time_is_over_makes_room() -> None:
    """Limit: max_keys; an attack that is over does not silence the next peer."""
    clock = Clock()
    throttle = Throttle(60, max_keys=1, clock=clock)
    assert [throttle.allow("a"), throttle.allow("b"), throttle.allow("c")] == [0, 0, None]
    clock.now = 60
    assert throttle.allow("d") == 0
    assert list(throttle._seen) == ["d"]
