"""Debian's stunnel: gives a client certificate to real clients that have no option for one (loggen 3.38)."""

from collections.abc import Mapping
from pathlib import Path

from services import fetch
from services.process import ServiceProcess, listens

_CONFIG = """
foreground = yes
pid =
[collector]
client = yes
accept = 127.0.0.1:{port}
connect = 127.0.0.1:{target}
CAfile = {ca}
cert = {cert}
key = {key}
verifyChain = yes
checkHost = localhost
"""


def start(directory: Path, *, port: int, target: int, pki: Mapping[str, Path]) -> ServiceProcess:
    """Takes plain TCP on `port` and carries it over mTLS to `target`. Raises ServiceMissingError."""
    service = fetch.ensure(fetch.STUNNEL)
    file = directory / "stunnel.conf"
    file.write_text(_CONFIG.format(port=port, target=target, **pki))
    command = [service.path(service.program), file]
    process = ServiceProcess("stunnel", command, directory=directory, environment=service.environment())
    return process.until_ready(listens(port), f"listener on {port}")
