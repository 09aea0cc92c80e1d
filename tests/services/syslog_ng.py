"""Debian's syslog-ng and its loggen as real clients of ours, and as the contender of the benchmarks."""

from collections.abc import Mapping
from pathlib import Path

from services import fetch
from services.process import ServiceProcess, listens

VERSION = "3.38"

_CLIENT = """
@version: {version}
options {{ keep-hostname(yes); chain-hostnames(no); use-dns(no); stats-freq(0); }};
source local {{ network(ip("127.0.0.1") port({port}) transport("tcp") flags(syslog-protocol) log-msg-size(65536)); }};
destination collector {{
    {driver}("127.0.0.1" port({target}) transport("tls") time-reopen(1)
        tls(ca-file("{ca}") cert-file("{cert}") key-file("{key}") peer-verify(required-trusted))
        {template});
}};
log {{ source(local); destination(collector); flags(flow-control); }};
"""
_RFC5424 = 'template("<$PRI>1 $ISODATE $HOST $PROGRAM ${PID:--} ${MSGID:--} ${SDATA:--} $MSG\\n")'


def client_config(*, port: int, target: int, driver: str, pki: Mapping[str, Path]) -> str:
    """Takes plain syslog on `port`, forwards it over mTLS; `driver` is syslog (octet-counted) or network (LF)."""
    template = _RFC5424 if driver == "network" else ""
    return _CLIENT.format(version=VERSION, port=port, target=target, driver=driver, template=template, **pki)


def start(config: str, directory: Path, *, port: int, name: str = "syslog-ng") -> ServiceProcess:
    """syslog-ng with this configuration, listening on `port`. Raises ServiceMissingError."""
    service = fetch.ensure(fetch.SYSLOG_NG)
    file = directory / f"{name}.conf"
    file.write_text(config)
    files = {option: directory / f"{name}.{option}" for option in ("persist-file", "pidfile", "control")}
    command = [service.path(service.program), "--foreground", "--no-caps", "--stderr", "--cfgfile", file]
    command += ["--module-path", service.path("usr/lib/syslog-ng", VERSION)]
    for option, path in files.items():
        command += [f"--{option}", path]
    process = ServiceProcess(name, command, directory=directory, environment=_environment(service))
    try:
        process.wait_until(listens(port), f"listener on {port}")
    except AssertionError:
        process.stop()
        raise
    return process


def loggen(arguments: list[str], directory: Path) -> ServiceProcess:
    """loggen with these arguments. Raises ServiceMissingError."""
    service = fetch.ensure(fetch.SYSLOG_NG)
    command = [service.path("usr/bin/loggen"), *arguments]
    return ServiceProcess("loggen", command, directory=directory, environment=_environment(service))


def _environment(service: fetch.Service) -> dict[str, str]:
    """Its programs find their plugins below this prefix."""
    return {**service.environment(), "SYSLOGNG_PREFIX": str(service.path("usr"))}
