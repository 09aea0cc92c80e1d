"""Debian's mosquitto: its command-line clients as real agents of ours, its broker as a customer's.

Promises: clients and broker run from their own directory, with mutual TLS where certificates are given. Refuses: state.
"""

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from services import fetch
from services.process import ServiceProcess, listens

_BROKER = """
user root
per_listener_settings false
listener {port} 127.0.0.1
allow_anonymous true
persistence {persistence}
persistence_location {directory}/
autosave_on_changes true
autosave_interval 1
max_inflight_messages 0
max_queued_messages 0
"""
_TLS = """
cafile {ca}
certfile {cert}
keyfile {key}
require_certificate true
use_identity_as_username true
"""


def client(program: str, *, port: int, pki: Mapping[str, Path], version: str = "mqttv5") -> list[str]:
    """The beginning of a command: mosquitto_pub or mosquitto_sub against `localhost`, with this certificate."""
    files = ["--cafile", str(pki["ca"]), "--cert", str(pki["cert"]), "--key", str(pki["key"])]
    address = ["-h", "localhost", "-p", str(port)]
    return [str(fetch.MOSQUITTO.path("usr/bin", program)), *address, *files, "-V", version]


def publish(
    *arguments: str, port: int, pki: Mapping[str, Path], version: str = "mqttv5", stdin: bytes = b""
) -> "subprocess.CompletedProcess[bytes]":
    """mosquitto_pub to its end."""
    command = [*client("mosquitto_pub", port=port, pki=pki, version=version), *arguments]
    environment = fetch.MOSQUITTO.environment()
    return subprocess.run(command, input=stdin, capture_output=True, timeout=60, env=environment, check=False)


def publish_plain(port: int, topic: str = "test", payload: str = "x") -> None:
    """Publish at QoS 1 over plain TCP; the broker has dealt with everything that came before when this returns."""
    program = str(fetch.MOSQUITTO.path("usr/bin/mosquitto_pub"))
    command = [program, "-h", "127.0.0.1", "-p", str(port), "-V", "mqttv5", "-q", "1", "-t", topic, "-m", payload]
    subprocess.run(command, timeout=60, env=fetch.MOSQUITTO.environment(), check=True)


def hash_passwords(file: Path) -> None:
    """Turn a file of `name:password` lines into what `password_file` wants."""
    program = str(fetch.MOSQUITTO.path("usr/bin/mosquitto_passwd"))
    subprocess.run([program, "-U", str(file)], timeout=60, env=fetch.MOSQUITTO.environment(), check=True)


def run(command: Sequence[str], directory: Path, *, name: str = "mosquitto_client") -> ServiceProcess:
    """A client's command (see `client`) in the background; what it says is in its log."""
    return ServiceProcess(name, command, directory=directory, environment=fetch.MOSQUITTO.environment())


def broker(
    directory: Path,
    *,
    port: int,
    pki: Mapping[str, Path] | None = None,
    persistence: bool = True,
    extra: Sequence[str] = (),
    name: str = "mosquitto",
) -> ServiceProcess:
    """The broker on `port`; plain TCP without `pki`. Raises ServiceMissingError."""
    service = fetch.ensure(fetch.MOSQUITTO)
    config = _BROKER.format(port=port, persistence=str(persistence).lower(), directory=directory)
    if pki is not None:
        config += _TLS.format(**pki)
    file = directory / f"{name}.conf"
    file.write_text(config + "\n".join(extra) + "\n")
    command = [service.path("usr/sbin/mosquitto"), "-c", file]
    process = ServiceProcess(name, command, directory=directory, environment=service.environment())
    return process.until_ready(listens(port), f"listener on {port}")
