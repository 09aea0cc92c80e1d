"""What each release left on a machine is read by this one; what a later one left is refused, and not touched."""

import json
import sqlite3
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from agent_process import AgentProcess, run
from make_fixtures import FIXTURES, Fixture

from ndagent.core.spool.position import SLOT_BYTES
from ndagent.core.spool.segment import SEGMENT_HEADER_BYTES, crc32

VERSIONS = sorted(path.name for path in FIXTURES.iterdir())
LATER = 99
released = pytest.mark.parametrize("version", VERSIONS)


def unpack(version: str, name: str, directory: Path) -> dict[str, Any]:
    """A release's data; what must be found in it."""
    with tarfile.open(FIXTURES / version / f"{name}.tar.gz") as archive:
        archive.extractall(directory)  # our own; Debian 12's tarfile knows no filter yet
    expected: dict[str, Any] = json.loads((FIXTURES / version / "expected.json").read_text())[name]
    return expected


def old_collector(version: str, directory: Path) -> tuple[Fixture, dict[str, Any]]:
    """One that has this release's data and configuration; nothing is in the way of the output `behind` any more."""
    site = Fixture(directory)
    expected = unpack(version, "collector", directory)
    return site, expected


def command(site: Fixture, *words: str) -> Any:
    """`ndcollector …` on its configuration."""
    return run("ndcollector", *words, "-c", str(site.collector.config), environment=site.collector.environment)


def test_this_release_has_its_fixtures() -> None:
    """Made when its version is given; a later release could not make them."""
    from ndcollector import __version__

    assert __version__ in VERSIONS, "run tests/upgrade/make_fixtures.py and commit what it makes"


@released
def test_a_collector_goes_on_where_an_older_release_stopped(tmp_path: Path, version: str) -> None:
    """Cursors, ids, ledger, dead letters, inventory: nothing is sent twice, missing, or forgotten."""
    site, expected = old_collector(version, tmp_path)
    with site.collector:
        behind = tmp_path / "behind" / "security_events.ndjson"
        site.collector.process.wait_until(lambda: behind.exists() and behind.read_bytes().count(b"\n") == 5, "5 lines")
        site.send(1, first=5)
        site.collector.wait_for_lines(6)
        site.collector.process.wait_until(lambda: behind.read_bytes().count(b"\n") == 6, "6 lines")
        ledger = command(site, "ledger", "--json")
        letters = command(site, "dlq", "show", "archive", "--json")
        agents = command(site, "agents", "ls")
    ids = [json.loads(line)["event"]["id"] for line in behind.read_text().splitlines()]
    archived = [event["event"]["id"] for event in site.collector.events()]
    assert ids[:5] == expected["ids"]
    assert archived == ids
    assert len(set(ids)) == 6
    assert ledger.returncode == 0, ledger.stderr
    assert json.loads(ledger.stdout)["adds_up"]
    assert expected["origin"] in ledger.stdout
    assert [json.loads(line)["sequence"] for line in letters.stdout.splitlines()] == expected["letters"], letters.stderr
    assert expected["agent"] in agents.stdout


@released
def test_an_agent_goes_on_where_an_older_release_stopped(tmp_path: Path, version: str) -> None:
    """What waited in its spool still waits, and no line is read a second time."""
    agent = AgentProcess(tmp_path, settings={})
    expected = unpack(version, "agent", tmp_path)
    agent.config = tmp_path / "ndagent.yaml"
    (tmp_path / "state" / "status.json").unlink()
    agent.start()
    try:
        agent.process.wait_until(lambda: bool(agent.status()), "a report", 30)
        assert agent.pending() == len(expected["messages"])
    finally:
        assert agent.stop() == 0
    (segment,) = (tmp_path / "state/spool/security_events").glob("*.seg")
    assert all(message.encode() in segment.read_bytes() for message in expected["messages"])


# ---- what a later version may have written


def later_segment(state: Path) -> Path:
    """Its header keeps its place in every format."""
    path = next((state / "spool/security_events").glob("*.seg"))
    data = bytearray(path.read_bytes())
    struct.pack_into("<H", data, 8, LATER)
    struct.pack_into("<I", data, SEGMENT_HEADER_BYTES - 4, crc32(bytes(data[: SEGMENT_HEADER_BYTES - 4])))
    path.write_bytes(data)
    return path


def later_cursor(state: Path) -> Path:
    """One slot is ours still, as after an update that was taken back: the other is newer."""
    path = next((state / "spool/security_events/cursors").glob("*.cursor"))
    data = bytearray(path.read_bytes())
    slot = b"NDcursor" + struct.pack("<H", LATER) + b"what we do not know".ljust(200)
    data[SLOT_BYTES : SLOT_BYTES + len(slot)] = slot
    path.write_bytes(data)
    return path


def later_database(name: str) -> Callable[[Path], Path]:
    """SQLite has a number for it."""

    def change(state: Path) -> Path:
        database = sqlite3.connect(state / name)
        database.execute(f"PRAGMA user_version = {LATER}")
        database.commit()
        database.close()
        return state / name

    return change


def later_letters(state: Path) -> Path:
    """Ours, and one by a later program behind them."""
    path = state / "dead_letters/archive.ndjson"
    with path.open("ab") as file:
        file.write(b'{"format":%d,"what":"we do not know"}\n' % LATER)
    return path


def later_config(state: Path) -> Path:
    """A key that says so, and one that nobody knows yet."""
    path = state.parent / "ndcollector.yaml"
    path.write_text(path.read_text().replace("config_version: 1", f"config_version: {LATER}\nnew_section: {{}}"))
    return path


LATER_FILES: dict[str, Callable[[Path], Path]] = {
    "spool": later_segment,
    "cursor": later_cursor,
    "inventory": later_database("inventory.sqlite"),
    "dead letters": later_letters,
    "configuration": later_config,
}


@pytest.mark.parametrize("kind", LATER_FILES)
def test_a_later_file_is_refused_by_name_and_nothing_is_written(tmp_path: Path, kind: str) -> None:
    """A downgrade that would begin anew, over what is there, is worse than one that does not start."""
    site, _ = old_collector(VERSIONS[-1], tmp_path)
    path = LATER_FILES[kind](tmp_path / "state")
    before = path.read_bytes()
    refused = command(site, "run")
    assert refused.returncode == 1
    messages = [line["message"] for line in map(json.loads, refused.stderr.splitlines()) if line["level"] == "ERROR"]
    message = next(message for message in messages if str(LATER) in message)
    assert str(path) in message
    assert " 1" in message, "the version that this program reads"
    assert "newer" in message
    assert path.read_bytes() == before


def test_a_later_ledger_is_left_alone_while_events_flow(tmp_path: Path) -> None:
    """Books are no reason not to take evidence; this run is not in them, which is said."""
    site, _ = old_collector(VERSIONS[-1], tmp_path)
    path = later_database("ledger.db")(tmp_path / "state")
    before = path.read_bytes()
    with site.collector:
        site.wait_for_log(f"ledger.db: has version {LATER}, this program knows 1")
        site.send(1, first=5)
        site.collector.wait_for_lines(6)
    assert path.read_bytes() == before


@pytest.mark.parametrize("kind", ["checkpoint", "cursor"])
def test_an_agent_refuses_what_a_later_one_wrote(tmp_path: Path, kind: str) -> None:
    """Positions that it does not understand would have it read every line again."""
    agent = AgentProcess(tmp_path, settings={})
    unpack(VERSIONS[-1], "agent", tmp_path)
    agent.config = tmp_path / "ndagent.yaml"
    path = tmp_path / "state/checkpoints/security_events.checkpoint"
    if kind == "checkpoint":
        path.write_bytes(b"NDckpt9\n" + path.read_bytes()[8:])
    else:
        path = later_cursor(tmp_path / "state")
    before = path.read_bytes()
    refused = agent.command("run")
    assert refused.returncode == 1
    assert str(path) in refused.stderr
    assert "this program reads up to 1; start the newer version" in refused.stderr
    assert path.read_bytes() == before


def test_a_flipped_bit_in_a_cursors_version_is_no_later_version(tmp_path: Path) -> None:
    """Disks do that; such a slot is damaged, the other one counts, and nobody has to act."""
    site, expected = old_collector(VERSIONS[-1], tmp_path)
    path = tmp_path / "state/spool/security_events/cursors/archive.cursor"
    data = bytearray(path.read_bytes())
    for slot in (0, SLOT_BYTES):
        data[slot + 9] ^= 0x10
    path.write_bytes(data)
    with site.collector:
        site.send(1, first=5)
        site.wait_for_metric('nd_output_pending_events{output="archive",stream="security_events"}', 0)
        site.collector.process.wait_until(lambda: len(set(ids(site))) == 6, "the new event")
    assert set(expected["ids"]) < set(ids(site))


def ids(site: Fixture) -> list[str]:
    """Of the archived events."""
    return [event["event"]["id"] for event in site.collector.events()]
