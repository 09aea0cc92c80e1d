"""A start that cannot be: one line that says why, exit status 1, nothing left behind. And a stop amid a start."""

import asyncio
import contextlib
import json
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from collector_site import Site

from ndagent.core.notify import Notifier
from ndagent.core.spool.segment import FORMAT_VERSION, SegmentHeader, pack_segment_header
from ndcollector.app import Collector
from ndcollector.config import load


def state_below_a_file(site: Site) -> None:
    """`state_dir` cannot be made."""
    (site.collector.directory / "state").write_text("in the way")


def spool_of_a_later_version(site: Site) -> None:
    """A segment whose header says so."""
    directory = site.collector.directory / "state" / "spool" / "security_events"
    directory.mkdir(parents=True)
    header = SegmentHeader(FORMAT_VERSION + 1, 0, b"0123456789", 0, 0)
    (directory / f"{0:020}-0000.seg").write_bytes(pack_segment_header(header) + b"what we do not know yet")


def no_key(site: Site) -> None:
    """The collector's key is not there."""
    (site.pki / "server.key").unlink()


def a_key_of_another(site: Site) -> None:
    """Certificate and key do not belong together."""
    (site.pki / "server.key").write_bytes((site.pki / "ca.key").read_bytes())


def an_address_that_is_not_ours(site: Site) -> None:
    """TEST-NET-1 is nobody's."""
    listen = ["192.0.2.1:6514"]
    site.change(lambda config: config["inputs"]["syslog_tls"].update(listen=listen))


def a_name_nobody_knows(site: Site) -> None:
    """For the admin listener."""
    site.change(lambda config: config["admin"].update(listen="no-such-host.invalid:9600"))


FAULTS: dict[str, tuple[Callable[[Site], object], list[str]]] = {
    "a state_dir that cannot be made": (state_below_a_file, ["spool", "File exists", "state_dir"]),
    "a spool of a later version": (spool_of_a_later_version, ["spool", "format"]),
    "no key": (no_key, ["server.key", "No such file"]),
    "another's key": (a_key_of_another, ["server.key", "must be the unencrypted key"]),
    "an address that is not ours": (an_address_that_is_not_ours, ["input syslog_tls", "192.0.2.1:6514", "ss -ltnp"]),
    "an unknown name to listen on": (a_name_nobody_knows, ["admin.listen", "no-such-host.invalid"]),
}


def errors_of(stderr: str) -> list[str]:
    """The messages of ERROR lines; every line must be JSON, as journald gets it."""
    lines = [json.loads(line) for line in stderr.splitlines()]
    return [line["message"] for line in lines if line["level"] == "ERROR"]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_start_that_cannot_be_says_why_in_one_line(tmp_path: Path, fault: str) -> None:
    """The thing, the place, the remedy; exit status 1; no traceback; no socket and no port left."""
    site = Site(tmp_path)
    spoil, words = FAULTS[fault]
    spoil(site)
    refused = site.command("run")
    assert refused.returncode == 1
    (message,) = errors_of(refused.stderr)
    assert message.startswith("cannot start: ")
    assert all(word in message for word in words), message
    assert not (tmp_path / "admin.sock").exists()


def test_every_mistake_in_the_configuration_is_a_line_of_its_own(tmp_path: Path) -> None:
    """As `check` says them; under systemd in JSON like everything else."""
    site = Site(tmp_path)
    site.change(lambda config: config["outputs"]["archive"].update(pth="typo", in_flight="many"))
    refused = site.command("run")
    assert refused.returncode == 1
    *mistakes, last = errors_of(refused.stderr)
    assert len(mistakes) == 2
    assert all(mistake.startswith(f"{site.collector.config}:") for mistake in mistakes)
    assert last.startswith("cannot start")


def test_a_second_daemon_on_the_same_state_is_refused_and_harms_nothing(site: Site, tmp_path: Path) -> None:
    """Two writers would destroy the spool; the second one names the first, and does not take its admin socket."""
    admin = {"socket": str(tmp_path / "admin.sock")}
    second = Site(tmp_path / "second", state_dir=str(tmp_path / "state"), admin=admin)
    refused = second.command("run")
    assert refused.returncode == 1
    (message,) = errors_of(refused.stderr)
    assert f"process {site.collector.pid} has this spool open" in message
    site.send(3)
    site.collector.wait_for_lines(3)
    replay = ("spool", "replay", "--output", "archive", "--from", "0", "--socket", str(tmp_path / "admin.sock"))
    assert site.command(*replay).returncode == 0


def test_a_second_daemon_leaves_the_admin_socket_to_the_first(site: Site, tmp_path: Path) -> None:
    """Its own state, the first one's socket: it runs without, and says so."""
    socket_path = tmp_path / "admin.sock"
    inode = socket_path.stat().st_ino
    second = Site(tmp_path / "second", admin={"socket": str(socket_path)})
    with second.collector:
        second.wait_for_log("another collector serves it")
    assert socket_path.stat().st_ino == inode


class TestStopInTheMiddleOfAStart:
    """SIGTERM may come at any moment; whatever is open then must be closed."""

    @pytest.mark.parametrize("turns", [0, 1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144])
    async def test_it_ends_and_leaves_nothing_behind(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, turns: int
    ) -> None:
        """Told after so many turns of the loop; a start in full follows, so every port and lock is free."""
        monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
        site = Site(tmp_path)
        config = load(site.collector.config)
        for wait in (lambda: turns_of_the_loop(turns), lambda: until_listening(site.collector.ports[0])):
            collector = Collector(config, path=site.collector.config, notifier=Notifier({}))
            running = asyncio.create_task(collector.run())
            await wait()
            collector.stop()
            async with asyncio.timeout(20):
                await running
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert not (tmp_path / "admin.sock").exists()


async def turns_of_the_loop(count: int) -> None:
    """Let everybody else run so often."""
    for _ in range(count):
        await asyncio.sleep(0)


async def until_listening(port: int) -> None:
    """Return once somebody takes connections there."""
    async with asyncio.timeout(20):
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                return
            await asyncio.sleep(0.01)
