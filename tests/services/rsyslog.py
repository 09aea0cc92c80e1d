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

# As a careful administrator has it: what was answered or read is in the file, not in a queue that a crash empties.
_RECEIVE = """
global(workDirectory="{directory}" maxMessageSize="64k"
    defaultNetstreamDriverCAFile="{ca}" defaultNetstreamDriverCertFile="{cert}" defaultNetstreamDriverKeyFile="{key}")
main_queue(queue.type="Direct")
template(name="raw" type="string" string="%rawmsg%\\n")
action(type="omfile" file="{file}" template="raw" asyncWriting="off" flushOnTXEnd="on" sync="{sync}")
"""
_RECEIVE_TLS = """
module(load="imtcp" streamDriver.name="{driver}" streamDriver.mode="1" streamDriver.authMode="x509/name"
    permittedPeer="{peer}")
input(type="imtcp" address="127.0.0.1" port="{port}")
"""
_RECEIVE_RELP = """
module(load="imrelp" tls.tlsLib="{library}")
input(type="imrelp" address="127.0.0.1" port="{port}" maxDataSize="64k" tls="{tls}" tls.authMode="name"
    tls.permittedPeer="{peer}" tls.caCert="{ca}" tls.myCert="{cert}" tls.myPrivKey="{key}")
"""


def tls_receiver(directory: Path, *, port: int, driver: str, pki: Mapping[str, Path], peer: str, file: Path) -> str:
    """Takes RFC 5425 from `peer` alone and writes each message as it came into `file`; `driver` is gtls or ossl."""
    receive = _RECEIVE_TLS.format(driver=driver, peer=peer, port=port)
    return _RECEIVE.format(directory=directory, file=file, sync="off", **pki) + receive


def relp_receiver(
    directory: Path,
    *,
    port: int,
    library: str | None,
    pki: Mapping[str, Path],
    peer: str,
    file: Path,
    synced: bool = False,
) -> str:
    """As tls_receiver, over RELP; `library` is gnutls or openssl, None for plain TCP. `synced`: before it answers."""
    receive = _RECEIVE.format(directory=directory, file=file, sync="on" if synced else "off", **pki)
    settings = {"port": port, "library": library or "openssl", "tls": "on" if library else "off", "peer": peer}
    return receive + _RECEIVE_RELP.format(**settings, **pki)


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
