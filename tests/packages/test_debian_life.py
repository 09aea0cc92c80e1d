"""A packaged collector and agent on booted Debian machines: what an operator does with them, and what befalls them."""

import json
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from packages.debian_machine import DebianMachine
from packages.package_files import package_files
from packages.packaged_site import PackagedSite

pytestmark = [pytest.mark.packages, pytest.mark.timeout(1800)]
UNITS = ("ndcollector", "ndagent")
FIXTURE = Path(__file__).resolve().parents[1] / "upgrade/fixtures/0.1.0"
RSS_LIMIT_BYTES = 45_000_000
_LOAD = """\
n=0
while [ ! -e /run/enough ]; do n=$((n + 1)); logger -t load "line $n"; sleep 0.01; done
echo $n > /run/count
"""


@pytest.fixture(scope="module", params=["bookworm", "trixie"])
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PackagedSite]:
    """Both packages installed and the agent enrolled, on one machine for all tests of this file but the last."""
    files = package_files()
    with DebianMachine(request.param, tmp_path_factory.mktemp(request.param)) as machine:
        yield PackagedSite(machine.boot(), files)


def test_what_logger_says_on_the_host_is_an_event_in_the_collectors_file(site: PackagedSite) -> None:
    """logger → journald → agent → mTLS → collector → file, with the agent named by its certificate."""
    site.log_and_wait("hello from a package")
    event = next(event for event in site.events() if event.get("message") == "hello from a package")
    assert event["agent"]["id"] in site.machine.run("ndcollector", "agents", "ls", "--json")
    assert site.machine.run("ndcollector", "version").strip().endswith("(codec: compiled)")


def test_an_installed_collector_without_certificates_says_what_to_do(site: PackagedSite) -> None:
    """It is enabled and not started: a unit that can only fail helps nobody."""
    assert "ndcollector pki init" in site.said_by_collector
    assert "enabled" in site.machine.run("systemctl", "is-enabled", "ndcollector", "ndagent")


def test_the_token_that_enrolled_the_agent_is_gone_from_the_machine(site: PackagedSite) -> None:
    """It came by the environment of apt, and is in no file any more; nobody but root could read it before."""
    seed = site.machine.path / "etc/default/ndagent"
    site.machine.wait_for(lambda: site.token not in seed.read_text(), "a file without the token")
    assert seed.stat().st_mode & 0o077 == 0
    assert "ND_COLLECTOR_URL=https://localhost:8443" in seed.read_text()
    assert "is removed" in site.machine.run("journalctl", "--no-pager", "-u", "ndagent")


def test_files_have_the_owners_and_modes_that_their_content_asks_for(site: PackagedSite) -> None:
    """What may hold tokens is not for everybody; what runs is nobody's to change but root's."""
    expected = {
        "/etc/ndcollector": "750 root:ndcollector", "/etc/ndcollector/ndcollector.yaml": "640 root:ndcollector",
        "/etc/ndcollector/conf.d": "750 root:ndcollector", "/var/lib/ndcollector": "750 ndcollector:ndcollector",
        "/var/log/ndcollector": "750 ndcollector:ndcollector", "/usr/lib/ndcollector/ndcollector": "755 root:root",
        "/etc/ndagent/ndagent.yaml": "644 root:root", "/var/lib/ndagent": "700 root:root",
        "/usr/lib/ndagent/ndagent": "755 root:root",
    }  # fmt: skip
    found = site.machine.run("stat", "-c", "%n %a %U:%G", *expected).splitlines()
    assert dict(line.split(" ", 1) for line in found) == expected
    programs = ("/usr/lib/ndcollector", "/usr/lib/ndagent")
    assert site.machine.run("find", *programs, "-perm", "/022", "!", "-type", "l") == ""


def test_a_saved_configuration_counts_after_reload(site: PackagedSite) -> None:
    """A second output by a file in conf.d: the next event is in its file, and the daemon is the same process."""
    before = site.machine.main_pid("ndcollector")
    second = site.machine.path / "etc/ndcollector/conf.d/second.yaml"
    second.write_text('outputs: {second: {type: file, path: "/var/log/ndcollector/second.ndjson"}}\n')
    site.machine.run("chgrp", "ndcollector", "/etc/ndcollector/conf.d/second.yaml")
    site.machine.run("systemctl", "reload", "ndcollector")
    site.log_and_wait("after the reload")
    other = site.machine.path / "var/log/ndcollector/second.ndjson"
    site.machine.wait_for(lambda: other.exists() and "after the reload" in other.read_text(), "the event in both files")
    assert site.machine.main_pid("ndcollector") == before
    second.unlink()
    site.machine.run("systemctl", "reload", "ndcollector")


def test_the_journal_explains_what_a_message_means(site: PackagedSite) -> None:
    """The catalogue comes with the package and counts at once: `journalctl -x` says what happened and what to do."""
    for unit in UNITS:
        said = site.machine.run("journalctl", "--no-pager", "-x", "-u", unit)
        ready = said.partition('"message":"ready: ')[2] or said.partition("ready: ")[2]
        assert "░░ Subject: " in ready.partition("systemd[1]")[0], said[-3000:]


@pytest.mark.parametrize("unit", UNITS)
def test_a_killed_daemon_is_back_and_goes_on(site: PackagedSite, unit: str) -> None:
    """SIGKILL: systemd starts it again, and what is said next arrives."""
    before = site.machine.main_pid(unit)
    site.machine.run("sh", "-c", f"kill -9 {before}")
    site.machine.wait_for(lambda: site.machine.main_pid(unit) not in {0, before}, f"another process of {unit}")
    site.log_and_wait(f"after {unit} was killed")


@pytest.mark.parametrize("unit", UNITS)
def test_a_daemon_that_hangs_is_ended_by_the_watchdog_and_goes_on(site: PackagedSite, unit: str) -> None:
    """SIGSTOP stands for a hang; the limit is shortened so that nobody waits a minute."""
    drop_in = site.machine.path / f"run/systemd/system/{unit}.service.d/short.conf"
    site.machine.run("mkdir", "-p", f"/run/systemd/system/{unit}.service.d")
    site.machine.run("sh", "-c", f"printf '[Service]\\nWatchdogSec=10\\n' > /{drop_in.relative_to(site.machine.path)}")
    site.machine.run("systemctl", "daemon-reload")
    site.machine.run("systemctl", "restart", unit)
    before = site.machine.main_pid(unit)
    site.machine.run("sh", "-c", f"kill -STOP {before}")
    site.machine.wait_for(
        lambda: site.machine.main_pid(unit) not in {0, before} and site.machine.is_active(unit),
        f"another process of {unit}", seconds=180,
    )  # fmt: skip
    assert "Watchdog timeout" in site.machine.run("journalctl", "--no-pager", "-u", unit)
    site.log_and_wait(f"after {unit} hung")


def test_an_upgrade_under_load_loses_nothing(site: PackagedSite) -> None:
    """Both packages are replaced while an application logs: every line arrives, and both daemons are new."""
    files = package_files("2")
    before = {unit: site.machine.main_pid(unit) for unit in UNITS}
    application = site.machine.start(_LOAD)
    site.machine.wait_for(lambda: site.arrived("line 20"), "the load")
    site.machine.install(files.collector)
    site.machine.install(files.agent)
    site.log_and_wait("after the upgrade")
    site.machine.run("touch", "/run/enough")
    assert application.wait(60) == 0
    count = int(site.machine.run("cat", "/run/count"))
    wanted = {f"line {number}" for number in range(1, count + 1)}
    site.machine.wait_for(
        lambda: wanted <= {event["message"] for event in site.events() if event["message"].startswith("line ")},
        f"all {count} lines", seconds=120,
    )  # fmt: skip
    for unit in UNITS:
        assert site.machine.main_pid(unit) not in {0, before[unit]}
        assert site.machine.run("dpkg-query", "-W", unit).strip().endswith("-2")


def test_a_daemon_goes_on_with_its_own_program_while_another_one_is_unpacked(site: PackagedSite) -> None:
    """Between unpacking and restart the file under it is another; a plug that it has yet to import is still its own."""
    machine, program = site.machine, "/usr/lib/ndcollector/ndcollector"
    added = machine.path / "etc/ndcollector/conf.d/latecomer.yaml"
    before = machine.main_pid("ndcollector")
    other = f"cp -a {program} /root/kept; cp -a /usr/lib/ndagent/ndagent {program}.new; mv {program}.new {program}"
    machine.run("sh", "-ec", other)
    try:
        added.write_text('outputs: {latecomer: {type: https, urls: ["https://localhost:9/"]}}\n')
        said = machine.wait_for(lambda: words_about(machine, "latecomer"), "a word about the new output")
        site.log_and_wait("from a program that is not on disk any more")
    finally:
        added.unlink()
        machine.run("mv", "/root/kept", program)
    assert "refused" not in said
    assert machine.main_pid("ndcollector") == before
    machine.run("systemctl", "reload", "ndcollector")


def words_about(machine: DebianMachine, output: str) -> str:
    """What the collector has said of an output."""
    return machine.run("journalctl", "--no-pager", "-q", "-u", "ndcollector", "-g", output, check=False)


def start_seconds(machine: DebianMachine) -> dict[str, float]:
    """From the start of each process to READY=1, as systemd saw it."""
    found = {}
    for unit in UNITS:
        names = ("ActiveEnterTimestampMonotonic", "ExecMainStartTimestampMonotonic")
        ready, started = (int(machine.run("systemctl", "show", "-P", name, unit)) for name in names)
        found[unit] = round((ready - started) / 1e6, 3)
    return found


def test_the_idle_agent_is_small(site: PackagedSite) -> None:
    """With the configuration as shipped: once its start is over, and after the rounds of metrics that come next."""
    machine = site.machine

    def resident_bytes(unit: str) -> int:
        text = machine.run("cat", f"/proc/{machine.main_pid(unit)}/status")
        return int(text.partition("VmRSS:")[2].split()[0]) * 1024

    found = {f"{unit}, after the load": resident_bytes(unit) for unit in UNITS}
    machine.run("systemctl", "restart", "ndagent")
    took = start_seconds(machine)
    site.log_and_wait("from an agent just started")
    found["ndagent, started"] = resident_bytes("ndagent")
    machine.wait_for(lambda: resident_bytes("ndagent") <= RSS_LIMIT_BYTES, "an agent that let go of its start's code")
    rounds = site.rounds_of_metrics()
    machine.wait_for(lambda: site.rounds_of_metrics() >= rounds + 2, "two rounds of metrics")
    found["ndagent, idle"] = resident_bytes("ndagent")
    print(f"{machine.suite}: resident bytes {json.dumps(found)}, seconds from fork to ready {json.dumps(took)}")
    assert found["ndagent, idle"] <= RSS_LIMIT_BYTES


def test_what_was_removed_and_comes_back_runs_again(site: PackagedSite) -> None:
    """With the identity and the certificates that it had: for dpkg that is an upgrade, for its user a new beginning."""
    machine, files = site.machine, package_files("2")
    machine.run("apt-get", "remove", "-y", *UNITS)
    machine.install(files.collector, files.agent)
    for unit in UNITS:
        machine.wait_for(lambda unit=unit: machine.is_active(unit), f"{unit} to run")
    site.log_and_wait("after it came back")
    machine.run("systemctl", "stop", "ndagent")
    machine.run("dpkg", "-i", f"/root/{package_files().agent.name}")
    assert not machine.is_active("ndagent"), "one that was stopped stays so over an upgrade, or here a downgrade"
    machine.run("systemctl", "start", "ndagent")


def test_removal_keeps_what_is_the_operators_and_purge_only_what_was_collected(site: PackagedSite) -> None:
    """remove: programs go; configuration, state and archive stay. purge: nothing is left but the archive and users."""
    machine = site.machine
    machine.run("apt-get", "remove", "-y", *UNITS)
    for unit in UNITS:
        assert machine.main_pid(unit) == 0
        assert not (machine.path / "usr/bin" / unit).is_symlink()
        assert (machine.path / f"etc/{unit}/{unit}.yaml").exists()
    assert (machine.path / "var/lib/ndagent/identity").is_dir()
    assert (machine.path / "var/lib/ndcollector").is_dir()
    said = machine.run("apt-get", "purge", "-y", *UNITS)
    assert "what was collected stays in /var/log/ndcollector" in said
    left = machine.run(
        "find", "/etc", "/usr", "/var", "/opt", "/lib/systemd", "-xdev", "(", "-name", "*ndagent*", "-o", "-name",
        "*ndcollector*", ")", "-not", "-path", "/var/cache/*",
    ).split()  # fmt: skip
    assert left == ["/var/log/ndcollector"]
    assert (machine.path / "var/log/ndcollector/security_events.ndjson").stat().st_size > 0


def test_a_machine_that_was_prepared_before_the_package_came_enrols_by_itself(
    site: PackagedSite, tmp_path: Path
) -> None:
    """(After the purge.) /etc/default/ndagent of an image is no conffile: apt does not ask, and the agent enrols."""
    files = package_files()
    machine = site.machine
    machine.run("rm", "-rf", "/var/log/ndcollector")
    machine.install(files.collector)
    machine.run("ndcollector", "pki", "init", "--name", "collector-1", "--dns", "localhost")
    machine.run("systemctl", "start", "ndcollector")
    words = machine.run("ndcollector", "agents", "token", "create", "--group", "web").split()
    token = next(word for word in words if word.startswith("ndt1_"))
    seed = machine.path / "etc/default/ndagent"
    seed.write_text(f"ND_COLLECTOR_URL=https://localhost:8443\nND_ENROLL_TOKEN={token}\n")
    machine.install(files.agent)
    machine.wait_for(lambda: token not in seed.read_text(), "a file without the token")
    site.log_and_wait("from a prepared machine")


def test_what_the_first_release_left_is_read_by_the_package(site: PackagedSite) -> None:
    """(As above.) A state directory of 0.1.0: the output that was behind gets its events, under their own ids."""
    machine = site.machine
    machine.run("systemctl", "stop", "ndagent", "ndcollector")
    state = machine.path / "var/lib/ndcollector"
    expected = json.loads((FIXTURE / "expected.json").read_text())["collector"]
    shutil.rmtree(state / "spool")
    with tarfile.open(FIXTURE / "collector.tar.gz") as archive:
        archive.extractall(state.parent / "released")  # our own; Debian 12's tarfile knows no filter yet
    shutil.copytree(state.parent / "released/state", state, dirs_exist_ok=True)
    shutil.rmtree(state.parent / "released")
    config = 'outputs: {behind: {type: file, path: "/var/log/ndcollector/behind.ndjson"}}\n'
    (machine.path / "etc/ndcollector/conf.d/behind.yaml").write_text(config)
    machine.run("chown", "-R", "ndcollector:ndcollector", "/var/lib/ndcollector")
    machine.run("systemctl", "start", "ndcollector")
    behind = machine.path / "var/log/ndcollector/behind.ndjson"
    machine.wait_for(lambda: behind.exists() and behind.read_bytes().count(b"\n") >= 5, "the events of then")
    ids = [json.loads(line)["event"]["id"] for line in behind.read_text().splitlines()]
    assert ids[:5] == expected["ids"]
    assert expected["agent"] in machine.run("ndcollector", "agents", "ls")
