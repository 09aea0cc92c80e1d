"""The agent as a service of wine's service manager: made, started, enrolled, paused, stopped, taken away.

Wine's service manager does not notice that a service's process has died: a kill is for test_windows_agent.py.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from agent_process import AgentSite
from packages.windows_agent import (
    CONTINUE,
    PAUSE,
    PAUSED,
    RUNNING,
    STOPPED,
    control_service,
    remove_service,
    service_status,
    until,
    write_lines,
)
from packages.wine import Wine

pytestmark = [pytest.mark.packages, pytest.mark.timeout(1200)]

HOME = "ProgramData/Neurodefender/ndagent"


class Service:
    """`ndagent service …` and what it leaves below ProgramData."""

    def __init__(self, wine: Wine) -> None:
        self.wine = wine
        self.home = wine.drive_c / HOME
        self.log = self.home / "logs" / "ndagent.log"

    def command(self, action: str, *, check: bool = True) -> str:
        return self.wine.python("-m", "ndagent", "service", action, check=check).stdout

    def control(self, number: int) -> None:
        control_service(self.wine, number)

    def status(self) -> list[int]:
        """As QueryServiceStatus has it."""
        return service_status(self.wine)

    def state(self) -> int:
        return self.status()[1]

    def setup_values(self) -> str:
        return self.wine.run("reg", "query", r"HKLM\SOFTWARE\Neurodefender\ndagent", check=False).stdout

    def report(self) -> dict:
        report = self.home / "state" / "status.json"
        return json.loads(report.read_text()) if report.exists() else {}

    def words(self) -> str:
        return self.log.read_text() if self.log.exists() else "no log"


@pytest.fixture
def service(wine: Wine) -> Iterator[Service]:
    shutil.rmtree(wine.drive_c / HOME, ignore_errors=True)  # another test's
    yield Service(wine)
    remove_service(wine)


def test_from_install_to_remove(service: Service, tmp_path: Path) -> None:
    """One test, as each step stands on the one before and costs wine ten seconds."""
    logs = service.wine.drive_c / "weblogs"
    logs.mkdir(exist_ok=True)
    log = logs / "web.log"
    inputs = {"web": {"type": "file", "paths": [r"C:\weblogs\*.log"], "poll_interval": "200ms"}}
    with AgentSite(tmp_path) as site:
        service.home.mkdir(parents=True, exist_ok=True)
        (service.home / "ndagent.yaml").write_text(yaml.safe_dump({"inputs": inputs, "shutdown_timeout": "20s"}))
        for name, value in (("CollectorUrl", site.url), ("EnrollToken", site.token())):
            service.wine.run("reg", "add", r"HKLM\SOFTWARE\Neurodefender\ndagent", "/v", name, "/d", value, "/f")
        assert "is installed" in service.command("install")
        assert "stopped" in service.command("status", check=False)
        assert "running" in service.command("start"), service.words()

        write_lines(log, ["enrolled by what setup left in the registry"])
        until(lambda: len(site.messages()) == 1, service.words)
        assert "EnrollToken" not in service.setup_values()
        until(lambda: not (service.home / "enroll.json").exists(), "the token is forgotten")

        service.control(PAUSE)
        until(lambda: service.state() == PAUSED, service.words)
        write_lines(log, ["written while it was paused"])
        until(lambda: "paused" in service.report()["inputs"][0]["message"], "the report says so")
        seen = service.report()["sent_at_ns"]
        until(lambda: service.report()["sent_at_ns"] > seen + 5 * 10**9, "a paused agent still reports")
        assert len(site.messages()) == 1
        assert service.report()["endpoint"]
        service.control(CONTINUE)
        until(lambda: len(site.messages()) == 2, service.words)
        assert service.state() == RUNNING

        service.control(PAUSE)
        until(lambda: service.state() == PAUSED, service.words)
        assert "running" in service.command("start"), "a paused one continues"
        service.control(PAUSE)
        until(lambda: service.state() == PAUSED, service.words)
        assert "stopped" in service.command("stop")
        assert "stopped: received" in service.words()
        assert set(site.messages().values()) == {1}
        assert "is removed" in service.command("remove")
        assert "service install makes it" in service.command("status", check=False)
        assert (service.home / "ndagent.yaml").exists()


def test_what_cannot_start_says_why_and_ends_with_an_error(service: Service) -> None:
    """With an error, so that the service manager's recovery actions count."""
    service.home.mkdir(parents=True, exist_ok=True)
    (service.home / "ndagent.yaml").write_text("inputs: {nothing: {}}\n")
    service.command("install")
    service.command("start", check=False)
    until(lambda: service.state() == STOPPED, service.words)
    assert "'nothing' is not a type of input" in service.words()
    assert "recovery actions cannot be set" in service.words(), "they were not asked for (wine has none)"
    assert service.status()[3:5] != [0, 0]
    service.command("remove")


def test_what_setup_is_told_in_two_goes_is_known_together(service: Service) -> None:
    """A token that was used up is followed by another, without the URL; the registry forgets each at once."""
    program = (
        "from pathlib import Path; from ndagent import winservice as s; home = Path(r'C:\\told'); home.mkdir()\n"
        "def tell(**said):\n"
        "    with s.winreg.CreateKey(s.winreg.HKEY_LOCAL_MACHINE, s.SETUP_KEY) as key:\n"
        "        for name, value in said.items(): s.winreg.SetValueEx(key, name, 0, s.winreg.REG_SZ, value)\n"
        "    return s.Setup(home, identity=home / 'identity.json').take_up()\n"
        "print(tell(CollectorUrl='https://c:8443', EnrollToken='used'), s._from_registry())\n"
        "print(tell(EnrollToken='fresh'), s._from_registry())\n"
        "(home / 'identity.json').touch(); print('enrolled', tell(EnrollToken='late'), s._from_registry())\n"
    )
    said = service.wine.python("-c", program).stdout
    assert "{'ND_COLLECTOR_URL': 'https://c:8443', 'ND_ENROLL_TOKEN': 'used'} {}" in said
    assert "{'ND_COLLECTOR_URL': 'https://c:8443', 'ND_ENROLL_TOKEN': 'fresh'} {}" in said
    assert "enrolled {} {}" in said


def test_an_event_has_the_level_the_words_and_nothing_to_insert(service: Service) -> None:
    """Wine stores no events; what Windows is handed is checked."""
    program = (
        "import logging, win32evtlogutil as e; from ndagent import windows_log as w; calls = []\n"
        "e.ReportEvent = lambda *a, **k: calls.append((*a, k['eventType'], k['strings'][0]))\n"
        "log = logging.getLogger('ndagent.x'); log.addHandler(w.EventLogHandler()); log.setLevel('DEBUG')\n"
        "log.debug('nothing'); log.info('state'); log.warning('fe80::1%1'); log.error('lost')\n"
        "print([(n == want, t) for (_, n, t, _), want in zip(calls, (0x40000001, 0x80000002, 0xC0000003))])\n"
        "print([text.replace(chr(0x200B), '|') for *_, text in calls])\n"
    )
    said = service.wine.python("-c", program).stdout
    assert "[(True, 4), (True, 2), (True, 1)]" in said
    assert "['x: state', 'x: fe80::1%|1', 'x: lost']" in said


def test_the_log_file_makes_way_for_a_new_one(service: Service) -> None:
    """And keeps its descriptor, which faulthandler holds; a new one that cannot be made at once is made later."""
    program = (
        "from pathlib import Path; from ndagent import windows_log as w; w.MAX_BYTES = 100\n"
        "log = w.LogFile(Path(r'C:\\turn.log')); number = log.fileno()\n"
        "[log.write(f'{n:049d}\\n') for n in range(20)]\n"
        "names = sorted(Path('C:/').glob('turn.log*')); print([(p.name, p.stat().st_size) for p in names])\n"
        "print(number == log.fileno(), names[0].read_text().endswith('19\\n'))\n"
        "def refuse(): log._open = open_; raise PermissionError\n"
        "open_ = log._open; log._open = refuse; log.write('lost\\n'); log.write('again\\n')\n"
        "print('then', names[0].read_text().split())\n"
    )
    said = service.wine.python("-c", program).stdout
    assert "[('turn.log', 100), ('turn.log.1', 100), ('turn.log.2', 100), ('turn.log.3', 100)]" in said
    assert "True True" in said
    assert "then ['again']" in said


def test_recovery_is_asked_of_windows_as_its_api_wants_it(service: Service) -> None:
    """Wine's service manager has no failure actions; pywin32 checks the structure, this test the order and the flag."""
    program = (
        "from ndagent import winservice as s; import win32service as w; calls = []; "
        "s.configure_recovery('handle', lambda *call: calls.append(call)); "
        "assert calls[0] == ('handle', w.SERVICE_CONFIG_FAILURE_ACTIONS, s.RECOVERY), calls; "
        "assert calls[1] == ('handle', w.SERVICE_CONFIG_FAILURE_ACTIONS_FLAG, True), calls; "
        "assert calls[2] == ('handle', w.SERVICE_CONFIG_PRESHUTDOWN_INFO, 60000), calls; "
        "pauses = [pause for action, pause in s.RECOVERY['Actions'] if action == w.SC_ACTION_RESTART]; "
        "assert pauses == [5000, 30000, 120000], pauses; print('as it should be')"
    )
    assert "as it should be" in service.wine.python("-c", program).stdout
