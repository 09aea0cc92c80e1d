"""The chaos driver: its plan, its account that must find what is wrong, and thirty seconds of the storm itself."""

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from chaos_account import SETTLE_SECONDS, Arrived, Claims, History, Id, Span, judge
from chaos_outlets import OUTLETS, drawn
from chaos_plan import COLLECTOR, LINK, QUIET_PART, SEAM, plan
from services import fetch
from services.need import need

DRIVER = Path(__file__).with_name("chaos.py")
TARGETS = {"link": LINK, "process": COLLECTOR, "disk": SEAM}
GOOD = {"appended": 3, "delivered": 3, "pending": 0, "filtered": 0, "dead_lettered": 0, "quarantined": 0, "evicted": 0}


def storm(*arguments: str, limit_seconds: float) -> None:
    """One call of the driver; what it says is shown when it fails."""
    need(fetch.MOSQUITTO)
    need(fetch.NFTABLES)
    command = [sys.executable, str(DRIVER), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=limit_seconds, check=False)
    print(done.stdout, done.stderr)
    assert done.returncode == 0, done.stdout[-8000:]


@pytest.mark.timeout(240)
def test_thirty_seconds_of_chaos_lose_nothing() -> None:
    """One seed, with the file output; other receivers join in `make chaos`."""
    storm("--seconds", "30", "--seed", "5", "--outlets", "file", limit_seconds=230)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_minutes_of_chaos_lose_nothing_at_any_receiver() -> None:
    """Seeds that nobody has seen before; a failure says how to have it again."""
    need(fetch.KAFKA)
    need(fetch.RSYSLOG_RELP)
    storm("--seconds", "60", "--seeds", str(len(OUTLETS) - 1), limit_seconds=1700)


def test_a_seed_gives_the_same_plan_and_another_seed_another() -> None:
    """A failed run can be had again."""
    one = plan(7, seconds=300, targets=TARGETS)
    assert one == plan(7, seconds=300, targets=dict(reversed(TARGETS.items())))
    assert one != plan(8, seconds=300, targets=TARGETS)
    assert {fault.kind for fault in one} == {kind.name for kinds in TARGETS.values() for kind in kinds}


def test_a_seed_has_few_receivers_and_seeds_in_a_row_have_all() -> None:
    """What all of them cost at once would drown the faults; a release must have met each."""
    runs = [drawn(seed) for seed in range(40, 40 + len(OUTLETS) - 1)]
    assert set().union(*runs) == OUTLETS.keys()
    assert all(run[0] == "file" and len(set(run)) == len(run) in (3, 4) for run in runs)
    assert drawn(41) == drawn(41)


def test_a_target_has_one_fault_at_a_time_and_all_end_in_time() -> None:
    """Or undoing one would undo the other, and the account would begin while faults go on."""
    faults = plan(7, seconds=300, targets=TARGETS)
    for target in TARGETS:
        mine = [fault for fault in faults if fault.target == target]
        assert all(one.at + one.lasts < two.at for one, two in pairwise(mine))
    assert max(fault.at + fault.lasts for fault in faults) <= 300 * (1 - QUIET_PART)


# ---- what is owed


def claims(tmp_path: Path, history: History, **entry: object) -> Claims:
    """Of one device with one connection."""
    journal = tmp_path / "s1.journal"
    whole = {"key": "s1.4", "count": 2, "opened": 100.0, "closed": 110.0, "how": "clean", **entry}
    journal.write_text(json.dumps(whole) + "\n")
    found = Claims()
    found.add_device("s1", journal, history)
    return found


SENT = {Id("s1", 4, 0), Id("s1", 4, 1)}


def test_a_connection_that_ended_in_good_order_is_owed(tmp_path: Path) -> None:
    """The collector read all of it, and lived on."""
    assert claims(tmp_path, History()).owed == SENT
    before, long_after = Span(80, 99), Span(110 + SETTLE_SECONDS + 1, 130)
    assert claims(tmp_path, History(downs=[before, long_after])).owed == SENT


@pytest.mark.parametrize("down", [Span(90, 101), Span(105, 106), Span(112, 113)])
def test_a_collector_that_was_killed_before_it_was_durable_owes_nothing(tmp_path: Path, down: Span) -> None:
    """Syslog has no acknowledgement: what was read and not synced dies with the process."""
    found = claims(tmp_path, History(downs=[down]))
    assert (found.owed, found.maybe) == (set(), SENT)


def test_a_bad_disk_puts_off_the_moment_from_which_it_is_owed(tmp_path: Path) -> None:
    """A kill 25 s after the end counts, if the disk was full until 10 s before it."""
    full, killed = Span(109, 125), Span(128, 129)
    assert claims(tmp_path, History(downs=[killed])).owed == SENT
    assert claims(tmp_path, History(downs=[killed], troubles=[full])).maybe == SENT


@pytest.mark.parametrize("how", ["rude", "broken"])
def test_a_connection_that_was_cut_owes_nothing(tmp_path: Path, how: str) -> None:
    """And its last message may have been cut, too."""
    found = claims(tmp_path, History(), how=how)
    assert (found.owed, found.maybe, found.breakable) == (set(), SENT, {("s1", 4)})


# ---- what is found


def event(number: int, *, position: int | None = None, message: str | None = None, **more: object) -> bytes:
    place = f"spool-{number if position is None else position}"
    whole = {"message": message or f"id s1.4.{number}; text", "event": {"id": place}, **more}
    return json.dumps(whole).encode()


def found_wrong(*lines: bytes, ledger: dict[str, int] | None = None) -> list[str]:
    """The judgement about an output that owes three messages."""
    owed = Claims(owed={Id("s1", 4, number) for number in range(3)})
    return judge("out", Arrived.read(lines), owed, {**GOOD, **(ledger or {})})


def test_all_there_once_or_twice_is_clean() -> None:
    """At least once: a duplicate is counted and no failure."""
    lines = [event(number) for number in (0, 1, 2, 1)]
    assert found_wrong(*lines) == []
    assert Arrived.read(lines).duplicates == 1


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([event(0), event(2, position=1)], "1 of 3 owed messages are missing: s1.4.1"),
        ([*map(event, range(3)), event(7, position=3)], "1 ids that nobody sent: s1.4.7"),
        ([*map(event, range(3)), event(0, message="hello")], "events without an id: hello"),
        ([*map(event, range(3)), event(0, message="id s1.4", tags=["_truncated"])], "more cut messages"),
        ([*map(event, range(3)), event(1, position=9)], "several event ids: s1.4.1"),
        ([event(0), event(1, position=2), event(2, position=4)], "gaps in the spool's sequence: 1"),
    ],
)
def test_the_account_finds(lines: list[bytes], said: str) -> None:
    """An account that finds nothing proves nothing."""
    assert any(said in one for one in found_wrong(*lines))


def test_a_store_that_can_tell_must_not_have_an_event_twice() -> None:
    """Elsewhere it would be allowed."""
    owed = Claims(owed={Id("s1", 4, number) for number in range(3)})
    twice = Arrived.read([event(number) for number in (0, 1, 2, 1)])
    [said] = judge("out", twice, owed, GOOD, once=True)
    assert "1 events came twice" in said


def test_what_came_into_the_spool_twice_is_one_document() -> None:
    """An agent's batch that was sent again has the ids that it had, and Elasticsearch one document for both."""
    places = [(0, 0), (1, 1), (2, 2), (1, 3)]
    lines = [
        event(number, event={"id": f"agent-{number}"}, ndcollector={"position": f"spool-{place}"})
        for number, place in places
    ]
    owed, ledger = Claims(owed={Id("s1", 4, number) for number in range(3)}), {**GOOD, "appended": 4, "delivered": 4}
    documents = Arrived.read(lines[:3])
    assert judge("out", documents, owed, ledger) == ["out: the ledger has 4 events, 3 are there"]
    documents.recognise(Arrived.read(lines))
    assert judge("out", documents, owed, ledger) == []
    documents = Arrived.read(lines[:2])
    documents.recognise(Arrived.read(lines))
    assert any("missing: s1.4.2" in said for said in judge("out", documents, owed, ledger))


@pytest.mark.parametrize("part", ["evicted", "quarantined", "dead_lettered", "filtered", "pending"])
def test_the_ledgers_own_losses_are_failures(part: str) -> None:
    """Nothing in a storm excuses them: the spool is large enough and every event can be read."""
    assert f"out: the ledger calls 1 events {part}" in found_wrong(*map(event, range(3)), ledger={part: 1})


def test_a_ledger_that_disagrees_with_what_is_there_is_a_failure() -> None:
    """Its law may hold and its number be wrong."""
    [said] = found_wrong(*map(event, range(3)), ledger={"appended": 4, "delivered": 4})
    assert "the ledger has 4 events, 3 are there" in said
