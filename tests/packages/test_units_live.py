"""The units as systemd runs them: sockets, stops, reloads, closed paths; the ten questions of docs/operations.md."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from packages.debian_machine import ROOT, DebianMachine
from packages.package_files import package_files
from packages.packaged_site import PackagedSite

from ndagent.core import messages

pytestmark = [pytest.mark.packages, pytest.mark.timeout(1800)]

_KNOCK = """\
tried=0; refused=0
while [ ! -e /run/enough ]; do
    tried=$((tried + 1)); echo $tried > /run/tried
    (exec 3<>/dev/tcp/127.0.0.1/6514) 2>/dev/null || refused=$((refused + 1))
    sleep 0.02
done
echo $refused > /run/refused
"""


@pytest.fixture(scope="module", params=["bookworm", "trixie"])
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PackagedSite]:
    """Both packages installed and the agent enrolled, on one machine for all tests of this file."""
    files = package_files()
    with DebianMachine(request.param, tmp_path_factory.mktemp(request.param)) as machine:
        yield PackagedSite(machine.boot(), files)


def write(site: PackagedSite, path: str, text: str) -> None:
    """A file that the collector may read."""
    file = site.machine.path / path.lstrip("/")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    site.machine.run("chgrp", "ndcollector", path)


def drop_in(site: PackagedSite, unit: str, *lines: str) -> Path:
    """What `systemctl edit` writes; gives the file."""
    path = f"/etc/systemd/system/{unit}.service.d/test.conf"
    write(site, path, "\n".join(["[Service]", *lines, ""]))
    site.machine.run("systemctl", "daemon-reload")
    return site.machine.path / path.lstrip("/")


def undo(site: PackagedSite, *files: Path) -> None:
    """Without these files, the collector runs as before."""
    for file in files:
        file.unlink()
    site.machine.run("systemctl", "daemon-reload")
    site.machine.run("systemctl", "restart", "ndcollector")


def said(site: PackagedSite, *words: str) -> str:
    """What the collector's journal has."""
    return site.machine.run("journalctl", "--no-pager", "-o", "cat", "-u", "ndcollector", *words)


def test_with_socket_units_a_restart_refuses_nobody(site: PackagedSite) -> None:
    """Somebody connects all the time; systemd holds the addresses while the daemon comes and goes."""
    machine = site.machine
    units = ("ndcollector.socket", "ndcollector-https.socket", "ndcollector-mqtt.socket")
    machine.run("systemctl", "stop", "ndcollector")
    machine.run("systemctl", "enable", "--now", *units)
    machine.run("systemctl", "start", "ndcollector")
    machine.run("sh", "-c", f"cat > /root/knock <<'KNOCK'\n{_KNOCK}KNOCK\n")
    knocking = machine.start("exec bash /root/knock")

    def tries() -> int:
        return int(machine.run("sh", "-c", "cat /run/tried 2>/dev/null || echo 0").strip() or 0)

    for _ in range(2):
        before = machine.wait_for(tries, "connections")
        machine.run("systemctl", "restart", "ndcollector")
        machine.wait_for(lambda before=before: tries() > before + 5, "more connections")
    machine.run("touch", "/run/enough")
    assert knocking.wait(60) == 0
    assert machine.run("cat", "/run/refused").strip() == "0"
    site.log_and_wait("through held sockets")
    machine.run("systemctl", "disable", "--now", *units)
    machine.run("systemctl", "restart", "ndcollector")


def test_a_secret_that_systemd_hands_over_hinders_no_reload(site: PackagedSite) -> None:
    """LoadCredential= shows it to the daemon and not to the command that asks for the reload."""
    write(site, "/etc/ndcollector/hec.token", "0123")
    credential = drop_in(site, "ndcollector", "LoadCredential=hec.token:/etc/ndcollector/hec.token")
    token = "${file:/run/credentials/ndcollector.service/hec.token}"
    fragment = "/etc/ndcollector/conf.d/siem.yaml"
    write(site, fragment, f'outputs: {{siem: {{type: splunk_hec, url: "https://127.0.0.1:1", token: "{token}"}}}}\n')
    site.machine.run("systemctl", "restart", "ndcollector")
    site.machine.run("systemctl", "reload", "ndcollector")
    site.machine.run("ndcollector", "check")
    undo(site, credential, site.machine.path / fragment.lstrip("/"))


def test_a_stop_that_was_configured_to_take_long_is_waited_for(site: PackagedSite) -> None:
    """TimeoutStopSec= would end it amid its drain: here 2 s against 8."""
    short = drop_in(site, "ndcollector", "TimeoutStopSec=2")
    fragment = "/etc/ndcollector/conf.d/dead.yaml"
    outputs = 'outputs: {dead: {type: syslog_tls, endpoints: ["127.0.0.1:1"]}}\n'
    write(site, fragment, f"shutdown_timeout: 8s\n{outputs}")
    site.machine.run("systemctl", "restart", "ndcollector")
    site.log_and_wait("for a dead output")
    site.machine.run("systemctl", "stop", "ndcollector")
    assert site.machine.run("systemctl", "show", "-P", "Result", "ndcollector").strip() == "success"
    assert "pending" in said(site, "-n", "1", f"MESSAGE_ID={messages.STOPPED['message_id']}")
    undo(site, short, site.machine.path / fragment.lstrip("/"))


def test_an_output_where_the_unit_may_not_write_says_what_to_do_and_then_writes(site: PackagedSite) -> None:
    """The remedy of the message is the one that works, and the events that waited arrive."""
    fragment = "/etc/ndcollector/conf.d/srv.yaml"
    site.machine.run("install", "-d", "-o", "ndcollector", "/srv/logs")
    write(site, fragment, 'outputs: {srv: {type: file, path: "/srv/logs/{stream}.ndjson"}}\n')
    site.machine.run("systemctl", "reload", "ndcollector")
    site.log("for another place")
    site.machine.wait_for(lambda: "ReadWritePaths=" in said(site, "ND_OUTPUT=srv"), "the remedy in the journal")
    opened = drop_in(site, "ndcollector", "ReadWritePaths=/srv/logs")
    site.machine.run("systemctl", "restart", "ndcollector")
    file = site.machine.path / "srv/logs/security_events.ndjson"
    site.machine.wait_for(lambda: file.exists() and "for another place" in file.read_text(), "the event at its place")
    undo(site, opened, site.machine.path / fragment.lstrip("/"))


def test_a_place_that_is_emptied_at_each_stop_is_told(site: PackagedSite) -> None:
    """/tmp is the unit's own."""
    fragment = "/etc/ndcollector/conf.d/tmp.yaml"
    write(site, fragment, 'outputs: {second: {type: file, path: "/tmp/{stream}.ndjson"}}\n')
    site.machine.run("systemctl", "reload", "ndcollector")
    assert "/tmp is private to this service" in said(site, "-p", "err", "ND_OUTPUT=second")
    undo(site, site.machine.path / fragment.lstrip("/"))


def test_the_agent_reads_what_applications_log_to_tmp(site: PackagedSite) -> None:
    """Its unit has no /tmp of its own, and may not write to the machine's."""
    config = site.machine.path / "etc/ndagent/ndagent.yaml"
    shipped = config.read_text()
    config.write_text("inputs: {journald: {}, app: {type: file, paths: [/tmp/app.log]}}\n")
    site.machine.run("systemctl", "restart", "ndagent")
    site.machine.run("sh", "-c", "echo 'said in tmp' >> /tmp/app.log")
    site.machine.wait_for(lambda: site.arrived("said in tmp"), "the line")
    config.write_text(shipped)
    site.machine.run("systemctl", "restart", "ndagent")


def test_the_command_of_each_of_the_ten_questions_answers(site: PackagedSite) -> None:
    """As it stands in docs/operations.md, with the names of this machine; the first seven for group members, too."""
    machine = site.machine
    text = (ROOT / "docs/operations.md").read_text()
    commands = re.findall(r"(?m)^\| (\d+) \| .*? \| `(.*)` \|$", text)
    assert [number for number, _ in commands] == [str(number) for number in range(1, 11)]
    machine.run("adduser", "--disabled-password", "--gecos", "", "alice")
    machine.run("usermod", "-aG", "ndcollector,systemd-journal", "alice")
    machine.run("bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/6514; echo 'no TLS' >&3; timeout 20 cat <&3 >&2 || true")
    machine.wait_for(lambda: "refused" in said(site, "ND_ORIGIN=127.0.0.1"), "the refusal")
    agent = re.search(r"(?m)^(\S+) +\S+ +active ", machine.run("ndcollector", "agents", "ls"))
    assert agent is not None
    for number, command in commands:
        typed = command.replace("192.0.2.7", "127.0.0.1").replace("web-1", agent[1])
        answer = machine.run("sh", "-c", typed)
        assert "-- No entries --" not in answer, command
        if int(number) <= 7:
            machine.run("su", "alice", "-c", typed)
