"""The windows_event input with the real pywin32 on Windows' API, as wine runs it: the glue that no fake can show."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from packages.windows_records import Records, event_log
from packages.wine import Wine

pytestmark = pytest.mark.packages

HERE = Path(__file__).parent


class Machine:
    """The fake event log, and the program that reads it."""

    def __init__(self, wine: Wine, place: Path) -> None:
        self._wine = wine
        self.records = Records(place / "records")
        self._state = place / "positions"

    def write(self, value: str, *, provider: str = "Test-Provider") -> None:
        """One more record with this value."""
        self.records.write(value, provider=provider)

    def start(self, events: int, **settings: Any) -> "subprocess.Popen[str]":
        """The reader, until it has so many."""
        reader = HERE / "windows_event_reader.py"
        python = (self._wine.python_exe, "-B", reader, self._state, str(events), json.dumps(settings))
        return self._wine.start(*python, env=self.records.environment)

    def read(self, events: int, **settings: Any) -> list[dict[str, Any]]:
        """What the reader says to so many events."""
        return events_of(self.start(events, **settings))


def events_of(process: "subprocess.Popen[str]") -> list[dict[str, Any]]:
    """All that it says until it ends."""
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    return [json.loads(line) for line in output.splitlines() if line.startswith("{")]


def texts(events: list[dict[str, Any]]) -> list[str]:
    return [event["winlog"]["event_data"]["text"] for event in events]


@pytest.fixture(scope="module")
def log(wine: Wine) -> Iterator[Wine]:
    """The prefix, with our wevtapi.dll."""
    with event_log(wine):
        yield wine


@pytest.fixture
def machine(log: Wine, tmp_path: Path) -> Machine:
    return Machine(log, tmp_path)


def test_records_are_read_rendered_and_not_read_again(machine: Machine) -> None:
    for number in range(300):
        machine.write(f"e{number}")
    first = machine.read(300)
    assert texts(first) == [f"e{number}" for number in range(300)]
    assert {event["message"] for event in first} == {"Words of a provider."}
    assert first[0]["@timestamp"] == "2026-11-20T08:15:47.0000001Z"
    machine.write("after")
    assert texts(machine.read(1)) == ["after"]


def test_what_is_written_while_it_reads_is_read(machine: Machine) -> None:
    """The signal wakes it; nothing else would for five seconds. That there is nothing new is not called a failure."""
    machine.write("e1")
    with machine.start(3) as process:
        assert process.stdout is not None
        said: list[str] = []
        for value in ("e2", "e3", None):
            for line in iter(process.stdout.readline, ""):
                said.append(line)
                if line.startswith("{"):
                    break
            if value is not None:
                machine.write(value)
        said += process.stdout.readlines()
    assert texts([json.loads(line) for line in said if line.startswith("{")]) == ["e1", "e2", "e3"]
    assert not [line for line in said if "not being read" in line]
    assert process.returncode == 0


def test_a_provider_without_metadata_costs_its_words_only(machine: Machine) -> None:
    machine.write("kept", provider="Broken-Provider")
    (event,) = machine.read(1)
    assert event["tags"] == ["_unrendered"]
    assert "15002" in event["error"]["message"]
    assert event["winlog"]["event_data"] == {"text": "kept"}
    assert event["event"]["original"].startswith("<Event")


def test_nuls_lone_surrogates_and_length_survive_pywin32(machine: Machine) -> None:
    """pywin32 ends a text at its first NUL; rendered by wevtapi.dll itself, nothing behind it is lost."""
    machine.write("be\0fore")
    machine.write("x\ud800y")
    machine.write("z" * 100_000)
    nul, surrogate, long = machine.read(3, max_value_bytes=1 << 20)
    assert nul["winlog"]["event_data"]["text"] == "be\ufffdfore"
    assert "_repaired" in nul["tags"]
    assert "be\0fore" in nul["event"]["original"]
    assert surrogate["winlog"]["event_data"]["text"] == "x\ufffdy"
    assert "original_base64" in surrogate["event"]
    assert long["winlog"]["event_data"]["text"] == "z" * 100_000


def test_a_channel_that_is_not_there_is_said_and_holds_up_no_other(machine: Machine) -> None:
    machine.write("e1")
    process = machine.start(1, channels=["Nowhere", "Canned"])
    output, _ = process.communicate(timeout=120)
    assert '"text":"e1"' in output
    assert "Nowhere: not being read" in output
    assert "15007" in output
