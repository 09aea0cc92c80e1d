"""Debian's rsyslog as a real client of ours, and as the contender of the benchmarks.

Promises: configurations as a careful administrator writes them, and a process that runs one from its own directory.
"""

from collections.abc import Mapping
from pathlib import Path

from services import fetch
from services.process import ServiceProcess, listens

_CLIENT = """
global(workDirectory="{directory}" maxMessageSize="64k" defaultNetstreamDriver="{driver}"
    defaultNetstreamDriverCAFile="{ca}" defaultNetstreamDriverCertFile="{cert}" defaultNetstreamDriverKeyFile="{key}")
module(load="imptcp")
input(type="imptcp" address="127.0.0.1" port="{port}")
action(type="omfwd" target="127.0.0.1" port="{target}" protocol="tcp" tcp_framing="{framing}"
    streamDriver="{driver}" streamDriverMode="1" streamDriverAuthMode="x509/name" streamDriverPermittedPeers="{peer}"
    template="RSYSLOG_SyslogProtocol23Format" action.resumeInterval="1" action.resumeRetryCount="-1")
"""


def client_config(
    directory: Path, *, port: int, target: int, driver: str, pki: Mapping[str, Path], peer: str, framing: str
) -> str:
    """Takes plain syslog on `port`, forwards it over mTLS to `target`; `driver` is gtls or ossl."""
    return _CLIENT.format(directory=directory, port=port, target=target, driver=driver, peer=peer, framing=framing, **pki)


def start(config: str, directory: Path, *, port: int, name: str = "rsyslog") -> ServiceProcess:
    """rsyslogd with this configuration, listening on `port`. Raises ServiceMissingError."""
    service = fetch.ensure(fetch.RSYSLOG)
    file = directory / f"{name}.conf"
    file.write_text(config)
    modules = service.path("usr/lib/{triplet}/rsyslog")
    program = service.path(service.program)
    pid_file = directory / f"{name}.pid"
    command = [program, "-n", "-f", file, "-i", pid_file, "-M", modules]
    process = ServiceProcess(name, command, directory=directory, environment=service.environment())
    try:
        process.wait_until(listens(port), f"listener on {port}")
    except AssertionError:
        process.stop()
        raise
    return process
