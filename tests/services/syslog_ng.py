"""Debian's syslog-ng and its loggen as real clients of ours, and as the contender of the benchmarks."""

from collections.abc import Mapping
from pathlib import Path

from services import fetch
from services.process import ServiceProcess, listens

VERSION = "3.38"

_LOCAL = """
@version: {version}
options {{ keep-hostname(yes); chain-hostnames(no); use-dns(no); stats-freq(0); frac-digits(6); }};
source {name} {{
    network(ip("127.0.0.1") port({port}) transport("tcp") flags(syslog-protocol) log-msg-size(65536));
}};
"""
_FORWARD = """
destination collector {{
    {driver}("127.0.0.1" port({target}) transport("tls") time-reopen(1)
        tls(ca-file("{ca}") cert-file("{cert}") key-file("{key}") peer-verify(required-trusted))
        {template});
}};
log {{ source(local); destination(collector); flags(flow-control); }};
"""
_RFC5424 = 'template("<$PRI>1 $ISODATE $HOST $PROGRAM ${PID:--} ${MSGID:--} ${SDATA:--} $MSG\\n")'

_RECEIVE = """
@version: {version}
options {{ keep-hostname(yes); chain-hostnames(no); use-dns(no); stats-freq(0); }};
source receive {{
    syslog(ip("127.0.0.1") port({port}) transport("tls") flags(no-parse, store-raw-message)
        log-msg-size(65536) log-iw-size(10000)
        tls(ca-file("{ca}") cert-file("{cert}") key-file("{key}") peer-verify(required-trusted)));
}};
destination file {{ file("{file}" template("$MSG\\n") flush-lines(1)); }};
log {{ source(receive); destination(file); flags(flow-control); }};
"""


def tls_receiver(*, port: int, pki: Mapping[str, Path], file: Path) -> str:
    """Takes RFC 5425 from whoever has a certificate of the CA, and writes each message as it came into `file`."""
    return _RECEIVE.format(version=VERSION, port=port, file=file, **pki)


def local_source(name: str, *, port: int) -> str:
    """Takes plain RFC 5424, one message a line, on `port`; `name` is the source's."""
    return _LOCAL.format(version=VERSION, name=name, port=port)


def client_config(*, port: int, target: int, driver: str, pki: Mapping[str, Path]) -> str:
    """Takes plain syslog on `port`, forwards it over mTLS; `driver` is syslog (octet-counted) or network (LF)."""
    template = _RFC5424 if driver == "network" else ""
    forward = _FORWARD.format(target=target, driver=driver, template=template, **pki)
    return local_source("local", port=port) + forward


def start(config: str, directory: Path, *, port: int, name: str = "syslog-ng") -> ServiceProcess:
    """syslog-ng with this configuration, listening on `port`. Raises ServiceMissingError."""
    service = fetch.ensure(fetch.SYSLOG_NG)
    file = directory / f"{name}.conf"
    file.write_text(config)
    files = {option: directory / f"{name}.{option}" for option in ("persist-file", "pidfile", "control")}
    command: list[str | Path] = [service.path(service.program), "--foreground", "--no-caps", "--stderr"]
    command += ["--cfgfile", file, "--module-path", service.path("usr/lib/syslog-ng", VERSION)]
    for option, path in files.items():
        command += [f"--{option}", path]
    process = ServiceProcess(name, command, directory=directory, environment=_environment(service))
    return process.until_ready(listens(port), f"listener on {port}")


def loggen(arguments: list[str], directory: Path) -> ServiceProcess:
    """loggen with these arguments. Raises ServiceMissingError."""
    service = fetch.ensure(fetch.SYSLOG_NG)
    command: list[str | Path] = [service.path("usr/bin/loggen"), *arguments]
    return ServiceProcess("loggen", command, directory=directory, environment=_environment(service))


def _environment(service: fetch.Service) -> dict[str, str]:
    """Its programs find their plugins below this prefix."""
    return {**service.environment(), "SYSLOGNG_PREFIX": str(service.path("usr"))}
