"""`ndcollector tap` over a real collector: what is seen where, what is not, and that nobody has to wait for it."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import orjson
import pytest
from collector_process import ROOT
from collector_site import Site
from live import Tap, Terminal, socket_of, wait_for_taps

from ndagent.wire.codec import codec_name
from ndcollector.__main__ import main
from ndcollector.admin_client import AdminError

HOSTILE = "<34>1 2026-11-23T22:14:15.003Z h\x1b[2J app - - - \x1b]0;owned\x07\x9b31m\u202eevil\u2028\x7f\rgone"


def send(site: Site, *texts: str) -> None:
    """Messages on a connection of their own."""
    with site.connect() as connection:
        connection.sendall(b"".join(text.encode() + b"\n" for text in texts))
        connection.unwrap()


def test_an_input_shows_messages_as_they_came(site: Site) -> None:
    """Before any parsing: the text, who sent it and when."""
    with Tap(site, input="syslog_tls") as tap:
        send(site, "<34>1 - fw-1 app - - - hello", "no priority at all")
        first, second = tap.events(2)
    assert (first["raw"], second["raw"]) == ("<34>1 - fw-1 app - - - hello", "no priority at all")
    assert first["origin"] == "nd:device:fw-1"
    assert first["source"]["ip"] == "127.0.0.1"
    assert first["stream"] == "security_events"
    assert second["tags"] == ["_parse_failure"]
    assert first["received_at"].endswith("Z")


def test_bytes_that_are_no_text_are_shown_exactly_too(site: Site) -> None:
    """Evidence is not what a terminal makes of it."""
    with Tap(site, input="syslog_tls") as tap:
        with site.connect() as connection:
            connection.sendall(b"<34>1 - h a - - - caf\xe9\n")
            connection.unwrap()
        (event,) = tap.events(1)
    assert event["raw_base64"] == "PDM0PjEgLSBoIGEgLSAtIC0gY2Fm6Q=="


def test_streams_and_outputs_show_the_very_lines_that_are_delivered(site: Site) -> None:
    """Byte for byte, ids included."""
    with Tap(site) as every, Tap(site, stream="security_events") as stream, Tap(site, output="archive") as output:
        site.send(30)
        shown = [b"".join(tap.lines(30)) for tap in (every, stream, output)]
    site.collector.wait_for_lines(30)
    assert shown == [site.collector.output.read_bytes()] * 3


def test_an_output_that_takes_nothing_shows_nothing(tmp_path: Path) -> None:
    """What stands at an output is what the far side owns; a stream shows it before."""
    (tmp_path / "wall").write_text("")
    outputs = {"broken": {"type": "file", "path": str(tmp_path / "wall" / "x.ndjson")}}
    site = Site(tmp_path, outputs=outputs, shutdown_timeout="0s")
    with site.collector, Tap(site, output="broken") as silent, Tap(site, output="archive") as heard:
        site.send(5)
        assert len(heard.events(5)) == 5
        silent.client.sock.settimeout(0.1)
        with pytest.raises(TimeoutError):
            silent.lines(1)


def test_a_filter_is_the_same_at_every_point(site: Site) -> None:
    """At an input, too, it speaks of the decoded event."""
    where = "severity <= error and message regex '[13579]$'"
    points = [{"input": "syslog_tls"}, {"stream": "security_events"}, {"output": "archive"}]
    taps = [Tap(site, where=where, **point) for point in points]
    site.send(20)
    raw, *others = [tap.events(10) for tap in taps]
    for tap in taps:
        tap.close()
    odd = [f"number {number}" for number in range(1, 20, 2)]
    assert [event["raw"][-len(text):] for event, text in zip(raw, odd, strict=True)] == odd
    assert [[event["message"] for event in events] for events in others] == [odd, odd]


def test_a_sample_is_a_fair_share(site: Site) -> None:
    """One in ten of two thousand: near two hundred, and not every tenth."""
    with Tap(site, stream="security_events", share="0.1") as tap, Tap(site, stream="security_events") as whole:
        site.send(2000)
        whole.lines(2000)
        site.send(400, first=10_000)
        numbers: list[int] = []
        while not numbers or numbers[-1] < 10_000:
            numbers.append(int(tap.events(1)[0]["message"].removeprefix("number ")))
    sampled = numbers[:-1]
    assert 120 < len(sampled) < 290  # six standard deviations
    assert len({after - before for before, after in pairwise(sampled)}) > 3


def test_a_limit_ends_the_tap(site: Site) -> None:
    """And frees its place."""
    with Tap(site, limit="3") as tap:
        site.send(10)
        assert len(tap.events(3)) == 3
        with pytest.raises(AssertionError, match="ended after 0"):
            tap.lines(1)
    wait_for_taps(site, 0)


def test_a_wish_that_cannot_be_met_is_refused_in_words(site: Site) -> None:
    """The command prints them as they are; no place is taken."""
    refusals: list[tuple[dict[str, str], str]] = [
        ({"where": "severity < "}, "where: column 12: expected a value"),
        ({"output": "nobody"}, "no output 'nobody'; there are: archive"),
        ({"input": "x"}, "there are: syslog_tls"),
        ({"input": "syslog_tls", "output": "archive"}, "choose one of input, output"),
        ({"share": "2"}, "share must be"),
        ({"share": "nan"}, "share must be"),
        ({"limit": "0"}, "limit at least 1"),
        ({"speed": "9"}, "unknown: speed"),
    ]
    for query, words in refusals:
        with pytest.raises(AdminError, match=re.escape(words)):
            Tap(site, **query)
    wait_for_taps(site, 0)


def test_taps_are_bounded_and_one_that_goes_makes_room(tmp_path: Path) -> None:
    """A reader that was killed does not hold its place."""
    site = Site(tmp_path, admin={"max_taps": 3})
    with site.collector:
        taps = [Tap(site), Tap(site, input="syslog_tls"), Tap(site, output="archive")]
        with pytest.raises(AdminError, match="3 taps are open, and"):
            Tap(site)
        taps.pop().close()
        wait_for_taps(site, 2)
        with Tap(site, output="archive") as tap:
            site.send(1)
            assert len(tap.events(1)) == 1
        for one in taps:
            one.close()
        wait_for_taps(site, 0)


def test_a_reader_that_stands_still_holds_nothing_up(tmp_path: Path) -> None:
    """Its events pass unseen and are counted; the pipeline's arrive."""
    count = 150_000 if codec_name() == "compiled" else 15_000
    site = Site(tmp_path, admin={"tap_buffer_bytes": "64KiB"}, spool={"tip_bytes": "64KiB"})
    with site.collector:
        taps = [Tap(site, **point) for point in ({"output": "archive"}, {"stream": "security_events"})]
        site.send(count)
        site.collector.wait_for_lines(count, 60)
        for tap in taps:
            assert tap.until_unseen() > 0
            tap.close()
    assert site.numbers() == list(range(count))


def test_a_stop_does_not_wait_for_taps(site: Site) -> None:
    """They end; the command says why."""
    command = [sys.executable, "-m", "ndcollector", "tap", "-c", str(site.collector.config)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as tap:
        wait_for_taps(site, 1)
        began = time.monotonic()
        assert site.collector.stop() == 0
        assert time.monotonic() - began < 5
        _, said = tap.communicate(timeout=10)
        assert (tap.returncode, "the collector ended the tap" in said) == (1, True)


def test_a_tap_outlives_a_reload(site: Site) -> None:
    """An operator who watches a change take effect must not be thrown out by it."""
    with Tap(site, output="archive") as tap:
        path = str(site.collector.directory / "new.ndjson")
        site.change(lambda config: config["outputs"]["archive"].update(path=path))
        site.wait_for_log("reloaded")
        site.send(3)
        assert [event["message"] for event in tap.events(3)] == ["number 0", "number 1", "number 2"]


# ---- the command


def test_to_a_pipe_the_lines_are_exact(site: Site) -> None:
    """`| jq`, `> evidence.ndjson`: control characters and all."""
    command = [sys.executable, "-m", "ndcollector", "tap", "--limit", "2", "-c", str(site.collector.config)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as tap:
        wait_for_taps(site, 1)
        send(site, HOSTILE, "<34>1 - h a - - - plain")
        shown, said = tap.communicate(timeout=20)
    assert (tap.returncode, said) == (0, b"")
    site.collector.wait_for_lines(2)
    assert shown == site.collector.output.read_bytes()


def test_a_terminal_is_never_commanded(site: Site) -> None:
    """Escape sequences, C1 controls, line separators and reordering all come out as text; JSON keeps its value."""
    plain = {"NO_COLOR": "1"}
    with (
        Terminal(site, "tap", "--limit", "1", environment=plain) as decoded,
        Terminal(site, "tap", "--input", "syslog_tls", "--limit", "1", environment=plain) as raw,
        Terminal(site, "tap", "--format", "ndjson", "--limit", "1") as as_json,
    ):
        wait_for_taps(site, 3)
        send(site, HOSTILE)
        shown = [terminal.read_until(b"\r\n").decode() for terminal in (decoded, raw, as_json)]
        assert [terminal.process.wait(10) for terminal in (decoded, raw, as_json)] == [0, 0, 0]
    for text in shown:
        assert set("\x1b\x07\x9b\x7f\u202e\u2028") & set(text) == set()
        assert text.count("\r") == text.count("\r\n")
    for text in shown[:2]:
        assert r"\x1b]0;owned\x07\x9b31m\u202eevil\u2028\x7f" in text
    site.collector.wait_for_lines(1)
    assert json.loads(shown[2]) == orjson.loads(site.collector.output.read_bytes())


def test_ctrl_c_is_an_ordinary_end(site: Site) -> None:
    """Exit status 0, no traceback."""
    command = [sys.executable, "-m", "ndcollector", "tap", "-c", str(site.collector.config)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as tap:
        wait_for_taps(site, 1)
        tap.send_signal(signal.SIGINT)
        _, said = tap.communicate(timeout=20)
    assert (tap.returncode, said) == (0, b"")


def test_the_command_says_what_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    """Before it asks the collector, where it can tell by itself."""
    for words, reason in [
        (["--sample", "0"], "one event of N"),
        (["--sample", "150%"], "one event of N"),
        (["--limit", "-1"], "whole number"),
        (["--input", "a", "--output", "b"], "not allowed with"),
    ]:
        with pytest.raises(SystemExit, match="2"):
            main(["tap", *words])
        assert reason in capsys.readouterr().err


def test_the_collector_says_what_is_wrong_with_an_expression(site: Site) -> None:
    """In its words, with the column, exit status 1."""
    done = site.command("tap", "--where", "severity < ")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("ndcollector tap: where: column 12: ")


def test_without_a_collector_the_command_says_where_it_looked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The configured socket, or the one given."""
    site = Site(tmp_path)
    for command in ("tap", "top"):
        assert main([command, "-c", str(site.collector.config)]) == 1
        assert f"{socket_of(site)}: no collector answers" in capsys.readouterr().err
    assert main(["top", "--socket", "/nowhere.sock"]) == 1
    assert "/nowhere.sock: no collector answers" in capsys.readouterr().err


# ---- who may look


def test_the_plain_metrics_port_shows_no_evidence(site: Site) -> None:
    """Any local user can reach it."""
    for route in ("/v1/tap", "/v1/status"):
        with socket.create_connection(("127.0.0.1", site.collector.admin_port), timeout=10) as plain:
            plain.sendall(f"GET {route} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
            assert plain.recv(4096).startswith(b"HTTP/1.0 404")


def test_who_looked_is_in_the_log(site: Site) -> None:
    """Evidence is looked at: an auditor asks by whom."""
    with Tap(site, output="archive", where="severity <= 4"):
        site.wait_for_log("tap opened")
    (opened,) = [line for line in site.log() if line["message"] == "tap opened"]
    assert (opened["at"], opened["where"], opened["uid"]) == ("output archive", "severity <= 4", os.getuid())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_another_user_is_refused_by_mode_and_by_credentials(site: Site) -> None:
    """0660 keeps others out; should somebody open the mode, the kernel still says who calls."""
    path = socket_of(site)
    path.parent.chmod(0o711)
    assert as_nobody(path, connect_and_ask) == "PermissionError"
    path.chmod(0o666)
    assert as_nobody(path, connect_and_ask) == "403"


def connect_and_ask() -> str:
    """The status of a tap, from inside the socket's directory."""
    with socket.socket(socket.AF_UNIX) as admin:
        try:
            admin.connect("admin.sock")
        except PermissionError as error:
            return type(error).__name__
        admin.sendall(b"GET /v1/tap HTTP/1.0\r\nHost: x\r\n\r\n")
        return admin.recv(4096).split()[1].decode()


def as_nobody(path: Path, ask: Callable[[], str]) -> str:
    """What a process of another user is told; it starts inside the directory, whose parents it may not pass."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.chdir(path.parent)
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            os.write(writing, ask().encode())
        finally:
            os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    told = os.read(reading, 4096).decode()
    os.close(reading)
    return told
