"""`ndcollector dlq` as a person types it: beside a real collector, through kill -9, on a terminal, on a dead one."""

import random
import threading
from pathlib import Path

import orjson
import pytest
from collector_site import Site
from letter_site import letter, sequences, write_letters
from live import Terminal

from ndcollector.__main__ import main
from ndcollector.dead_letters.lock import locked

COUNT = 16_000


class Command:
    """`ndcollector dlq …` in this process: starting one costs more than all that it does."""

    def __init__(self, site: Site, capsys: pytest.CaptureFixture[str]) -> None:
        self._site = site
        self._capsys = capsys
        self.errors = ""

    def __call__(self, *words: str, status: int = 0) -> str:
        """What it prints; `errors` has the rest."""
        self._capsys.readouterr()
        found = main(["dlq", *words, "-c", str(self._site.collector.config)])
        captured = self._capsys.readouterr()
        self.errors = captured.err
        assert found == status, captured
        return captured.out


@pytest.fixture
def letters(tmp_path: Path) -> Path:
    """What an earlier life of the output `archive` left."""
    return write_letters(tmp_path / "state", b"".join(map(letter, range(COUNT))))


def replayed(site: Site) -> list[int]:
    return sequences(site.collector.output)


def line_count(site: Site) -> int:
    return site.collector.output.read_bytes().count(b"\n") if site.collector.output.exists() else 0


def test_a_replay_survives_kill_9(tmp_path: Path, letters: Path) -> None:
    """Killed again and again in the middle, it goes on by itself; each letter arrives, and then none is left."""
    site = Site(tmp_path, outputs={"archive": {"rate": {"events_per_second": 2000}}})
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    moments = random.Random(seed)
    with site.collector:
        answer = site.command("dlq", "replay", "archive", "--no-wait")
        assert answer.returncode == 0, answer.stderr
        for _ in range(3):
            goal = line_count(site) + moments.randrange(500, 2000)
            site.collector.process.wait_until(lambda: line_count(site) >= goal, f"{goal} events", 30)  # noqa: B023
            site.collector.kill()
            assert letters.exists()
            site.collector.start()
        site.collector.process.wait_until(lambda: not letters.exists(), "the end of the replay", 30)
        site.wait_for_log("done: ")
    found = replayed(site)
    assert set(found) == set(range(COUNT))
    assert len(found) <= COUNT + 3 * 6000, "a kill sends a chunk of a MiB again, no more"
    assert [one.name for one in letters.parent.iterdir()] == [".lock"]


def test_a_hundred_thousand_letters_are_replayed_in_bounded_memory(tmp_path: Path) -> None:
    """Thirty megabytes of letters, live events meanwhile, and the collector grows by a few chunks only."""
    path = write_letters(tmp_path / "state", b"".join(letter(n) for n in range(100_000)))
    site = Site(tmp_path)
    with site.collector:
        site.wait_for_metric('nd_dead_letters_events{output="archive"}', 100_000)
        before = _resident(site)
        live = threading.Thread(target=site.send, args=(5000,), kwargs={"first": 0})
        live.start()
        answer = site.command("dlq", "replay", "archive")
        live.join()
        assert (answer.returncode, answer.stdout.splitlines()[-1]) == (0, "done: 100000 events taken, 0 refused again")
        assert _resident(site) - before < 60 << 20
        site.collector.wait_for_lines(105_000)
        metrics = site.collector.metrics()
        assert metrics['nd_dead_letters_replayed_events_total{output="archive"}'] == 100_000
        assert metrics['nd_dead_letters_events{output="archive"}'] == 0
    assert not path.exists()


def _resident(site: Site) -> int:
    fields = Path(f"/proc/{site.collector.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in fields if line.startswith("VmHWM"))


def test_a_person_looks_mends_replays_and_purges(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The chapter's example: ls, show, replay, purge with a copy, and the state that top shows."""
    data = [letter(n, reason="mapper_parsing: [ip]" if n < 30 else "too large") for n in range(40)]
    path = write_letters(tmp_path / "state", b"".join(data))
    site = Site(tmp_path)
    dlq = Command(site, capsys)
    with site.collector:
        listed = dlq("ls")
        assert "archive  40 events in 40 letters" in listed
        assert "      30  mapper_parsing: [ip]" in listed
        assert "DEAD LETTERS" in site.command("top", "--once").stdout
        shown = dlq("show", "archive", "--reason", "too large", "--json")
        assert [orjson.loads(line)["sequence"] for line in shown.splitlines()] == list(range(30, 40))
        assert dlq("show", "archive", "--where", "host == fw-1", "--limit", "2").count("event:") == 2
        assert "--limit 0 shows all" in dlq.errors
        assert dlq("replay", "archive", "--reason", "MAPPER_parsing").endswith("30 events taken, 0 refused again\n")
        site.collector.wait_for_lines(30)
        dlq("purge", "archive", status=1)
        assert "say --yes" in dlq.errors
        copy = tmp_path / "copy.ndjson"
        assert dlq("purge", "archive", "--yes", "--archive", str(copy)) == "10 events purged\n"
        assert sequences(copy) == list(range(30, 40))
        assert not path.exists()
        metrics = site.collector.metrics()
        assert metrics['nd_dead_letters_purged_events_total{output="archive"}'] == 10
        assert metrics['nd_dead_letters_events{output="archive"}'] == 0
    audited = [orjson.loads(line) for line in (tmp_path / "state" / "audit.ndjson").read_bytes().splitlines()]
    assert [(one["kind"], one.get("events")) for one in audited] == [
        ("dead_letters_replay", None), ("dead_letters_purged", 10),
    ]  # fmt: skip


def test_a_dead_collectors_letters_can_be_seen_and_purged_but_not_sent(
    tmp_path: Path, letters: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Reading needs no daemon; sending does, and says so; a purge without one is audited as well."""
    dlq = Command(Site(tmp_path), capsys)
    assert f"archive  {COUNT} events" in dlq("ls")
    dlq("replay", "archive", status=1)
    assert "no collector answers" in dlq.errors
    dlq("show", "nobody", status=1)
    dlq("show", "archive", "--where", "severity <", status=1)
    assert "--where" in dlq.errors
    dlq("purge", "archive", "--where", "host in (fw-0, fw-1)", "--yes")
    assert sequences(letters) == [n for n in range(COUNT) if n % 3 == 2]
    assert "dead_letters_purged" in (tmp_path / "state" / "audit.ndjson").read_text()


def test_a_purge_asks_on_a_terminal(tmp_path: Path, letters: Path) -> None:
    """Evidence is not removed by a slip: anything but yes keeps it, and an archive is never written over."""
    site = Site(tmp_path)
    copy = tmp_path / "copy.ndjson"
    for answer, status in ((b"\n", 1), (b"n\n", 1), (b"y\n", 1), (b"y\n", 0)):
        if answer == b"y\n":
            copy.unlink() if status == 0 else copy.write_text("other evidence")
        with Terminal(site, "dlq", "purge", "archive", "--archive", str(copy)) as terminal:
            terminal.read_until(b"[y/N]")
            terminal.type(answer)
            assert terminal.process.wait(30) == status
            assert letters.exists() is (status == 1)
    assert sequences(copy) == list(range(COUNT))


def test_a_command_at_work_keeps_the_collector_from_starting(tmp_path: Path, letters: Path) -> None:
    """Two that write one file anew would lose letters; the start says whom to wait for."""
    site = Site(tmp_path)
    with locked(letters.parent), pytest.raises(AssertionError, match="ndcollector dlq command that is at work"):
        site.collector.start()


def test_a_letter_cannot_command_the_terminal(tmp_path: Path) -> None:
    """Reason, answer and event come from whoever sent them."""
    evil = "\x1b]0;owned\x07\x9b2J\u202e\r\nok"
    data = letter(1, reason=evil, response=evil, stream=evil) + letter(2).replace(b"number 2", b"\\u001b[2J\\u009b1m")
    write_letters(tmp_path / "state", data)
    site = Site(tmp_path)
    for words in (["ls"], ["show", "archive"], ["show", "archive", "--json"]):
        with Terminal(site, "dlq", *words) as terminal:
            assert terminal.process.wait(30) == 0
            text = terminal.read_until(b"owned").decode()
            assert not [one for one in text if ord(one) < 32 and one not in "\r\n"], text
            assert not [one for one in text if one in "\x7f\x9b\u202e"], text


def test_an_output_of_a_reload_goes_on_with_its_replay(tmp_path: Path, letters: Path) -> None:
    """A changed output is another object with the same letters."""
    site = Site(tmp_path, outputs={"archive": {"rate": {"events_per_second": 4000}}})
    with site.collector:
        assert site.command("dlq", "replay", "archive", "--no-wait").returncode == 0
        site.collector.process.wait_until(lambda: line_count(site) >= 4000, "4000 events", 30)
        site.change(lambda config: config["outputs"]["archive"].pop("rate"))
        site.wait_for_log("reloaded")
        site.collector.process.wait_until(lambda: not letters.exists(), "the end of the replay", 30)
    assert set(replayed(site)) == set(range(COUNT))
