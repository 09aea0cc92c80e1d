"""Debian's rsyslog as a real client of ours, and as the contender of the benchmarks.

Promises: configurations as a careful administrator writes them, and a process that runs one from its own directory.
"""

from collections.abc import Mapping
from pathlib import Path

from services import fetch
from services.process import ServiceProcess, listens

_LOCAL = """
global(workDirectory="{directory}" maxMessageSize="64k")
main_queue(queue.workerThreads="1")  # more of them would reorder messages before they are sent
module(load="imptcp")
input(type="imptcp" address="127.0.0.1" port="{port}")
"""
_FORWARD = """
global(defaultNetstreamDriver="{driver}" defaultNetstreamDriverCAFile="{ca}"
    defaultNetstreamDriverCertFile="{cert}" defaultNetstreamDriverKeyFile="{key}")
action(type="omfwd" target="127.0.0.1" port="{target}" protocol="tcp" tcp_framing="{framing}"
    streamDriver="{driver}" streamDriverMode="1" streamDriverAuthMode="x509/name" streamDriverPermittedPeers="{peer}"
    template="RSYSLOG_SyslogProtocol23Format" action.resumeInterval="1" action.resumeRetryCount="-1")
"""


def local_input(directory: Path, *, port: int) -> str:
    """Takes plain syslog, one message a line, on `port`."""
    return _LOCAL.format(directory=directory, port=port)


def client_config(
    directory: Path, *, port: int, target: int, driver: str, pki: Mapping[str, Path], peer: str, framing: str
) -> str:
    """Takes plain syslog on `port`, forwards it over mTLS to `target`; `driver` is gtls or ossl."""
    forward = _FORWARD.format(target=target, driver=driver, peer=peer, framing=framing, **pki)
    return local_input(directory, port=port) + forward


def start(
    config: str, directory: Path, *, port: int, name: str = "rsyslog", service: fetch.Service = fetch.RSYSLOG
) -> ServiceProcess:
    """rsyslogd with this configuration, listening on `port`. Raises ServiceMissingError."""
    fetch.ensure(service)
    file = directory / f"{name}.conf"
    file.write_text(config)
    modules = service.path("usr/lib/{triplet}/rsyslog")
    program = service.path(service.program)
    pid_file = directory / f"{name}.pid"
    command: list[str | Path] = [program, "-n", "-f", file, "-i", pid_file, "-M", modules]
    process = ServiceProcess(name, command, directory=directory, environment=service.environment())
    return process.until_ready(listens(port), f"listener on {port}")
