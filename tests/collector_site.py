"""A collector with the built-in PKI, and devices that speak to it over real mutual TLS."""

import json
import socket
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from collector_process import ROOT, Certificates, CollectorProcess

from ndcollector import pki


class Site:
    """One collector, its PKI directory, and the devices that belong to it."""

    def __init__(self, directory: Path, **settings: Any) -> None:
        self.pki = directory / "pki"
        server = pki.Subject("server", "collector-1", dns=("localhost",), ips=("127.0.0.1",))
        pki.init(self.pki, server, now=datetime.now(UTC))
        files = Certificates(
            ca=self.pki / "ca.crt", server_cert=self.pki / "server.crt", server_key=self.pki / "server.key",
            client_cert=self.pki / "unused.crt", client_key=self.pki / "unused.key",
        )
        self.collector = CollectorProcess(directory, files, settings=settings)

    def context(self, device: str) -> ssl.SSLContext:
        """The TLS context of a device; its certificate is issued the first time."""
        certificate = self.pki / "issued" / f"device-{device}.crt"
        if not certificate.exists():
            pki.issue(self.pki, pki.Subject("device", device), now=datetime.now(UTC))
        context = ssl.create_default_context(cafile=str(self.pki / "ca.crt"))
        context.load_cert_chain(certificate, certificate.with_suffix(".key"))
        return context

    def connect(self, device: str = "fw-1", *, port: int | None = None) -> ssl.SSLSocket:
        """A device's open connection."""
        raw = socket.create_connection(("127.0.0.1", port or self.collector.ports[0]), timeout=10)
        return self.context(device).wrap_socket(raw, server_hostname="localhost")

    def send(self, count: int, *, device: str = "fw-1", first: int = 0) -> None:
        """Send numbered messages on a connection of their own, and close it in good order."""
        with self.connect(device) as connection:
            connection.sendall(messages(count, first=first))
            connection.unwrap()

    def change(self, edit: Callable[[dict[str, Any]], None]) -> None:
        """Edit the configuration file as a person would: the daemon sees a saved file."""
        config = yaml.safe_load(self.collector.config.read_text())
        edit(config)
        replacement = self.collector.config.with_suffix(".new")
        replacement.write_text(yaml.safe_dump(config, sort_keys=False))
        replacement.replace(self.collector.config)

    def command(self, *words: str) -> "subprocess.CompletedProcess[str]":
        """Run `ndcollector … -c <this configuration>`."""
        command = [sys.executable, "-m", "ndcollector", *words, "-c", str(self.collector.config)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT, check=False)

    def log(self) -> list[dict[str, Any]]:
        """What the daemon has said, a JSON object a line."""
        lines = self.collector.process.log.read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    def wait_for_log(self, text: str) -> None:
        """Wait until the daemon has said this."""
        said = self.collector.process.log.read_text
        self.collector.process.wait_until(lambda: text in said(), f"log line with {text!r}", 15)

    def wait_for_metric(self, name: str, value: float) -> None:
        """Wait until a sample has this value."""
        self.collector.process.wait_until(
            lambda: self.collector.metrics().get(name) == value, f"{name} == {value}", 15
        )

    def not_ready(self) -> list[str]:
        """Why data would not be taken now, as the readiness door says it."""
        url = f"http://127.0.0.1:{self.collector.admin_port}/ready"
        try:
            with urllib.request.urlopen(url, timeout=10) as reply:
                reasons: list[str] = json.load(reply)["reasons"]
        except urllib.error.HTTPError as error:
            with error:
                reasons = json.load(error)["reasons"]
        return reasons

    def numbers(self, path: Path | None = None) -> list[int]:
        """The numbers of the messages delivered to the file, in its order."""
        lines = (path or self.collector.output).read_bytes().splitlines()
        return [int(json.loads(line)["message"].removeprefix("number ")) for line in lines]


def messages(count: int, *, first: int = 0) -> bytes:
    """`count` RFC 5424 messages, one a line, numbered from `first`."""
    head = b"<34>1 2026-11-23T22:14:15.003Z host app 7 - - number"
    return b"".join(b"%s %d\n" % (head, number) for number in range(first, first + count))
