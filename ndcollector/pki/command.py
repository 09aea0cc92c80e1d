"""`ndcollector pki init|issue|revoke|list` (and rotate, in rotate_command.py): the built-in CA for people.

Promises: says which files it wrote and what to type next; exit status 1 and one line on stderr when it cannot.
"""

import argparse
import getpass
import json
import os
import pwd
import socket
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, pkcs12
from cryptography.x509 import load_pem_x509_certificates

from ndagent.core.yaml_file import ConfigError
from ndcollector.config import CollectorConfig, add_config_option, load
from ndcollector.pki import (
    Issued,
    PkiError,
    Subject,
    crl_expiry,
    init,
    issue,
    list_certificates,
    revoke,
    rotate_command,
)
from ndcollector.pki.keys import MAX_CSR_BYTES, fingerprint, load_bundle
from ndcollector.pki.names import Kind
from ndcollector.pki.revocation import REASONS
from ndcollector.pki.store import Certificate, create, make_directory

SERVICE_USER = "ndcollector"  # as in systemd/ndcollector.service: the daemon must read its key and write the CRL


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `pki` and its subcommands."""
    commands = subparsers.add_parser("pki", help="make and revoke certificates with the built-in CA").add_subparsers(
        dest="pki_command", required=True, metavar="COMMAND"
    )
    _add_init(commands.add_parser("init", help="make the CA, its CRL and the collector's own certificate"))
    _add_issue(commands.add_parser("issue", help="make a certificate for a device, an agent or another collector"))
    _add_revoke(commands.add_parser("revoke", help="refuse a certificate from now on"))
    listing = commands.add_parser("list", help="show what was issued")
    listing.add_argument("--json", action="store_true", help="one JSON object a line")
    _finish(listing, _list)
    rotate_command.add_parser(commands, _finish)


def _add_init(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--name", help="the collector's name (default: node_name of the configuration)")
    _add_names(parser, "the collector is reached by (default: this host's names, and loopback)")
    _finish(parser, _init)


def _add_issue(parser: argparse.ArgumentParser) -> None:
    who = parser.add_mutually_exclusive_group(required=True)
    who.add_argument("--device", metavar="NAME", help="a sender of syslog: a firewall, a server …")
    who.add_argument("--agent", metavar="ID", help="an ndagent")
    who.add_argument("--server", metavar="NAME", help="a collector; the one of this directory is renewed in place")
    _add_names(parser, "to put into the certificate")
    parser.add_argument("--days", type=int, help="how long it is valid (default: 825; agents 90)")
    parser.add_argument("--renew", action="store_true", help="although there is one that is still valid")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--csr", metavar="FILE", type=Path, help="sign this request; the key stays on the device")
    form.add_argument("--p12", metavar="FILE", type=Path, help="write key, certificate and CA as PKCS #12 too")
    parser.add_argument(
        "--p12-password-file", metavar="FILE", type=Path, help="first line is the password (default: ask)"
    )
    _finish(parser, _issue)


def _add_revoke(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("which", metavar="NAME|SERIAL", help="a name, kind:name, or a serial number")
    parser.add_argument("--reason", choices=sorted(REASONS), default="unspecified", help="default: %(default)s")
    _finish(parser, _revoke)


def _add_names(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("--dns", metavar="NAME", action="append", default=[], help=f"DNS name {what}; repeatable")
    parser.add_argument("--ip", metavar="ADDRESS", action="append", default=[], help=f"address {what}; repeatable")


def _finish(parser: argparse.ArgumentParser, command: Callable[[argparse.Namespace], int]) -> None:
    parser.add_argument("--dir", type=Path, help="PKI directory (default: that of tls.ca_file in the configuration)")
    add_config_option(parser)
    parser.set_defaults(handler=lambda arguments: _guarded(command, arguments))


def _guarded(command: Callable[[argparse.Namespace], int], arguments: argparse.Namespace) -> int:
    try:
        return command(arguments)
    except (PkiError, ConfigError) as error:
        print(error, file=sys.stderr)
        return 1


def _configuration(arguments: argparse.Namespace) -> CollectorConfig | None:
    """The configuration, if there is one: certificates are often made before it."""
    return load(arguments.config) if arguments.config.exists() else None


def _directory(arguments: argparse.Namespace) -> Path:
    if arguments.dir is not None:
        return Path(arguments.dir)
    config = _configuration(arguments)
    return config.tls.ca_file.parent if config is not None else Path(arguments.config).parent.absolute() / "pki"


def _init(arguments: argparse.Namespace) -> int:
    config = _configuration(arguments) if arguments.name is None else None
    name = arguments.name or (config.node_name if config is not None else socket.gethostname())
    named = arguments.dns or arguments.ip
    dns = arguments.dns if named else list(dict.fromkeys([socket.gethostname(), socket.getfqdn(), "localhost"]))
    ips = arguments.ip if named else ["127.0.0.1", "::1"]
    directory = _directory(arguments)
    _give_to_service(directory)
    issued = init(directory, Subject("server", name, tuple(dns), tuple(ips)), now=datetime.now(UTC))
    print(f"Made a CA in {directory}, its CRL, and the certificate of collector {name}.")
    _print_files(issued)
    print(f"  names        {', '.join([*dns, *ips])}  (senders that check names must use one of these)")
    print("\nNext: a certificate for each sender:\n  ndcollector pki issue --device NAME")
    return 0


def _give_to_service(directory: Path) -> None:
    """Made by root where the package's user exists, a new directory (and so all in it) is that user's."""
    if os.geteuid() != 0 or directory.exists():
        return
    try:
        user = pwd.getpwnam(SERVICE_USER)
    except KeyError:
        return
    make_directory(directory)
    os.chown(directory, user.pw_uid, user.pw_gid)


def _issue(arguments: argparse.Namespace) -> int:
    kind: Kind = "device" if arguments.device else "agent" if arguments.agent else "server"
    subject = Subject(kind, getattr(arguments, kind), tuple(arguments.dns), tuple(arguments.ip))
    password = _password(arguments) if arguments.p12 else b""
    csr = _read_request(arguments.csr) if arguments.csr else None
    if arguments.p12 and arguments.p12.exists():
        raise PkiError(f"{arguments.p12} exists; name another file for --p12")
    issued = issue(
        _directory(arguments), subject, now=datetime.now(UTC), days=arguments.days, csr=csr, renew=arguments.renew
    )
    certificate = issued.certificate
    serial, end = f"{certificate.serial_number:X}", f"{certificate.not_valid_after_utc:%Y-%m-%d}"
    print(f"Issued {kind} {subject.name} (serial {serial}), valid until {end}.")
    _print_files(issued)
    if arguments.p12:
        create(arguments.p12.absolute(), _bundle(issued, subject.name, password), 0o600)
        print(f"  PKCS #12     {arguments.p12}")
    _print_next(kind, issued)
    return 0


def _print_files(issued: Issued) -> None:
    print(f"  certificate  {issued.certificate_file}")
    if issued.key_file is not None:
        print(f"  key          {issued.key_file}  (secret)")
    print(f"  CA           {issued.ca_file}")


def _print_next(kind: Kind, issued: Issued) -> None:
    if kind == "server":
        print("\nNext: nothing on this host, a running collector takes it up by itself.")
        return
    files = "certificate, key and CA" if issued.key_file else "certificate and CA"
    print(f"\nNext: copy {files} to the {kind} and point it at this collector's port 6514 (TLS).")
    if issued.key_file:
        print(
            "To try it from here:\n"
            "  echo '<13>1 - test test - - - hello' | openssl s_client -quiet -no_ign_eof -connect localhost:6514 \\\n"
            f"    -cert {issued.certificate_file} -key {issued.key_file} -CAfile {issued.ca_file}"
        )


def _read_request(path: Path) -> bytes:
    with path.open("rb") as stream:
        return stream.read(MAX_CSR_BYTES)


def _password(arguments: argparse.Namespace) -> bytes:
    """For the PKCS #12 file; asked for before anything is issued."""
    if arguments.p12_password_file is not None:
        lines = arguments.p12_password_file.read_text().splitlines()
        password = lines[0] if lines else ""
    elif sys.stdin.isatty():
        password = getpass.getpass(f"Password for {arguments.p12}: ")
        if getpass.getpass("Again: ") != password:
            raise PkiError("the two passwords differ")
    else:
        raise PkiError("--p12 needs a password: run it on a terminal, or add --p12-password-file FILE")
    if not password:
        raise PkiError("the password is empty; a file with a private key needs one")
    return password.encode()


def _bundle(issued: Issued, name: str, password: bytes) -> bytes:
    authorities = load_pem_x509_certificates(issued.ca_file.read_bytes())  # two in a rotation
    return pkcs12.serialize_key_and_certificates(
        name.encode(), issued.key, issued.certificate, authorities, BestAvailableEncryption(password)
    )


def _revoke(arguments: argparse.Namespace) -> int:
    directory = _directory(arguments)
    for certificate in revoke(directory, arguments.which, now=datetime.now(UTC), reason=arguments.reason):
        print(f"Revoked {certificate.kind} {certificate.name} (serial {certificate.serial}).")
    print(f"The CRL {directory / 'ca.crl'} says so; a running collector drops the connection by itself.")
    return 0


def _list(arguments: argparse.Namespace) -> int:
    directory, now = _directory(arguments), datetime.now(UTC)
    if not directory.is_dir():
        raise PkiError(f"{directory} does not exist; `ndcollector pki init` makes it")
    found = list_certificates(directory)
    trusted = {fingerprint(one) for one in load_bundle(directory)}
    if arguments.json:
        for one in found:
            print(json.dumps(_as_json(one, now, trusted)))
        return 0
    print(f"{'KIND':<7} {'NAME':<24} {'VALID UNTIL':<11} {'STATE':<12} SERIAL")
    for one in found:
        print(f"{one.kind:<7} {one.name:<24} {one.not_after:%Y-%m-%d}  {_state(one, now, trusted):<12} {one.serial}")
    expiry = crl_expiry(directory)
    if expiry is not None:
        print(f"CRL valid until {expiry:%Y-%m-%d} ({(expiry - now).days} days left)")
    return 0


def _state(certificate: Certificate, now: datetime, trusted: set[str]) -> str:
    if certificate.revoked_at is not None:
        return "revoked"
    if not _is_trusted(certificate, trusted):
        return "CA retired"
    days = (certificate.not_after - now).days
    return "expired" if certificate.not_after <= now else f"{days} d left"


def _is_trusted(certificate: Certificate, trusted: set[str]) -> bool:
    return certificate.issuer in trusted or not certificate.issuer  # the only CA there was


def _as_json(certificate: Certificate, now: datetime, trusted: set[str]) -> dict[str, object]:
    return {
        "kind": certificate.kind,
        "name": certificate.name,
        "serial": certificate.serial,
        "not_before": certificate.not_before.isoformat(),
        "not_after": certificate.not_after.isoformat(),
        "revoked_at": certificate.revoked_at.isoformat() if certificate.revoked_at else None,
        "reason": certificate.reason or None,
        "issuer": certificate.issuer or None,
        "current": certificate.is_current(now) and _is_trusted(certificate, trusted),
    }
