"""`ndcollector sources` on a real collector, with Debian's senders and a kill -9."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from collector_site import Site
from jsonschema import Draft202012Validator
from live import socket_of
from services import fetch, syslog_ng
from services.need import need, need_program
from services.process import free_port

from ndcollector.__main__ import main
from ndcollector.admin_client import AdminClient
from ndcollector.schema import schema

HERE = "127.0.0.1"


class Place:
    """A collector that listens to UDP, too, and judges silence by seconds."""

    def __init__(self, directory: Path) -> None:
        self.port = free_port()
        self.site = Site(
            directory,
            inputs={"syslog_udp": {"listen": [f"{HERE}:{self.port}"]}},
            sources={"learn": "0s", "shortest_quiet": "1s"},
        )

    def logger(self) -> None:
        """One message of util-linux's."""
        command = ["logger", "--udp", "--server", HERE, "--port", str(self.port), "--rfc3164", "-t", "sshd", "hello"]
        subprocess.run(command, check=True, timeout=10)

    def alerts(self) -> list[dict[str, Any]]:
        """What arrived at the file output."""
        path = self.site.collector.output.with_name("alerts.ndjson")
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith(b"\n")]

    def wait_for_alerts(self, count: int) -> None:
        self.site.collector.process.wait_until(lambda: len(self.alerts()) >= count, f"{count} alerts", 90)

    def wait_for(self, name: str, **figures: object) -> None:
        """Until the source is listed with these figures."""
        self.site.collector.process.wait_until(
            lambda: figures.items() <= self.rows().get((name, ""), {}).items(), f"{name}: {figures}", 30
        )

    def rows(self) -> dict[tuple[str, str], dict[str, Any]]:
        """What `ls --json` prints, without a process for each look."""
        with closing(AdminClient(socket_of(self.site))) as client:
            rows = json.loads(client.get("/v1/sources").read())
        return {(row["name"], row["channel"]): row for row in rows}

    def sources(self, *words: str) -> int:
        """The command, in this process."""
        return main(["sources", *words, "-c", str(self.site.collector.config)])


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    found = Place(tmp_path)
    with found.site.collector:
        yield found


@pytest.mark.service
@pytest.mark.timeout(240)
def test_a_device_that_falls_silent_is_told_of_once_and_once_when_it_is_back(place: Place, tmp_path: Path) -> None:
    """loggen sends and ends; ten usual pauses later comes one alert, which no kill repeats; logger: it is back."""
    need(fetch.SYSLOG_NG)
    need_program("logger")
    words = ["--inet", "--dgram", "--rate", "1", "--interval", "20", "--size", "200", HERE, str(place.port)]
    with syslog_ng.loggen(words, tmp_path) as sender:
        sender.wait_until(lambda: sender.returncode is not None, "its end", 60)
    place.wait_for_alerts(1)
    place.site.collector.kill()
    place.site.collector.start()
    place.wait_for(HERE, state="quiet", input="syslog_udp")
    assert place.sources("ls", "--quiet") == 1
    place.logger()
    place.wait_for_alerts(2)
    place.wait_for(HERE, state="heard")
    assert place.sources("ls", "--quiet") == 0
    quiet, back = place.alerts()
    assert [one["event"]["action"] for one in (quiet, back)] == ["source-quiet", "source-back"]
    about = quiet["ndcollector"]["source"]
    assert about["name"] == HERE
    assert quiet["event"]["duration"] / 1e9 == pytest.approx(10 * about["usual_pause_seconds"], rel=0.3)
    validator = Draft202012Validator(schema("alerts"), format_checker=Draft202012Validator.FORMAT_CHECKER)
    for event in (quiet, back):
        validator.validate(event)
    assert main(["ledger", "-c", str(place.site.collector.config)]) == 0, "it adds up"
    assert place.site.collector.metrics()['nd_input_received_events_total{input="sources"}'] == 1, "of this process"


def test_what_a_person_expects_and_forgets(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    """Through the socket, durable, in the audit trail; and read from the files where nobody runs."""
    place.site.send(5)
    name = "nd:device:fw-1"
    place.wait_for(name, events=5, format="rfc5424", framing="lf", state="heard", lost=0)
    assert place.sources("expect", name, "2d") == 0
    assert place.sources("expect", "192.0.2.7", "never") == 0
    assert place.sources("forget", "nobody") == 1
    assert place.sources("expect", "nobody", "learned") == 1
    out, err = capsys.readouterr()
    assert out.splitlines() == [f"{name}: quiet after 2d of silence", "192.0.2.7: its silence means nothing"]
    assert err.count("no source 'nobody'") == 2
    place.site.collector.kill()
    assert place.sources("show", name) == 0
    assert "expected               172800" in capsys.readouterr().out
    place.site.collector.start()
    assert place.rows()["192.0.2.7", ""]["state"] == "awaited"
    assert place.sources("forget", name) == 0
    assert (name, "") not in place.rows()
    trail = (place.site.collector.directory / "state" / "audit.ndjson").read_text().splitlines()
    assert [json.loads(line)["kind"] for line in trail if "source_" in line] == [
        "source_expected", "source_expected", "source_forgotten",
    ]  # fmt: skip
    with pytest.raises(SystemExit):
        place.sources("expect", name, "soon")
    assert "or never, or learned" in capsys.readouterr().err
