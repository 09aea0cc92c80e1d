"""Fetches real counterparts of tests and benchmarks: Debian's rsyslog, syslog-ng, mosquitto, curl and so on, and Kafka.

Promises: packages are unpacked below `.test-services/` in the project's root, each service in a prefix of its own, and
nothing on the host changes (the loggers conflict in apt; the host's own logger stays), with one exception: Java and
Maven are used from the host, as a compiler would be, and installed there if they are missing and we are root.
Libraries that the host already has are used from the host. A second run finds the stamp and does nothing. What cannot
be had is one line.
Refuses: starting anything (see the module of each service), and any other source than the host's apt and Maven.

    python tests/services/fetch.py [SERVICE ...]

exits 0 where a service cannot be had (its tests are skipped and say why), unless services are required: `CI=true` or
`ND_REQUIRE_SERVICES=1`.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

ROOT = Path(__file__).resolve().parents[2] / ".test-services"
_HERE = Path(__file__).resolve().parent
_LIBRARY_DIRECTORIES = (
    "usr/lib/{triplet}", "lib/{triplet}", "usr/lib", "usr/lib/syslog-ng", "usr/lib/{triplet}/systemd",
    "lib/{triplet}/systemd",
)  # fmt: skip
_JAVA = {"java": "default-jre-headless", "mvn": "maven"}  # program: Debian's package


class ServiceMissingError(RuntimeError):
    """A counterpart that this machine cannot have; the message is one line and names the cause."""


@dataclass(frozen=True)
class Service:
    """One counterpart: the Debian packages asked for, and the program that proves they are there."""

    name: str
    packages: tuple[str, ...]
    program: str  # below the prefix
    version_option: str
    version_status: int = 0  # what it exits with after that

    @property
    def prefix(self) -> Path:
        """Where its packages are unpacked."""
        return ROOT / self.name

    def path(self, *parts: str) -> Path:
        """A file below the prefix; `{triplet}` stands for Debian's name of the machine's architecture."""
        return self.prefix.joinpath(*(part.format(triplet=_triplet()) for part in parts))

    def environment(self) -> dict[str, str]:
        """The environment in which the unpacked programs find the unpacked libraries."""
        libraries = [str(self.path(directory)) for directory in _LIBRARY_DIRECTORIES]
        return {**os.environ, "LD_LIBRARY_PATH": ":".join(libraries)}

    @property
    def stamp(self) -> Path:
        """There once it was fetched whole."""
        return self.prefix / ".complete"


@dataclass(frozen=True)
class Jars:
    """A counterpart written in Java: what its pom.xml names, with all that this depends on."""

    name: str
    pom: Path

    @property
    def prefix(self) -> Path:
        """Where its jars lie."""
        return ROOT / self.name

    @property
    def stamp(self) -> Path:
        """There once it was fetched whole; another pom has another."""
        return self.prefix / f".complete-{hashlib.sha256(self.pom.read_bytes()).hexdigest()[:12]}"

    @property
    def classpath(self) -> str:
        """For `java -cp`."""
        return ":".join(map(str, sorted(self.prefix.glob("*.jar"))))


RSYSLOG = Service("rsyslog", ("rsyslog", "rsyslog-gnutls", "rsyslog-openssl"), "usr/sbin/rsyslogd", "-v")
RSYSLOG_RELP = Service("rsyslog-relp", (*RSYSLOG.packages, "rsyslog-relp"), "usr/sbin/rsyslogd", "-v")
SYSLOG_NG = Service("syslog-ng", ("syslog-ng-core",), "usr/sbin/syslog-ng", "-V")
STUNNEL = Service("stunnel", ("stunnel4",), "usr/bin/stunnel4", "-version")
MOSQUITTO = Service("mosquitto", ("mosquitto", "mosquitto-clients"), "usr/bin/mosquitto_pub", "--version", 1)
JOURNALD = Service("journald", ("systemd",), "bin/journalctl", "--version")
TOOLS = Service("tools", ("curl", "zstd"), "usr/bin/curl", "--version")
SOFTFLOWD = Service("softflowd", ("softflowd",), "usr/sbin/softflowd", "-h")
NFDUMP = Service("nfdump", ("nfdump",), "usr/bin/nfcapd", "-V")
POSTGRESQL = Service("postgresql", ("postgresql-15",), "usr/lib/postgresql/15/bin/postgres", "--version")
SNMP = Service("snmp", ("snmp", "snmpd"), "usr/bin/snmptrap", "-V")
NFTABLES = Service("nftables", ("nftables",), "usr/sbin/nft", "--version")
KAFKA = Jars("kafka", _HERE / "kafka.pom.xml")
CONNECT_JDBC = Jars("connect-jdbc", _HERE / "connect_jdbc.pom.xml")
OPENSEARCH = Jars("opensearch", _HERE / "opensearch.pom.xml")
_ALL = (
    RSYSLOG, RSYSLOG_RELP, SYSLOG_NG, STUNNEL, MOSQUITTO, JOURNALD, TOOLS, SOFTFLOWD, NFDUMP, SNMP, POSTGRESQL,
    NFTABLES, KAFKA, CONNECT_JDBC, OPENSEARCH,
)  # fmt: skip
SERVICES: dict[str, Service | Jars] = {service.name: service for service in _ALL}
_Any = TypeVar("_Any", bound=Service | Jars)


def required() -> bool:
    """Whether a missing service is a failure rather than a skip."""
    return os.environ.get("CI") == "true" or os.environ.get("ND_REQUIRE_SERVICES") == "1"


def together(*services: Service) -> dict[str, str]:
    """An environment in which the programs of all of them are found, before the host's."""
    libraries = ":".join(service.environment()["LD_LIBRARY_PATH"] for service in services)
    programs = ":".join(str(service.path("usr/bin")) for service in services)
    return {**os.environ, "LD_LIBRARY_PATH": libraries, "PATH": f"{programs}:{os.environ['PATH']}"}


def ensure(service: _Any) -> _Any:
    """The service, unpacked; fetched first where it is not. Raises ServiceMissingError."""
    if service.stamp.exists():
        return service
    ROOT.mkdir(exist_ok=True)
    with (ROOT / ".lock").open("w") as lock:  # parallel test workers fetch once
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not service.stamp.exists():
            shutil.rmtree(service.prefix, ignore_errors=True)
            if isinstance(service, Jars):
                _fetch_jars(service)
            else:
                _fetch_packages(service)
            service.stamp.touch()
    return service


def _fetch_jars(service: Jars) -> None:
    """Let Maven copy the jars; there must be a Java to run them."""
    missing = [package for program, package in _JAVA.items() if not shutil.which(program)]
    install = ["apt-get", "install", "-q", "-y", "--no-install-recommends", *missing]
    if missing and os.geteuid() == 0 and shutil.which("apt-get"):
        _apt(["apt-get", "-q", "update"])
        _apt(install)
    if not all(map(shutil.which, _JAVA)):
        raise ServiceMissingError(f"{service.name}: needs Java and Maven; as root: {' '.join(install)}")
    service.prefix.mkdir(parents=True)
    goal = ["mvn", "--batch-mode", "--quiet", "--file", str(service.pom), "dependency:copy-dependencies"]
    _run(service, [*goal, f"-DoutputDirectory={service.prefix}"])


def _fetch_packages(service: Service) -> None:
    """Download what the host has not, unpack it, and see that the program runs."""
    if not shutil.which("apt-get") or not shutil.which("dpkg"):
        raise ServiceMissingError(f"{service.name}: needs Debian's apt-get and dpkg, which this machine has not")
    downloads = service.prefix / "downloads"
    downloads.mkdir(parents=True)
    wanted = _with_dependencies(service)
    _run(service, ["apt-get", *_unsandboxed(), "-q", "download", *wanted], cwd=downloads)
    for package in sorted(downloads.glob("*.deb")):
        _run(service, ["dpkg", "-x", str(package), str(service.prefix)])
    shutil.rmtree(downloads)
    command = [str(service.path(service.program)), service.version_option]
    _run(service, command, env=service.environment(), status=service.version_status)


def _with_dependencies(service: Service) -> list[str]:
    """The packages asked for, and those they need that the host has not."""
    simulate = ["apt-get", "--simulate", "--no-install-recommends", "install", *service.packages]
    result = _apt(simulate)
    if result.returncode and os.geteuid() == 0:  # the usual cause: no package lists yet
        _apt(["apt-get", "-q", "update"])
        result = _apt(simulate)
    if result.returncode:
        remedy = "" if os.geteuid() == 0 else "; as root: apt-get update"
        raise ServiceMissingError(f"{service.name}: apt-get knows no such package: {_last_line(result)}{remedy}")
    missing = {line.split()[1] for line in result.stdout.splitlines() if line.startswith("Inst ")}
    return sorted(missing.union(service.packages))


def _apt(command: Sequence[str]) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=False)


def _run(
    service: Service | Jars,
    command: list[str],
    *,
    cwd: Path | None = None,
    env: dict[str, str] | None = None,
    status: int = 0,
) -> None:
    result = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=300, check=False)
    if result.returncode != status:
        raise ServiceMissingError(f"{service.name}: {command[0]} failed: {_last_line(result)}")


def _last_line(result: "subprocess.CompletedProcess[str]") -> str:
    return (result.stderr.strip() or result.stdout.strip() or f"exit {result.returncode}").splitlines()[-1]


def _unsandboxed() -> list[str]:
    """As root, apt downloads as user _apt, which cannot write below a home directory."""
    return ["-o", "APT::Sandbox::User=root"] if os.geteuid() == 0 else []


def _triplet() -> str:
    return f"{os.uname().machine}-linux-gnu"


def main(names: Sequence[str]) -> int:
    """Fetch the services named, or all; 1 if one that is required could not be had."""
    failed = 0
    for name in names or SERVICES:
        try:
            print(f"{name}: {ensure(SERVICES[name]).prefix}")
        except ServiceMissingError as error:
            print(f"fetch: {error}", file=sys.stderr)
            failed = int(required())
    return failed


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
