"""Who is measured: our collector as shipped, and Debian's rsyslog and syslog-ng writing the same fields.

Promises: all three terminate TLS 1.3 with the same certificates, require the client's, take octet-counted RFC 5424 and
write one JSON object a line with the fields of our default output; each runs as a fresh process in a fresh directory.
The contenders keep their queue in memory and do not fsync; ours spools with fsync on, as by default. Where they cannot
give a field of ours (event.id and event.sequence, source.port, the client's serial number) their line goes without,
and structured data stays text: the comparison leans their way. rsyslog's queue is set to what was fastest here
(two workers, large batches; its defaults are slower), at the price of messages out of order.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from collector_process import Certificates, CollectorProcess
from services import rsyslog, syslog_ng
from services.process import ServiceProcess, free_port

RSYSLOG_INTO_FILE = """
template(name="ecs" type="list" option.jsonf="on") {{
    property(outname="@timestamp" name="timereported" dateFormat="rfc3339" date.inUTC="on" format="jsonf")
    constant(outname="ecs.version" value="8.17.0" format="jsonf")
    property(outname="message" name="msg" format="jsonf")
    property(outname="host.hostname" name="hostname" format="jsonf")
    property(outname="host.name" name="hostname" format="jsonf")
    property(outname="process.name" name="app-name" format="jsonf")
    property(outname="process.pid" name="procid" format="jsonf" dataType="number")
    property(outname="log.syslog.priority" name="pri" format="jsonf" dataType="number")
    property(outname="log.syslog.version" name="protocol-version" format="jsonf")
    property(outname="log.syslog.facility.code" name="syslogfacility" format="jsonf" dataType="number")
    property(outname="log.syslog.facility.name" name="syslogfacility-text" format="jsonf")
    property(outname="log.syslog.severity.code" name="syslogseverity" format="jsonf" dataType="number")
    property(outname="log.syslog.severity.name" name="syslogseverity-text" format="jsonf")
    property(outname="log.syslog.hostname" name="hostname" format="jsonf")
    property(outname="log.syslog.appname" name="app-name" format="jsonf")
    property(outname="log.syslog.procid" name="procid" format="jsonf")
    property(outname="log.syslog.msgid" name="msgid" format="jsonf")
    property(outname="log.syslog.structured_data" name="structured-data" format="jsonf")
    property(outname="event.created" name="timegenerated" dateFormat="rfc3339" date.inUTC="on" format="jsonf")
    constant(outname="event.kind" value="event" format="jsonf")
    property(outname="source.ip" name="fromhost-ip" format="jsonf")
    property(outname="observer.name" name="$myhostname" format="jsonf")
    constant(outname="observer.type" value="collector" format="jsonf")
    constant(outname="observer.product" value="rsyslog" format="jsonf")
}}
ruleset(name="in" queue.type="FixedArray" queue.size="250000" queue.dequeueBatchSize="4096"
        queue.workerThreads="2" queue.workerThreadMinimumMessages="10000") {{
    action(type="omfile" file="{output}" template="ecs" ioBufferSize="256k")
}}
"""
"""Into `output`, by the ruleset "in"."""

RSYSLOG_CONFIG = (
    """
global(workDirectory="{directory}" maxMessageSize="64k" net.enableDNS="off" defaultNetstreamDriver="ossl"
    defaultNetstreamDriverCAFile="{pki}/ca.crt" defaultNetstreamDriverCertFile="{pki}/server.crt"
    defaultNetstreamDriverKeyFile="{pki}/server.key")
module(load="imtcp" streamDriver.name="ossl" streamDriver.mode="1" streamDriver.authMode="x509/certvalid"
    maxSessions="20000")
"""
    + RSYSLOG_INTO_FILE
    + """
input(type="imtcp" address="127.0.0.1" port="{port}" ruleset="in")
"""
)

_SYSLOG_NG = """
@version: 3.38
options {{ keep-hostname(yes); chain-hostnames(no); use-dns(no); stats-freq(0); log-fifo-size(1000000);
    frac-digits(6); time-zone("UTC"); }};
source in {{ syslog(ip("127.0.0.1") port({port}) transport("tls") max-connections(20000)
    log-msg-size(65536) log-iw-size(2000000)
    tls(ca-file("{pki}/ca.crt") cert-file("{pki}/server.crt") key-file("{pki}/server.key")
        peer-verify(required-trusted))); }};
destination out {{ file("{output}" template("$(format-json --scope none
    @timestamp=$S_ISODATE ecs.version=8.17.0 message=$MSG
    host.hostname=$HOST host.name=$HOST process.name=$PROGRAM process.pid=int64($PID) log.syslog.priority=int64($PRI)
    log.syslog.version=int64(1) log.syslog.facility.code=int64($FACILITY_NUM) log.syslog.facility.name=$FACILITY
    log.syslog.severity.code=int64($LEVEL_NUM) log.syslog.severity.name=$LEVEL log.syslog.hostname=$HOST
    log.syslog.appname=$PROGRAM log.syslog.procid=$PID log.syslog.msgid=$MSGID log.syslog.structured_data=$SDATA
    event.created=$R_ISODATE event.kind=event source.ip=$SOURCEIP observer.name=$LOGHOST
    observer.type=collector observer.product=syslog-ng)\\n")); }};
log {{ source(in); destination(out); flags(flow-control); }};
"""


@dataclass
class Running:
    """A contender at work."""

    process: ServiceProcess
    port: int
    output: Path

    @property
    def pid(self) -> int:
        """Of the server."""
        return self.process.pid


def start_ours(
    directory: Path, pki: Path, *, settings: Mapping[str, Any] | None = None, only: tuple[str, ...] = ()
) -> Running:
    """Our collector with its default configuration; only ports, paths and certificates are the benchmark's.

    `only` names the outputs that it has, where the file is not one of them.
    """
    collector = CollectorProcess(directory, Certificates.below(pki), settings=settings, only=only)
    collector.start()
    return Running(collector.process, collector.ports[0], collector.output)


def _start_rsyslog(directory: Path, pki: Path) -> Running:
    port, output = free_port(), directory / "out.ndjson"
    config = RSYSLOG_CONFIG.format(directory=directory, pki=pki, port=port, output=output)
    return Running(rsyslog.start(config, directory, port=port), port, output)


def _start_syslog_ng(directory: Path, pki: Path) -> Running:
    port, output = free_port(), directory / "out.ndjson"
    config = _SYSLOG_NG.format(pki=pki, port=port, output=output)
    return Running(syslog_ng.start(config, directory, port=port), port, output)


CONTENDERS: dict[str, Callable[[Path, Path], Running]] = {
    "ndcollector": start_ours,
    "rsyslog": _start_rsyslog,
    "syslog-ng": _start_syslog_ng,
}
