"""Debian's Net-SNMP: snmptrap and snmpinform as real senders, snmpd as a real device that answers.

Promises: nothing of the host's configuration is read and nothing below its home or state is written: each run has a
persistent directory of its own, in which Net-SNMP keeps its engine id and boots.
"""

import subprocess
from collections.abc import Sequence
from pathlib import Path

from services import fetch
from services.process import ServiceProcess

UP_TIME, TRAP_OID = "1.3.6.1.2.1.1.3.0", "1.3.6.1.6.3.1.1.4.1.0"
LINK_DOWN = "1.3.6.1.6.3.1.1.5.3"
IF_INDEX, IF_DESCR, IF_ADMIN = "1.3.6.1.2.1.2.2.1.1", "1.3.6.1.2.1.2.2.1.2", "1.3.6.1.2.1.2.2.1.7"


def environment(directory: Path) -> dict[str, str]:
    """For Net-SNMP's programs, with `directory` as their home, configuration and state."""
    found = fetch.SNMP.environment()
    here = str(directory)
    return {**found, "HOME": here, "SNMPCONFPATH": here, "SNMP_PERSISTENT_DIR": here, "MIBS": ""}


def v3(user: str, auth: tuple[str, str] | None, privacy: tuple[str, str] | None = None) -> list[str]:
    """Options of a user with (protocol, password) of each kind."""
    level = "authPriv" if privacy else "authNoPriv" if auth else "noAuthNoPriv"
    words = ["-v", "3", "-u", user, "-l", level]
    words += ["-a", auth[0], "-A", auth[1]] if auth else []
    return words + (["-x", privacy[0], "-X", privacy[1]] if privacy else [])


def run(
    program: str, options: Sequence[str], words: Sequence[str], *, directory: Path, port: int
) -> "subprocess.CompletedProcess[str]":
    """One of its programs to its end."""
    fetch.ensure(fetch.SNMP)
    (directory / "cert_indexes").mkdir(exist_ok=True)  # else its first word is that it made this
    command = [str(fetch.SNMP.path("usr/bin", program)), *options, f"127.0.0.1:{port}", *words]
    return subprocess.run(
        command, env=environment(directory), capture_output=True, text=True, timeout=60, check=False
    )


def start(program: str, options: Sequence[str], words: Sequence[str], *, directory: Path, port: int) -> ServiceProcess:
    """One of its programs, left running."""
    fetch.ensure(fetch.SNMP)
    command = [fetch.SNMP.path("usr/bin", program), *options, f"127.0.0.1:{port}", *words]
    return ServiceProcess(program, command, directory=directory, environment=environment(directory))


def snmpd(configuration: str, *, directory: Path, port: int) -> ServiceProcess:
    """snmpd in the foreground, listening there; returns once it says so."""
    fetch.ensure(fetch.SNMP)
    file = directory / "snmpd-test.conf"
    file.write_text(configuration)
    command: list[str | Path] = [
        fetch.SNMP.path("usr/sbin/snmpd"), "-f", "-Lo", "-C", "-c", file, "-I", "-smux", "-p", directory / "snmpd.pid",
        f"udp:127.0.0.1:{port}",
    ]  # fmt: skip
    process = ServiceProcess("snmpd", command, directory=directory, environment=environment(directory))
    return process.until_ready(lambda: "NET-SNMP version" in process.tail(), "word that it runs")
