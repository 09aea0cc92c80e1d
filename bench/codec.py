"""What one event costs in the codec: framing and decoding into full ECS lines, both twins, one thread, no I/O.

    python bench/codec.py [--seconds 0.5]

Prints nanoseconds per event, the best of many batches of 1000 (the machine's noise only ever adds), and the bytes an
event becomes. `frame` is Framer.feed in reads of 64 KiB, `decode` is the body of the record those chunks make. The last
rows are with `decode.devices: auto`: a message that no family knows, and such that one does (docs/devices.md).
"""

import argparse
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any

from ndagent.wire import decoder, framing
from ndagent.wire.codec import codec_name
from ndagent.wire.devices import FAMILIES
from ndagent.wire.ecs import DecodeSettings
from ndagent.wire.record import Batch, Origin, Section, pack_body

MESSAGES = 1000
READ_BYTES = 65536
RECEIVED_AT_NS = 1_710_504_000_123_456_000
ORIGIN = Origin("syslog_tls", "192.0.2.50", 51022, "CN=web-17,O=Example", "0AFF", ("URI:nd:device:web-17",))
HEADER = b"<165>1 2024-03-15T11:59:59.003123Z web-17.example.com nginx 8710 ID47 "
DATA = b'[exampleSDID@32473 iut="3" eventSource="Application" eventID="1011"] '
TEXT = b"GET /index.html HTTP/1.1 200 1532 from 192.0.2.17 to upstream 10.0.0.5:8080 in 12 ms" + b"." * 40
KINDS = {
    "RFC 5424, 226 bytes, one SD element": (HEADER + DATA + TEXT)[:226],
    "RFC 5424, no structured data": HEADER + b"- " + TEXT,
    "RFC 5424, offset, escapes in values": HEADER.replace(b"Z ", b"+02:00 ", 1)
    + b'[x@1 a="\\"q\\"" b="c:\\\\d" a="2"] a "quoted" text\twith\ttabs',
    "RFC 3164, sshd": b"<38>Mar 15 11:59:58 bastion sshd[20541]: Accepted publickey for ada from 192.0.2.10 port 51022",
    "Cisco ASA": b"<166>Mar 15 2024 11:59:00 fw01 : %ASA-6-302013: Built outbound TCP connection 1 for outside:192",
    "Cisco IOS": b"<189>000123: *Mar  1 00:00:00.123 CET: %SYS-5-CONFIG_I: Configured from console by console",
    "PAN-OS": b"<14>Mar 15 11:59:00 PA-3220 1,2024/03/15 11:59:00,0123456789,TRAFFIC,end,2560" + b",10.0.0.1" * 25,
    "FortiGate": b'<189>date=2024-03-15 time=12:59:00 devname="FG-100F" devid="FG100F" tz="+0100" ' + b'k="value" ' * 9,
    "Latin-1": b"<13>Mar 15 11:59:00 h t: Z\xfcrich " + b"x" * 60,
    "gibberish": b"<999>" + bytes(range(11, 256)),
}

ASA = (
    b"<166>Mar 15 2024 11:59:00 fw01 : %ASA-6-302013: Built outbound TCP connection 447236 for outside:192.0.2.222/80 "
)
PAN = b"<14>Mar 15 11:59:00 PA 1,2024/03/15 11:59:00,0123,TRAFFIC,end,2561,2024/03/15 11:58:58,10.0.0.1,192.0.2.44"
FORTIGATE = b'<189>date=2024-03-15 time=12:59:00 devname="FG" devid="FG1" tz="+0100" logid="0000000013" type="traffic" '
LOOKED_FOR = {
    "of no family, RFC 5424 of 226 bytes": KINDS["RFC 5424, 226 bytes, one SD element"],
    "Cisco ASA 302013": ASA + b"(192.0.2.222/80) to inside:192.168.1.34/13526 (203.0.113.9/30001)",
    "PAN-OS traffic": PAN
    + b",0.0.0.0,0.0.0.0,rule,,,ssl,vsys1,in,out,eth1/1,eth1/2,log,,7,1,49583,443,0,0,0x40,tcp,allow,7312,2228,5084",
    "FortiGate traffic, 20 pairs": FORTIGATE
    + b"srcip=10.1.1.1 srcport=58012 dstip=192.0.2.1 dstport=443 proto=6 action=close policyid=1 service=HTTPS "
    + b"sentbyte=1850 rcvdbyte=39898 sentpkt=25 rcvdpkt=37 sessionid=105048",
    "sshd, a login": b"<38>Mar 15 11:59:58 h sshd[2054]: Accepted password for ada from 192.0.2.10 port 51022 ssh2",
}


def best_ns(work: Callable[[], Any], seconds: float) -> float:
    """Nanoseconds per event of the fastest run within that time."""
    best, until = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < until:
        started = time.perf_counter_ns()
        work()
        best = min(best, time.perf_counter_ns() - started)
    return best / MESSAGES


def measure(
    message: bytes, twin: tuple[Any, Any], seconds: float, devices: tuple[str, ...] = ()
) -> tuple[float, float, float]:
    """Framing and decoding in nanoseconds per event, and bytes out per event."""
    framer_class, decoder_class = twin
    stream = (b"%d %b" % (len(message), message)) * MESSAGES

    def frame() -> list[framing.Chunk]:
        framer = framer_class(65536)
        view = memoryview(stream)
        chunks = [chunk for at in range(0, len(view), READ_BYTES) for chunk in framer.feed(view[at : at + READ_BYTES])]
        return [*chunks, *framer.close()]

    chunks = frame()
    sections = [Section(ORIGIN, chunk.framing, chunk.flags, len(chunk.payload), chunk.count) for chunk in chunks]
    batch = Batch("security_events", "syslog", RECEIVED_AT_NS, sections, [chunk.payload for chunk in chunks])
    body = b"".join(pack_body(batch))
    decode = decoder_class(DecodeSettings("collector-1", devices=devices)).decode
    given = {"stream": "s", "spool_id": "4zj0v8k2p6x1q9w7", "sequence": 10**9, "received_at_ns": RECEIVED_AT_NS}
    events = decode(body, **given)
    assert len(events) == MESSAGES
    return best_ns(frame, seconds), best_ns(lambda: decode(body, **given), seconds), len(events.ndjson) / MESSAGES


def main() -> None:
    """Print the table."""
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("--seconds", type=float, default=0.5, help="time for each figure")
    seconds = arguments.parse_args().seconds
    twins: dict[str, tuple[Any, Any]] = {"pure": (framing.Framer, decoder.Decoder)}
    if codec_name() == "compiled":
        compiled = import_module("ndagent.wire._codec")
        twins = {"compiled": (compiled.Framer, compiled.Decoder), **twins}
    columns = "".join(f"{name + ' frame':>16}{'decode':>9}{'sum':>9}" for name in twins)
    print(f"{'ns per event':42}{'bytes':>6}{'out':>6}{columns}")
    rows: list[tuple[str, bytes, tuple[str, ...]]] = [(kind, message, ()) for kind, message in KINDS.items()]
    rows += [(f"auto: {kind}", message, FAMILIES) for kind, message in LOOKED_FOR.items()]
    for kind, message, devices in rows:
        row = f"{kind:42}{len(message):6}"
        for index, twin in enumerate(twins.values()):
            frame, decode, size = measure(message, twin, seconds, devices)
            row += (f"{size:6.0f}" if index == 0 else "") + f"{frame:16.0f}{decode:9.0f}{frame + decode:9.0f}"
        print(row, flush=True)


if __name__ == "__main__":
    main()
