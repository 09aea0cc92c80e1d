"""`ndcollector check`: what is wrong with the configuration, without starting and without touching a running daemon.

Promises: every mistake in the files with line and column; then, if they are right, what the daemon would stumble over:
certificates that cannot be read, do not fit, have run out or soon will, directories it cannot write to, and what agents
would lack. With `--tests`, instead of the machine, what the configuration's own `tests:` say, so that they run
anywhere. Only reads: no file is made, no port opened, no far side called. Exit status 1 if there is an error or a test
failed, 0 with or without warnings.
"""

import argparse
import os
import ssl
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal, NamedTuple, cast

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from ndagent.core.process_user import process_user
from ndagent.core.settings import OutputConfig
from ndagent.core.tls import TlsConfig
from ndagent.core.yaml_file import ConfigError
from ndcollector.agents.trust import endpoints
from ndcollector.config import CollectorConfig, add_config_option, load
from ndcollector.routing.trials import carry_out

SOON = timedelta(days=30)
_PKI_INIT = "`ndcollector pki init` makes a CA and this collector's certificate"


class Finding(NamedTuple):
    """Something outside the configuration files that does not fit them."""

    level: Literal["error", "warning"]
    what: str

    def __str__(self) -> str:
        return f"{self.level}: {self.what}"


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `check`."""
    parser = subparsers.add_parser("check", help="say everything that is wrong with the configuration")
    add_config_option(parser)
    parser.add_argument("--tests", action="store_true", help="carry out the configuration's `tests:`, on any machine")
    parser.set_defaults(handler=_check)


def _check(arguments: argparse.Namespace) -> int:
    try:
        config = load(arguments.config)
    except ConfigError as error:
        count = len(error.faults)
        print(error, f"{count} error{'s' if count > 1 else ''}", sep="\n", file=sys.stderr)
        return 1
    if arguments.tests:
        return _test(config)
    findings = list(inspect(config, now=datetime.now(UTC)))
    for finding in findings:
        print(finding, file=sys.stderr)
    if any(finding.level == "error" for finding in findings):
        return 1
    print(f"{arguments.config}: valid; inputs: {_names(config.inputs)}; outputs: {_names(config.outputs)}")
    return 0


def _test(config: CollectorConfig) -> int:
    """Carry out `tests:`; what passed goes to stdout, what failed to stderr."""
    outputs = cast("dict[str, OutputConfig]", config.outputs)  # the registry's models all are
    outcomes = list(carry_out(config.tests, outputs, config.decode_settings()))
    failed = [outcome for outcome in outcomes if outcome.wrongs]
    for outcome in outcomes:
        print(outcome, file=sys.stderr if outcome.wrongs else sys.stdout)
    if not outcomes:
        print("tests: is empty; nothing was tested", file=sys.stderr)
    print(f"{len(outcomes) - len(failed)} passed, {len(failed)} failed", file=sys.stderr if failed else sys.stdout)
    return 1 if failed else 0


def _names(plugs: dict[str, object] | object) -> str:
    return ", ".join(plugs) if isinstance(plugs, dict) and plugs else "none"


def inspect(config: CollectorConfig, *, now: datetime) -> Iterator[Finding]:
    """What the machine around a valid configuration lacks. Only reads."""
    yield from _tls(config.tls, now)
    yield from _writable(config.state_dir, "state_dir")
    for name, settings in config.outputs.items():
        path = getattr(settings, "path", None)
        if isinstance(path, Path):
            fixed = Path(str(path).partition("{")[0] + "x")  # up to the first part that events decide
            yield from _writable(fixed.parent, f"outputs.{name}.path")
    yield from _agents(config)
    if not config.inputs:
        yield Finding("warning", "inputs: is empty; nothing is taken in, only the spool is delivered")


def _tls(tls: TlsConfig, now: datetime) -> Iterator[Finding]:
    ca = _read_certificates(tls.ca_file)
    own = _read_certificates(tls.cert_file)
    key_problem = _unreadable(tls.key_file)
    for key, problem in (("ca_file", ca), ("cert_file", own), ("key_file", key_problem)):
        if isinstance(problem, str):
            yield Finding("error", f"tls.{key}: {problem}")
    if not isinstance(ca, str):
        yield from (Finding("error", f"tls.ca_file: {what}") for what in _expired(ca, tls.ca_file, now))
        yield from _crl(tls, ca, now)
    if isinstance(own, str):
        return
    yield from _validity(own[0], tls.cert_file, now)
    if not _serves(own[0]):
        yield Finding("error", f"tls.cert_file: {tls.cert_file} is not for servers (extended key usage)")
    if key_problem is None and not _pair_fits(tls):
        yield Finding("error", f"tls.key_file: {tls.key_file} is not the key of {tls.cert_file}, or has a password")


def _agents(config: CollectorConfig) -> Iterator[Finding]:
    """What agents of this collector would stumble over; nothing where no input is for them."""
    kinds = {getattr(settings, "type", name) for name, settings in config.inputs.items()}
    if not kinds & {"https", "mqtt"}:
        return
    if "https" not in kinds and not config.agents.endpoints.https:
        yield Finding("warning", "inputs: has no https: agents enrol and renew over it; add `https: {}`")
    key = config.tls.ca_file.with_name("ca.key")
    if (problem := _unreadable(key, "with a PKI of your own, see docs/agents.md")) is not None:
        yield Finding("warning", f"agents: nobody can enrol or renew here, since {problem}")
    host, _, _ = next(iter(_told(config)), "").rpartition(":")
    if host in ("", "localhost", "127.0.0.1", "[::1]"):
        told = f"would be told to send to {host}" if host else "could be told nowhere to send to"
        yield Finding(
            "warning",
            f"agents.endpoints: is empty, and agents {told}; name them, or give the collector's certificate its DNS "
            "name: ndcollector pki issue --server NAME --dns collector.example.net",
        )
    if config.agents.ca_file is not None and isinstance(found := _read_certificates(config.agents.ca_file), str):
        yield Finding("error", f"agents.ca_file: {found}")


def _told(config: CollectorConfig) -> tuple[str, ...]:
    """The endpoints that agents are given when they enrol."""
    found = endpoints(config.agents, config.inputs, config.tls.cert_file)
    return (*found.mqtt, *found.https)


def _unreadable(path: Path, remedy: str = _PKI_INIT) -> str | None:
    """Why a file cannot be read, with the remedy for one that is missing; None if it can."""
    try:
        with path.open("rb") as stream:
            stream.read(1)
    except FileNotFoundError:
        return f"{path} does not exist; {remedy}"
    except OSError as error:
        return f"{path} cannot be read as user {process_user()}: {error.strerror}"
    return None


def _read_certificates(path: Path) -> list[x509.Certificate] | str:
    """The certificates in a PEM file, or why there are none."""
    problem = _unreadable(path)
    if problem is not None:
        return problem
    try:
        return x509.load_pem_x509_certificates(path.read_bytes())
    except ValueError:
        return f"{path} holds no certificate in PEM; from DER: openssl x509 -inform DER -in {path.name}"


def _expired(certificates: list[x509.Certificate], path: Path, now: datetime) -> list[str]:
    """A CA file is in order as long as one of its certificates is."""
    if any(one.not_valid_before_utc <= now < one.not_valid_after_utc for one in certificates):
        return []
    return [f"no certificate in {path} is valid today: every sender is refused"]


def _validity(certificate: x509.Certificate, path: Path, now: datetime) -> Iterator[Finding]:
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now < begin:
        yield Finding("error", f"tls.cert_file: {path} is valid only from {begin:%Y-%m-%d %H:%M}; is the clock right?")
    elif now >= end:
        yield Finding("error", f"tls.cert_file: {path} ran out on {end:%Y-%m-%d}; make a new one")
    elif end - now < SOON:
        yield Finding("warning", f"tls.cert_file: {path} runs out on {end:%Y-%m-%d}, in {(end - now).days} days")


def _serves(certificate: x509.Certificate) -> bool:
    try:
        usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return True  # RFC 5280 §4.2.1.12: without the extension any use is allowed
    return any(oid in usage for oid in (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE))


def _pair_fits(tls: TlsConfig) -> bool:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(tls.cert_file, tls.key_file, password=lambda: "")  # never ask on the terminal
    except (ssl.SSLError, ValueError):
        return False
    return True


def _crl(tls: TlsConfig, ca: list[x509.Certificate], now: datetime) -> Iterator[Finding]:
    """As the listeners do: ca.crl beside the CA counts where no file is named."""
    path = tls.crl_file or tls.ca_file.with_name("ca.crl")
    if tls.crl_file is None and not path.exists():
        yield Finding("warning", "tls.crl_file: there is no CRL, so a stolen certificate cannot be refused")
        return
    problem = _unreadable(path, "put the CRL of the CA there, or leave the key out")
    if problem is not None:
        yield Finding("error", f"tls.crl_file: {problem}")
        return
    try:
        crl = x509.load_pem_x509_crl(path.read_bytes())
    except ValueError:
        remedy = f"from DER: openssl crl -inform DER -in {path.name}"
        yield Finding("error", f"tls.crl_file: {path} holds no CRL in PEM; {remedy}")
        return
    if crl.issuer not in [one.subject for one in ca]:
        yield Finding(
            "error", f"tls.crl_file: {path} was issued by {crl.issuer.rfc4514_string()}, which is not in ca_file"
        )
    end = crl.next_update_utc
    if end is not None and end <= now:
        yield Finding(
            "error", f"tls.crl_file: {path} ran out on {end:%Y-%m-%d}: every sender is refused until a new one"
        )
    elif end is not None and end - now < timedelta(days=7):
        yield Finding(
            "warning", f"tls.crl_file: {path} runs out on {end:%Y-%m-%d}; every sender is refused from then on"
        )


def _writable(path: Path, key: str) -> Iterator[Finding]:
    """A directory, or the place where the daemon would make it."""
    existing = next(parent for parent in (path, *path.parents) if os.path.lexists(parent))
    if not existing.is_dir():
        yield Finding("error", f"{key}: {existing} is not a directory")
    elif not os.access(existing, os.W_OK | os.X_OK):  # the daemon may well be another user, so this is no error
        yield Finding(
            "warning",
            f"{key}: user {process_user()} cannot write to {existing}; does the daemon's? "
            "(runuser -u ndcollector -- ndcollector check)",
        )
