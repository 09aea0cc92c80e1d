"""Dead-letter files read, filtered and written anew: bounded, whole after any accident, nothing lost to a purge."""

import threading
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from letter_site import SPOOL_ID, body_letter, letter, purged, sequences, write_letters

from ndagent.core.dead_letters import DeadLetters
from ndagent.wire.codec import make_decoder
from ndagent.wire.ecs import DecodeSettings
from ndagent.wire.record import EventBatch
from ndagent.wire.where import WhereError
from ndcollector.dead_letters import rewrite as rewriting
from ndcollector.dead_letters.desk import close_replay
from ndcollector.dead_letters.letters import Summary, Wanted, letters, parse
from ndcollector.dead_letters.progress import Progress, load, progress_path
from ndcollector.dead_letters.rebuild import rebuild
from tests.events import event_batch


def store_of(tmp_path: Path) -> DeadLetters:
    return DeadLetters(tmp_path / "dead_letters", output="archive", max_bytes=2**20, clock=lambda: 1_800_000_000.0)


def wanted_in(path: Path, wanted: Wanted) -> list[int]:
    return [one.head["sequence"] for _, one in letters(path) if one is not None and wanted(one)]


def test_letters_are_wanted_by_reason_expression_and_time(tmp_path: Path) -> None:
    """The ways in which a person tells the mended from the hopeless."""
    data = [letter(0), letter(1, reason="Field [ip] Failed"), letter(2, time="2026-11-25T03:00:00.000+00:00")]
    path = write_letters(tmp_path, b"".join([*data, body_letter(3, [b"<13>x"])]))
    assert wanted_in(path, Wanted()) == [0, 1, 2, 3]
    assert wanted_in(path, Wanted.read({"reason": "[ip] failed"})) == [1]
    assert wanted_in(path, Wanted.read({"where": "host == fw-2 or message == 'number 0'"})) == [0, 2]
    assert wanted_in(path, Wanted.read({"where": "origin == 'nd:device:fw-1'"})) == [0, 1, 2]
    assert wanted_in(path, Wanted.read({"since": "2026-11-25T04:00:00+02:00"})) == [2]
    assert wanted_in(path, Wanted.read({"before": "2026-11-25T02:00:00Z"})) == [0, 1, 3]


@pytest.mark.parametrize("plain", [{"where": "severity <"}, {"until": "x"}, {"since": "yesterday"}, {"reason": 5}])
def test_a_wish_that_cannot_be_understood_is_refused(plain: dict[str, str]) -> None:
    """A filter that silently means "everything" would purge everything."""
    with pytest.raises((WhereError, ValueError)):
        Wanted.read(plain)


@pytest.mark.parametrize(
    "line",
    [
        b"\n", b"{}\n", b"[1]\n", b'{"time": 1}\n', b"\xff\n", b"{" * 5000 + b"\n",
        letter(1).replace(b'"event":', b'"e":'),
    ],
)
def test_what_is_no_letter_is_damage_and_stays(tmp_path: Path, line: bytes) -> None:
    """Whatever a disk or a person did to the file, the rest can be read, and a purge leaves what it cannot judge."""
    path = write_letters(tmp_path, letter(0) + line + letter(2) + b'{"half')
    summary = Summary()
    for _, one in letters(path):
        summary.add(one)
    assert (summary.letters, summary.damaged) == (2, 1)
    assert purged(store_of(tmp_path), Wanted(), end=path.stat().st_size) == 2
    assert path.read_bytes() == line + b'{"half'


def test_an_event_is_sent_again_byte_for_byte() -> None:
    """Also one whose reason or answer pretends to be the event."""
    odd = {"response": ',"event":{"forged":true}}', "reason": '"event":{}'}
    one = parse(0, letter(7, **odd))
    assert one is not None
    (rebuilt,) = rebuild([one], make_decoder(DecodeSettings(observer_name="c")))
    events = rebuilt.decoded
    assert isinstance(events, EventBatch)
    assert events.ndjson == letter(7).partition(b',"event":')[2][:-2] + b"\n"
    assert (events.replay, events.spool_id, list(events.sequences)) == (True, SPOOL_ID, [7])
    offset, length = events.host_offsets[0], events.host_lengths[0]
    assert events.ndjson[offset : offset + length] == b"fw-1"


def test_batches_hold_one_spool_in_ascending_order_and_records_are_decoded_anew() -> None:
    """What outputs are promised of a batch."""
    data = [letter(5), letter(6), letter(6), letter(7, spool_id="other"), body_letter(10, [b"<13>a", b"<13>b"]),
            body_letter(12, [b"x"], is_damaged=True), letter(3)]  # fmt: skip
    found = rebuild([one for one in map(parse, range(9), data) if one], make_decoder(DecodeSettings(observer_name="c")))
    batches = [part.decoded for part in found]
    shapes = [list(one.sequences) if isinstance(one, EventBatch) else one.record.sequence for one in batches]
    assert shapes == [[5, 6], [6], [7], [10, 11], 12, [3]]
    for one in batches:
        if isinstance(one, EventBatch):
            assert all(before < after for before, after in pairwise(one.sequences))


def test_a_purge_during_appends_loses_none(tmp_path: Path) -> None:
    """A hundred purges while another thread adds letters: each letter was either purged as seen, or is there."""
    store = store_of(tmp_path)
    store.max_bytes = 1 << 30
    stop, written = threading.Event(), []

    def add() -> None:
        number = 0
        while not stop.is_set():
            store._write([{"time": "t", "sequence": number, "reason": "new", "stream": "s", "spool_id": "i",
                           "event": {"n": number}}], 1, False)  # fmt: skip
            written.append(number)
            number += 1

    adding = threading.Thread(target=add)
    adding.start()
    gone = 0
    while gone < 400 and adding.is_alive():
        with store.still() as path:
            end = path.stat().st_size if path.exists() else 0
        if end:
            gone += purged(store, Wanted(), end=end)
    stop.set()
    adding.join()
    left = sequences(store.path)
    assert gone + len(left) == len(written)
    assert left == written[len(written) - len(left) :]


def test_a_purge_that_finds_no_room_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ENOSPC while the new file is written: the old one stays, and nothing lies about."""
    path = write_letters(tmp_path, b"".join(map(letter, range(100))))
    before = path.read_bytes()

    def full(_file: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(rewriting, "_settle", full)
    with pytest.raises(OSError, match="No space"):
        purged(store_of(tmp_path), Wanted.read({"where": "host == fw-1"}), end=len(before))
    assert path.read_bytes() == before
    assert [one.name for one in path.parent.iterdir()] == [path.name]


def progress_at(path: Path, count: int) -> Progress:
    """A replay that has sent the first so many letters."""
    with path.open("rb") as file:
        progress = Progress.begun(file, to="archive", wanted={})
    for _, one in list(letters(path))[:count]:
        assert one is not None
        progress.at = one.offset + len(one.line)
        progress.gone_bytes = progress.at
    progress.save(path)
    return progress


def test_what_a_replay_sent_leaves_and_the_rest_stays(tmp_path: Path) -> None:
    """Stopped in the middle, by a person or a crash."""
    path = write_letters(tmp_path, b"".join(map(letter, range(10))))
    progress_at(path, 4)
    progress = load(path)
    assert progress is not None
    close_replay(store_of(tmp_path), progress)
    assert sequences(path) == [4, 5, 6, 7, 8, 9]
    assert not progress_path(path).exists()


@pytest.mark.parametrize("what", ["written anew", "shorter", "another file", "nonsense"])
def test_a_progress_that_does_not_fit_its_file_is_none(tmp_path: Path, what: str) -> None:
    """A crash between the new file and the end of its progress, or a person with an editor: no letter may vanish."""
    path = write_letters(tmp_path, b"".join(map(letter, range(10))))
    progress = progress_at(path, 4)
    if what == "written anew":
        purged(store_of(tmp_path), Wanted.read({"where": "message == 'number 1'"}), end=progress.end)
        path.write_bytes(path.read_bytes() + b"".join(map(letter, range(10, 20))))
    elif what == "shorter":
        path.write_bytes(b"".join(map(letter, range(4))))
    elif what == "another file":
        path.write_bytes(b"".join(map(letter, range(100, 120))))
    else:
        progress_path(path).write_bytes(b'{"to": 1}')
    assert load(path) is None


def test_another_version_does_not_trust_what_an_expression_chose(tmp_path: Path) -> None:
    """It might choose otherwise, and remove what was never sent; what was sent is sent again at worst."""
    path = write_letters(tmp_path, b"".join(map(letter, range(10))))
    for wanted, is_known in (({"reason": "mapper"}, True), ({"where": "host exists"}, False)):
        with path.open("rb") as file:
            replace(Progress.begun(file, to="archive", wanted=wanted), version="0.0.9").save(path)
        assert (load(path) is not None) is is_known


async def test_what_is_gone_does_not_count_against_the_limit(tmp_path: Path) -> None:
    """A full file must take what a replay is refused again, and new letters as soon as others left."""
    store = store_of(tmp_path)
    store.max_bytes = 1024
    await store.append(event_batch(range(20)), reason="r")
    size = store.size_bytes
    assert size > 1024
    store.gone_bytes = size - 500
    assert store.size_bytes == 500
    await store.append(event_batch(range(20, 22)), reason="r")
    assert len(sequences(store.path)) == 22
