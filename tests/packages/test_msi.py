"""The msi, by wine's Windows Installer: silent install, enrolment, events, upgrade, repair, uninstall.

Wine proves that the tables say what they should, and that what is installed works; not what Windows Installer itself
makes of them: docs/windows.md lists what nobody has seen yet.
"""

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from agent_process import AgentSite
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packages.windows_agent import remove_service, service_status, stop_service, until, write_lines
from packages.wine import PROJECT, Wine

sys.path.insert(0, str(PROJECT / "packaging"))
import build_msi  # isort: skip

pytestmark = [pytest.mark.packages, pytest.mark.timeout(2400)]

OLD, NEW = "0.1.0", "0.1.1"
PROGRAM = "Program Files/Neurodefender/ndagent"
HOME = "ProgramData/Neurodefender/ndagent"
SOURCE_KEY = r"HKLM\SYSTEM\CurrentControlSet\Services\EventLog\Application\ndagent"
UNINSTALL_KEY = r"HKLM\SOFTWARE\Microsoft\Windows\CurrentVersion\Uninstall"
SECONDS = 300


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two versions of one tree."""
    work = tmp_path_factory.mktemp("msi")
    print(build_msi.stage(work, archive=None, sha256=None))
    return {version: build_msi.pack(work, work / "dist", version=version) for version in (OLD, NEW)}


class Machine:
    """A Windows with the msi on it."""

    def __init__(self, wine: Wine) -> None:
        self.wine = wine
        self.program, self.home = wine.drive_c / PROGRAM, wine.drive_c / HOME
        self.log, self.config = self.home / "logs" / "ndagent.log", self.home / "ndagent.yaml"

    def msiexec(self, *arguments: str | Path) -> None:
        self.wine.run("msiexec", *arguments, "/qn", timeout=SECONDS)

    def replace(self, *arguments: str | Path) -> None:
        """On an installed agent. ServiceControl's Wait means nothing to wine: while the service still ends, its files
        are locked and it can be made anew by nobody. So it is stopped before.
        """
        stop_service(self.wine, self.words)
        self.msiexec(*arguments)

    def ndagent(self, *arguments: str, check: bool = True) -> str:
        """As ndagent.cmd does it."""
        return self.wine.run(
            self.program / "python" / "python.exe", "-B", "-m", "ndagent", *arguments, check=check, timeout=SECONDS
        ).stdout

    def registry(self, key: str) -> str:
        return self.wine.run("reg", "query", key, "/s", check=False).stdout

    def state(self) -> str:
        return self.ndagent("service", "status", check=False)

    def words(self) -> str:
        return self.log.read_text() if self.log.exists() else "no log"

    def pending(self) -> int:
        report = (self.home / "state" / "status.json").read_text()
        return sum(map(int, re.findall(r'"pending_events": (\d+)', report)))


@pytest.fixture
def machine(wine: Wine) -> Iterator[Machine]:
    shutil.rmtree(wine.drive_c / HOME, ignore_errors=True)  # another test's
    yield Machine(wine)
    remove_service(wine)


def test_from_silent_install_to_uninstall(machine: Machine, built: dict[str, Path], tmp_path: Path) -> None:
    """One test, as each step stands on the one before."""
    log = machine.wine.drive_c / "msilogs" / "web.log"
    log.parent.mkdir()
    with AgentSite(tmp_path) as site:
        machine.msiexec("/i", built[OLD], f"COLLECTOR_URL={site.url}", f"ENROLL_TOKEN={site.token()}")
        until(lambda: "running" in machine.state(), machine.words)
        _read_a_log_file(machine)
        write_lines(log, ["the first line"])
        until(lambda: site.messages()["the first line"] == 1, machine.words)
        assert "EnrollToken" not in machine.registry(r"HKLM\SOFTWARE\Neurodefender")
        until(lambda: not (machine.home / "enroll.json").exists(), "the token is forgotten")
        assert "Neurodefender agent" in machine.registry(UNINSTALL_KEY)
        assert "ndagent_messages.dll" in machine.registry(SOURCE_KEY)
        _show_figures(machine, built[OLD])

        site.collector.kill()
        waiting = [f"line {number} while no collector was there" for number in range(100)]
        write_lines(log, waiting)
        until(lambda: machine.pending() >= len(waiting), machine.words)
        edited, identity = machine.config.read_text(), (machine.home / "state/identity/identity.json").read_text()
        machine.replace("/i", built[NEW])
        until(lambda: "running" in machine.state(), machine.words)
        assert machine.registry(UNINSTALL_KEY).count("Neurodefender agent") == 1
        assert machine.config.read_text() == edited
        assert (machine.home / "state/identity/identity.json").read_text() == identity
        write_lines(log, ["the last line"])
        site.collector.start()
        lines = ["the first line", *waiting, "the last line"]
        until(lambda: site.distinct().keys() >= set(lines), machine.words)
        assert [site.distinct()[line] for line in lines] == [1] * len(lines)

        broken = machine.program / "lib" / "h11" / "__init__.py"
        broken.unlink()
        machine.replace("/i", built[NEW], "REINSTALL=ALL", "REINSTALLMODE=amus")  # what /fa means; wine has none
        until(lambda: "running" in machine.state(), machine.words)
        assert broken.exists()
        assert machine.config.read_text() == edited

        machine.replace("/x", built[NEW])
        assert not list(machine.program.rglob("*")), "files were left behind"
        assert "ndagent" not in machine.registry(SOURCE_KEY)
        assert "Neurodefender agent" not in machine.registry(UNINSTALL_KEY)
        assert not service_status(machine.wine), "the service is still there"
        assert machine.config.read_text() == edited


def _read_a_log_file(machine: Machine) -> None:
    """What an administrator does: edit the file that setup brought; the agent reloads by itself."""
    given = machine.config.read_text()
    web = "  web:\n    type: file\n    paths: ['C:\\msilogs\\web.log']\n    poll_interval: 200ms\n"
    assert "inputs:\n" in given
    machine.config.write_text(given.replace("inputs:\n", f"inputs:\n{web}", 1))


def _show_figures(machine: Machine, msi: Path) -> None:
    machine.ndagent("service", "stop")
    began = time.monotonic()
    said = machine.ndagent("service", "start")
    command_seconds = time.monotonic() - began
    assert "running" in said
    times = re.findall(r'"time":"([^"]+)".*?"message":"(ndagent \S+ starts as a service|ready: )', machine.words())
    print(f"\nmsi: {msi.stat().st_size / 1e6:.1f} MB; `service start`: {command_seconds:.1f} s; log: {times[-2:]}")


def test_the_tables_say_what_wixl_cannot(built: dict[str, Path]) -> None:
    """Hidden and secure properties, conditions, a configuration that stays: written in after wixl."""
    rows = {name: _table(built[OLD], name) for name in ("Property", "Component", "ServiceInstall", "ServiceControl")}
    assert re.search(r"MsiHiddenProperties\tENROLL_TOKEN\b", rows["Property"])
    assert re.search(r"SecureCustomProperties\t.*COLLECTOR_URL;ENROLL_TOKEN", rows["Property"])
    assert "ARPPRODUCTICON\tndagent.ico" in rows["Property"]
    assert re.search(r"^Configuration\t\{[^}]+\}\tDATADIR\t400\t", rows["Component"], re.MULTILINE)
    assert re.search(r"^SetupToken\t.*\tENROLL_TOKEN\t", rows["Component"], re.MULTILINE)
    assert "-B -m ndagent.winservice" in rows["ServiceInstall"]
    assert rows["Property"].count(build_msi._code("product", OLD)) == 1
    assert build_msi._code("product", NEW) in _table(built[NEW], "Property")
    sequence = dict(re.findall(r"^(\w+)\t[^\t]*\t(\d+)", _table(built[OLD], "InstallExecuteSequence"), re.MULTILINE))
    steps = ["InstallInitialize", "RemoveExistingProducts", "ProcessComponents", "InstallFiles", "InstallFinalize"]
    assert sorted(steps, key=lambda step: int(sequence[step])) == steps, "a failed upgrade leaves no agent"


def test_the_event_sources_texts_are_in_its_library(machine: Machine, tmp_path: Path) -> None:
    """Event Viewer shows the agent's words, not that it cannot find a description."""
    build_msi._messages(tmp_path, machine.wine.drive_c / "ndagent_messages.dll")
    program = (
        "import win32api, win32con, win32evtlogutil\n"
        "from ndagent.windows_log import _KINDS\n"
        "dll = win32api.LoadLibraryEx(r'C:\\ndagent_messages.dll', 0, win32con.LOAD_LIBRARY_AS_DATAFILE)\n"
        "flags = win32con.FORMAT_MESSAGE_FROM_HMODULE | win32con.FORMAT_MESSAGE_ARGUMENT_ARRAY\n"
        "print([win32api.FormatMessageW(flags, dll, number, 0, ['what happened']).strip() for *_, number in _KINDS])\n"
    )
    assert str(["what happened"] * 3) in machine.wine.python("-c", program).stdout


def test_a_signed_msi_verifies(built: dict[str, Path], tmp_path: Path) -> None:
    """With a certificate of our own making, up to itself."""
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=test",
         "-addext", "extendedKeyUsage=codeSigning", "-keyout", str(key), "-out", str(certificate)],
        check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    signed = tmp_path / "signed.msi"
    signed.write_bytes(built[OLD].read_bytes())
    build_msi.sign(signed, certificate, key=key, timestamp_url=None)
    verify = ["osslsigncode", "verify", "-ignore-crl", "-CAfile", str(certificate), "-in", str(signed)]
    assert subprocess.run(verify, capture_output=True, timeout=60, check=False).returncode == 0
    signed.write_bytes(signed.read_bytes().replace(b"Neurodefender", b"neurodefender"))
    assert subprocess.run(verify, capture_output=True, timeout=60, check=False).returncode != 0


def test_two_builds_of_one_tree_are_the_same_file(built: dict[str, Path], tmp_path: Path) -> None:
    """Whoever has the source can tell whether an msi was made of it."""
    build_msi.stage(tmp_path, archive=None, sha256=None)
    again = build_msi.pack(tmp_path, tmp_path / "dist", version=OLD)
    for name in ("Component", "Directory", "File", "_SummaryInformation"):  # these say more than bytes do
        assert _table(again, name) == _table(built[OLD], name), name
    assert again.read_bytes() == built[OLD].read_bytes()


def _table(msi: Path, name: str) -> str:
    command = ["msiinfo", "export", str(msi), name]
    return subprocess.run(command, capture_output=True, check=True, timeout=60).stdout.decode("utf-8", "replace")


def test_what_an_msi_carries_stands_beside_it(built: dict[str, Path]) -> None:
    """A valid bill of materials and the licences, of the wheels that were unpacked and the runtime, to be signed."""
    text = built[OLD].with_suffix(".cdx.json").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    parts = {part["name"]: part["version"] for part in json.loads(text)["components"]}
    locked = (PROJECT / "packaging/msi/requirements.lock").read_text()
    assert {f"{name}=={number}" for name, number in parts.items()} == {
        *re.findall(r"^\S+==\S+", locked, re.MULTILINE), f"CPython=={parts['CPython']}"
    }  # fmt: skip
    assert re.fullmatch(r"3\.11\.\d+", parts["CPython"])
    licences = built[OLD].with_suffix(".licences.txt").read_text()
    assert f"\ncryptography {parts['cryptography']}: " in licences
