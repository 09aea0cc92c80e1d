"""A device that sends numbered syslog over TLS, one connection after another, until SIGTERM; a process of its own.

    chaos_sender.py NAME HOST PORT PKI SEED JOURNAL      PKI has ca.crt, client.crt and client.key

Each connection gets a key (`NAME.3`), its messages numbers from 0: `id NAME.3.17; text…`. JOURNAL gets a JSON line for
each connection that ended: `key`, `count` (messages whose first byte was sent), `opened` and `closed` (CLOCK_MONOTONIC,
the same for all processes of a machine) and `how`:

    clean    the device said close_notify and the collector answered with its own, which it does when it has read all
    rude     the device ended the connection without a word, on purpose, perhaps within a message
    broken   the network or the collector did

Refuses: sending anything twice. Syslog has no acknowledgement; what that means for the account stands in chaos_account.
"""

import json
import random
import signal
import socket
import ssl
import sys
import time
from pathlib import Path
from threading import Event

EVENTS_PER_SECOND = 150
_PACE_SECONDS = 0.02
_PATIENCE_SECONDS = 10.0
_RUDE_CHANCE = 0.15


def frame(key: str, number: int, chance: random.Random) -> bytes:
    """One RFC 5424 message in octet counting."""
    text = "text " * chance.randrange(40)
    message = f"<13>1 2026-11-25T14:39:07Z {key.partition('.')[0]} app - - - id {key}.{number}; {text}"
    return f"{len(message)} {message}".encode()


class Device:
    """See the module."""

    def __init__(self, name: str, address: tuple[str, int], pki: Path, seed: int, journal: Path) -> None:
        self._name = name
        self._address = address
        self._chance = random.Random(f"{seed} {name}")
        self._journal = journal.open("a", buffering=1)
        self._context = ssl.create_default_context(cafile=str(pki / "ca.crt"))
        self._context.load_cert_chain(pki / "client.crt", pki / "client.key")
        self._connections = 0
        self.stopped = Event()

    def run(self) -> None:
        """Until stopped; then what is begun is ended in good order."""
        while not self.stopped.is_set():
            try:
                raw = socket.create_connection(self._address, timeout=_PATIENCE_SECONDS)
                with raw, self._context.wrap_socket(raw, server_hostname="localhost") as connection:
                    self._connections += 1
                    self._use(connection, f"{self._name}.{self._connections}")
            except OSError:
                self.stopped.wait(self._chance.uniform(0.05, 0.3))

    def _use(self, connection: ssl.SSLSocket, key: str) -> None:
        opened, sent, how = time.monotonic(), [0], "broken"
        rudely = self._chance.random() < _RUDE_CHANCE
        try:
            self._stream(connection, key, sent, cut=rudely)
            if rudely:
                how = "rude"
                return
            connection.settimeout(_PATIENCE_SECONDS)
            connection.unwrap()
            how = "clean"
        finally:
            entry = {"key": key, "count": sent[0], "opened": opened, "closed": time.monotonic(), "how": how}
            self._journal.write(json.dumps(entry) + "\n")

    def _stream(self, connection: ssl.SSLSocket, key: str, sent: list[int], *, cut: bool) -> None:
        """Some seconds of messages at a steady pace, in writes that end anywhere; `sent` grows before the bytes go."""
        lasts, rest, began = self._chance.uniform(0.3, 4.0), b"", time.monotonic()
        while (now := time.monotonic()) - began < lasts and not self.stopped.is_set():
            due = int((now - began) * EVENTS_PER_SECOND)
            data = rest + b"".join(frame(key, number, self._chance) for number in range(sent[0], due))
            at = max(len(data) - self._chance.randrange(60), 0)
            sent[0] = max(sent[0], due)
            connection.sendall(data[:at])
            rest = data[at:]
            self.stopped.wait(_PACE_SECONDS)
        if not cut:
            connection.sendall(rest)


def main() -> None:
    """See the module."""
    name, host, port, pki, seed, journal = sys.argv[1:]
    device = Device(name, (host, int(port)), Path(pki), int(seed), Path(journal))
    signal.signal(signal.SIGTERM, lambda *_: device.stopped.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the driver's to answer
    device.run()


if __name__ == "__main__":
    main()
