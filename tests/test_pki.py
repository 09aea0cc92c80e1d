"""The built-in CA, judged by openssl, by crashes and by two commands at once."""

import errno
import json
import multiprocessing
import os
import pwd
import ssl
import stat
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import pkcs12
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ndcollector.__main__ import main
from ndcollector.pki import (
    PkiError,
    Subject,
    command,
    crl_expiry,
    init,
    issue,
    list_certificates,
    refresh_crl_if_due,
    revoke,
    store,
)

NOW = datetime.now(UTC).replace(microsecond=0)  # openssl judges by the real clock
SERVER = Subject("server", "collector-1", ("localhost",), ("127.0.0.1", "::1"))
FIREWALL = Subject("device", "fw-1")


@pytest.fixture
def pki(tmp_path: Path) -> Path:
    """A fresh PKI."""
    init(tmp_path / "pki", SERVER, now=NOW)
    return tmp_path / "pki"


def openssl(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["openssl", *map(str, arguments)], capture_output=True, text=True, check=False)


def verify(pki: Path, certificate: Path, purpose: str) -> str:
    """What openssl says of a certificate, CRL included; empty if all is well."""
    result = openssl(
        "verify", "-x509_strict", "-crl_check", "-CAfile", pki / "ca.crt", "-CRLfile", pki / "ca.crl",
        "-purpose", purpose, certificate,
    )  # fmt: skip
    return "" if result.returncode == 0 else result.stderr


def crl(pki: Path) -> x509.CertificateRevocationList:
    return x509.load_pem_x509_crl((pki / "ca.crl").read_bytes())


def crl_number(pki: Path) -> int:
    return crl(pki).extensions.get_extension_for_class(x509.CRLNumber).value.crl_number


# -- certificates ----------------------------------------------------------------------------------------------------


def test_openssl_accepts_each_kind_for_its_purpose_only(pki: Path) -> None:
    """A stolen device key cannot pose as the collector, nor the collector's as a device."""
    device = issue(pki, FIREWALL, now=NOW).certificate_file
    agent = issue(pki, Subject("agent", "a1"), now=NOW).certificate_file
    server = pki / "server.crt"
    assert [verify(pki, one, "sslclient") for one in (device, agent)] == ["", ""]
    assert verify(pki, server, "sslserver") == ""
    assert "unsuitable certificate purpose" in verify(pki, server, "sslclient")
    assert "unsuitable certificate purpose" in verify(pki, device, "sslserver")


def test_openssl_prints_what_was_promised(pki: Path) -> None:
    """P-256, typed URI first, names, critical constraints."""
    text = openssl("x509", "-in", pki / "server.crt", "-noout", "-text").stdout
    assert "URI:nd:server:collector-1, DNS:localhost, IP Address:127.0.0.1, IP Address:0:0:0:0:0:0:0:1" in text
    assert "NIST CURVE: P-256" in text
    assert "TLS Web Server Authentication" in text
    ca = openssl("x509", "-in", pki / "ca.crt", "-noout", "-text").stdout
    assert "CA:TRUE, pathlen:0" in ca
    assert "Certificate Sign, CRL Sign" in ca
    assert openssl("crl", "-in", pki / "ca.crl", "-CAfile", pki / "ca.crt", "-noout").stderr.strip() == "verify OK"


def test_a_handshake_with_both_certificates_and_the_crl_succeeds(pki: Path) -> None:
    """The whole point, through Python's own TLS with strict checks."""
    device = issue(pki, FIREWALL, now=NOW)
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    server.load_cert_chain(pki / "server.crt", pki / "server.key")
    server.verify_mode = ssl.CERT_REQUIRED
    for context, extra in ((server, [pki / "ca.crl"]), (client, [])):
        for file in [pki / "ca.crt", *extra]:
            context.load_verify_locations(file)
    server.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF | ssl.VERIFY_X509_STRICT
    client.load_cert_chain(device.certificate_file, device.key_file)
    ends = [ssl.MemoryBIO() for _ in range(2)]
    one = server.wrap_bio(ends[0], ends[1], server_side=True)
    other = client.wrap_bio(ends[1], ends[0], server_hostname="localhost")
    for end in (other, one, other, one):
        try:
            end.do_handshake()
        except ssl.SSLWantReadError:
            continue
    names = one.getpeercert()["subjectAltName"]  # type: ignore[index]  # a verified peer has one
    assert names == (("URI", "nd:device:fw-1"),)


def test_no_certificate_outlives_its_ca(pki: Path) -> None:
    """A promise nobody could keep."""
    ca = x509.load_pem_x509_certificate((pki / "ca.crt").read_bytes())
    for number, days in enumerate((9999, 10**7, 10**12)):  # the last two are beyond what dates and C can hold
        subject = Subject("device", f"fw-{number}")
        assert issue(pki, subject, now=NOW, days=days).certificate.not_valid_after_utc == ca.not_valid_after_utc
    with pytest.raises(PkiError, match="would not be valid"):
        issue(pki, Subject("device", "late"), now=NOW + timedelta(days=4000))
    for days in (0, -1):
        with pytest.raises(PkiError, match="would not be valid"):
            issue(pki, Subject("device", "short"), now=NOW, days=days)


def test_serials_are_random_and_long(pki: Path) -> None:
    """RFC 5280 wants unique, CAs want unguessable: 128 bits at least."""
    serials = [issue(pki, Subject("device", f"d{n}"), now=NOW).certificate.serial_number for n in range(8)]
    assert len(set(serials)) == 8
    assert max(serial.bit_length() for serial in serials) > 128
    assert all(serial.bit_length() <= 159 for serial in serials)


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "../a", "a..b", "-a", "a-", ".a", "a b", "a\n", "a\0", "ä", "x" * 65, "nd:device:x"]
)
def test_names_that_lead_elsewhere_are_refused(name: str) -> None:
    """They become file names and identities."""
    with pytest.raises(PkiError, match="cannot be a name"):
        Subject("device", name)


def test_names_at_the_limit_are_fine(pki: Path) -> None:
    """64 characters: what a common name may have."""
    assert issue(pki, Subject("device", "x" * 64), now=NOW).certificate_file.exists()


@pytest.mark.parametrize("host", ["", "a..b", "-a.b", "a b", "ä.de", "x" * 64, ".".join(["abcdefg"] * 40)])
def test_impossible_dns_names_are_refused(host: str) -> None:
    """Better now than when every sender refuses the certificate."""
    with pytest.raises(PkiError, match="is not a DNS name"):
        Subject("server", "s", dns=(host,))
    with pytest.raises(PkiError, match="is not an IP address"):
        Subject("server", "s", ips=("1.2.3",))


# -- requests --------------------------------------------------------------------------------------------------------


def request(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey) -> bytes:
    """A request that asks for more than it should get."""
    builder = x509.CertificateSigningRequestBuilder(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "root")]))
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    builder = builder.add_extension(
        x509.SubjectAlternativeName([x509.UniformResourceIdentifier("nd:server:collector-1")]), critical=False
    )
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return builder.sign(key, algorithm).public_bytes(serialization.Encoding.PEM)


def test_a_request_gives_its_key_and_nothing_else(pki: Path) -> None:
    """Subject, names and usages are the operator's to set."""
    for number, key in enumerate((rsa.generate_private_key(65537, 2048), ed25519.Ed25519PrivateKey.generate())):
        issued = issue(pki, Subject("device", f"own-key-{number}"), now=NOW, csr=request(key))
        extensions = issued.certificate.extensions
        assert issued.certificate.public_key() == key.public_key()
        assert issued.certificate.subject.rfc4514_string() == f"CN=own-key-{number}"
        assert not extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert names.get_values_for_type(x509.UniformResourceIdentifier) == [f"nd:device:own-key-{number}"]
        usage = extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]
        assert verify(pki, issued.certificate_file, "sslclient") == ""
        assert issued.key_file is None
        assert not issued.certificate_file.with_suffix(".key").exists()


def test_bad_requests_are_refused_before_anything_is_written(pki: Path) -> None:
    """Weak keys, forged proofs, other files."""
    good = request(ec.generate_private_key(ec.SECP256R1()))
    der = bytearray(x509.load_pem_x509_csr(good).public_bytes(serialization.Encoding.DER))
    der[-3] ^= 1  # inside the signature
    forged = ssl.DER_cert_to_PEM_cert(bytes(der)).replace("CERTIFICATE", "CERTIFICATE REQUEST").encode()
    weak = request(rsa.generate_private_key(65537, 1024))
    before = (pki / "index.jsonl").read_bytes()
    for csr, why in ((b"junk", "not a cert"), (b"", "not a cert"), (forged, "signature"), (weak, "weak")):
        with pytest.raises(PkiError, match=why):
            issue(pki, FIREWALL, now=NOW, csr=csr)
    assert (pki / "index.jsonl").read_bytes() == before
    assert not (pki / "issued").exists()


# -- nothing is overwritten ------------------------------------------------------------------------------------------


def test_a_second_init_is_refused_and_changes_nothing(pki: Path) -> None:
    """A new CA would lock every device out."""
    before = {path: path.read_bytes() for path in pki.rglob("*") if path.is_file()}
    with pytest.raises(PkiError, match="has a CA already"):
        init(pki, SERVER, now=NOW)
    assert {path: path.read_bytes() for path in pki.rglob("*") if path.is_file()} == before


def test_a_second_certificate_needs_to_be_asked_for(pki: Path) -> None:
    """And keeps the first one's files and validity."""
    first = issue(pki, FIREWALL, now=NOW)
    old = first.certificate_file.read_bytes(), first.key_file.read_bytes()  # type: ignore[union-attr]  # we made a key
    with pytest.raises(PkiError, match="add --renew"):
        issue(pki, FIREWALL, now=NOW)
    second = issue(pki, FIREWALL, now=NOW, renew=True)
    aside = f"device-fw-1.{first.certificate.serial_number:X}"
    kept = pki / "issued" / f"{aside}.crt", pki / "issued" / f"{aside}.key"
    assert tuple(path.read_bytes() for path in kept) == old
    assert second.certificate.serial_number != first.certificate.serial_number
    assert [verify(pki, path, "sslclient") for path in (kept[0], second.certificate_file)] == ["", ""]


def test_an_expired_or_revoked_certificate_is_replaced_without_ceremony(pki: Path) -> None:
    """Nothing that works is lost."""
    issue(pki, FIREWALL, now=NOW, days=1)
    issue(pki, FIREWALL, now=NOW + timedelta(days=2), days=1)
    revoke(pki, "fw-1", now=NOW + timedelta(days=2))
    issue(pki, FIREWALL, now=NOW + timedelta(days=2), days=1)
    assert len(list((pki / "issued").glob("*.crt"))) == 3


def test_renewing_the_collector_replaces_its_pair_and_keeps_its_names(pki: Path) -> None:
    """In place, so that a running collector takes it up; another collector's pair lies in issued/."""
    old = x509.load_pem_x509_certificate((pki / "server.crt").read_bytes())
    issue(pki, Subject("server", "collector-1"), now=NOW, renew=True)
    new = x509.load_pem_x509_certificate((pki / "server.crt").read_bytes())
    assert new.serial_number != old.serial_number
    names = [one.extensions.get_extension_for_class(x509.SubjectAlternativeName).value for one in (old, new)]
    assert names[0] == names[1]
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(pki / "server.crt", pki / "server.key")
    other = issue(pki, Subject("server", "collector-2"), now=NOW)
    assert other.certificate_file == pki / "issued" / "server-collector-2.crt"


def test_keys_are_for_the_owner_alone(pki: Path) -> None:
    """0600 from their first moment, in a directory of 0700."""
    issue(pki, FIREWALL, now=NOW)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in [pki, *pki.rglob("*")]}
    assert {mode for name, mode in modes.items() if name.endswith(".key")} == {0o600}
    assert {modes["pki"], modes["issued"]} == {0o700}
    assert [name for name in modes if name.startswith(".new")] == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_what_root_makes_belongs_to_the_directory_s_owner(tmp_path: Path) -> None:
    """The daemon runs as that user and must read its key."""
    pki = tmp_path / "pki"
    pki.mkdir()
    os.chown(pki, 12345, 23456)
    init(pki, SERVER, now=NOW)
    issue(pki, FIREWALL, now=NOW)
    assert {(path.stat().st_uid, path.stat().st_gid) for path in pki.rglob("*")} == {(12345, 23456)}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_init_by_root_makes_the_directory_the_service_s(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    """Where the package made its user; the README's first command must end in files that the daemon can read."""
    monkeypatch.setattr(command, "SERVICE_USER", "daemon")  # a user that every Debian has
    assert run("init", "--name", "c", "--dir", tmp_path / "pki")[0] == 0
    uid = pwd.getpwnam("daemon").pw_uid
    assert {path.stat().st_uid for path in [tmp_path / "pki", *(tmp_path / "pki").rglob("*")]} == {uid}


# -- revocation ------------------------------------------------------------------------------------------------------


def test_there_is_a_crl_from_the_first_minute(pki: Path) -> None:
    """A listener that checks CRLs refuses everyone without one."""
    assert list(crl(pki)) == []
    assert crl_expiry(pki) == NOW + timedelta(days=30)


def test_a_revoked_certificate_is_refused_by_openssl(pki: Path) -> None:
    """All certificates of the name, with the reason, and only they."""
    first = issue(pki, FIREWALL, now=NOW).certificate
    second = issue(pki, FIREWALL, now=NOW, renew=True)
    other = issue(pki, Subject("device", "fw-2"), now=NOW)
    assert len(revoke(pki, "fw-1", now=NOW, reason="keyCompromise")) == 2
    assert "certificate revoked" in verify(pki, second.certificate_file, "sslclient")
    assert verify(pki, other.certificate_file, "sslclient") == ""
    entries = {entry.serial_number: entry for entry in crl(pki)}
    assert set(entries) == {first.serial_number, second.certificate.serial_number}
    reason = entries[first.serial_number].extensions.get_extension_for_class(x509.CRLReason).value.reason
    assert reason is x509.ReasonFlags.key_compromise
    states = {one.serial: one.reason for one in list_certificates(pki) if one.revoked_at is not None}
    assert set(states.values()) == {"keyCompromise"}


def test_revoking_by_serial_takes_openssl_s_spelling_too(pki: Path) -> None:
    """Colons, small letters, a leading zero."""
    serial = f"{issue(pki, FIREWALL, now=NOW).certificate.serial_number:040x}"
    spelled = ":".join(serial[at : at + 2] for at in range(0, 40, 2))
    assert [one.name for one in revoke(pki, spelled, now=NOW)] == ["fw-1"]
    with pytest.raises(PkiError, match="is revoked already"):
        revoke(pki, serial, now=NOW)


def test_revoking_what_is_not_there_or_not_clear_is_refused(pki: Path) -> None:
    """Rather too little than the wrong one."""
    issue(pki, FIREWALL, now=NOW)
    issue(pki, Subject("agent", "fw-1"), now=NOW)
    for which, why in (("fw-1", "say agent:fw-1 or device:fw-1"), ("fw", "neither a name"), ("", "neither")):
        with pytest.raises(PkiError, match=why):
            revoke(pki, which, now=NOW)
    with pytest.raises(PkiError, match="is not a reason"):
        revoke(pki, "device:fw-1", now=NOW, reason="certificateHold")
    assert [one.kind for one in revoke(pki, "agent:fw-1", now=NOW)] == ["agent"]
    with pytest.raises(PkiError, match="no certificate that is still valid"):
        revoke(pki, "agent:fw-1", now=NOW)


def test_the_crl_is_signed_anew_at_half_its_life(pki: Path) -> None:
    """Not before, and then once."""
    half = timedelta(days=15)
    assert not refresh_crl_if_due(pki, now=NOW + half - timedelta(hours=1))
    assert refresh_crl_if_due(pki, now=NOW + half)
    assert crl_expiry(pki) == NOW + half + timedelta(days=30)
    assert not refresh_crl_if_due(pki, now=NOW + half)


def test_a_lost_or_broken_crl_is_due_at_once(pki: Path) -> None:
    """And comes back with everything that is revoked."""
    issue(pki, FIREWALL, now=NOW)
    revoke(pki, "fw-1", now=NOW)
    for damage in ((pki / "ca.crl").unlink, lambda: (pki / "ca.crl").write_bytes(b"torn")):
        damage()
        assert crl_expiry(pki) is None
        assert refresh_crl_if_due(pki, now=NOW)
        assert len(list(crl(pki))) == 1


def test_without_the_ca_key_nothing_is_signed(pki: Path) -> None:
    """A CA key kept elsewhere is good practice, not an error."""
    (pki / "ca.key").unlink()
    assert not refresh_crl_if_due(pki, now=NOW + timedelta(days=29))
    with pytest.raises(PkiError, match=r"ca\.key does not exist"):
        issue(pki, FIREWALL, now=NOW)
    assert list_certificates(pki)[0].name == "collector-1"


def test_crl_numbers_only_grow(pki: Path) -> None:
    """Also within a second, with a clock that goes back, and after the file was lost."""
    numbers = [crl_number(pki)]
    for step in (0, 0, -3600, 60):
        issue(pki, Subject("device", f"d{len(numbers)}"), now=NOW)
        revoke(pki, f"d{len(numbers)}", now=NOW + timedelta(seconds=step))
        numbers.append(crl_number(pki))
    (pki / "ca.crl").unlink()
    refresh_crl_if_due(pki, now=NOW + timedelta(hours=1))
    numbers.append(crl_number(pki))
    assert numbers == sorted(set(numbers))


def test_a_crl_of_another_tool_is_taken_up(pki: Path) -> None:
    """It need not have a number (RFC 5280 says it must, OpenSSL by default says nothing); what it revokes stays so."""
    key = serialization.load_pem_private_key((pki / "ca.key").read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    builder = x509.CertificateRevocationListBuilder().issuer_name(crl(pki).issuer)
    builder = builder.last_update(NOW - timedelta(days=40)).next_update(NOW - timedelta(days=1))
    builder = builder.add_revoked_certificate(
        x509.RevokedCertificateBuilder().serial_number(7).revocation_date(NOW).build()
    )
    foreign = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    (pki / "ca.crl").write_bytes(foreign)
    assert refresh_crl_if_due(pki, now=NOW)
    assert [entry.serial_number for entry in crl(pki)] == [7]
    assert crl_number(pki) == int(NOW.timestamp())


def test_a_lost_index_does_not_bring_revoked_certificates_back(pki: Path) -> None:
    """The CRL itself remembers."""
    serial = issue(pki, FIREWALL, now=NOW).certificate.serial_number
    revoke(pki, "fw-1", now=NOW)
    (pki / "index.jsonl").unlink()
    assert refresh_crl_if_due(pki, now=NOW + timedelta(days=20))
    assert [entry.serial_number for entry in crl(pki)] == [serial]


def test_expired_certificates_leave_the_crl_in_the_end(pki: Path) -> None:
    """It must not grow for ever; RFC 5280 §3.3 wants an entry on one CRL past the end."""
    issue(pki, FIREWALL, now=NOW, days=1)
    revoke(pki, "fw-1", now=NOW)
    assert refresh_crl_if_due(pki, now=NOW + timedelta(days=16))
    assert len(list(crl(pki))) == 1
    assert refresh_crl_if_due(pki, now=NOW + timedelta(days=40))
    assert list(crl(pki)) == []


# -- crashes and company ---------------------------------------------------------------------------------------------


class Crash(BaseException):
    """Stands for kill -9: nothing catches it."""


def steps(monkeypatch: pytest.MonkeyPatch, *, crash_at: int) -> None:
    """Let the n-th write to the directory be the last."""
    done = iter(range(1, 1000))
    for name in ("create", "overwrite", "record_issued"):
        real = getattr(store, name)

        def step(*arguments: object, _real: object = real) -> object:
            if next(done) == crash_at:
                raise Crash
            return _real(*arguments)  # type: ignore[operator]  # the function it stands for

        monkeypatch.setattr(store, name, step)


@pytest.mark.parametrize("crash_at", range(1, 7))
def test_a_crash_anywhere_in_init_can_be_gone_on_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crash_at: int
) -> None:
    """By init again, or by issuing the pair that is missing; never by deleting anything."""
    pki = tmp_path / "pki"
    with monkeypatch.context() as patched:
        steps(patched, crash_at=crash_at)
        with pytest.raises(Crash):
            init(pki, SERVER, now=NOW)
    if (pki / "ca.crt").exists():
        issue(pki, SERVER, now=NOW, renew=True)
    else:
        init(pki, SERVER, now=NOW)
    assert verify(pki, pki / "server.crt", "sslserver") == ""
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(pki / "server.crt", pki / "server.key")


@pytest.mark.parametrize("crash_at", range(1, 4))
def test_whatever_a_crash_leaves_of_a_certificate_can_be_revoked(
    pki: Path, monkeypatch: pytest.MonkeyPatch, crash_at: int
) -> None:
    """It is in the index before it exists."""
    with monkeypatch.context() as patched:
        steps(patched, crash_at=crash_at)
        with pytest.raises(Crash):
            issue(pki, FIREWALL, now=NOW)
    indexed = {one.serial for one in list_certificates(pki)}
    for path in pki.rglob("*.crt"):
        if path.name != "ca.crt":
            assert f"{x509.load_pem_x509_certificate(path.read_bytes()).serial_number:X}" in indexed
    issue(pki, FIREWALL, now=NOW, renew=True)


def half_revoked(pki: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A certificate that is revoked in the index while the disk had no room for the CRL."""
    issued = issue(pki, FIREWALL, now=NOW)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(store, "overwrite", full)
        with pytest.raises(OSError, match="No space"):
            revoke(pki, "fw-1", now=NOW)
    assert verify(pki, issued.certificate_file, "sslclient") == "", "it still gets in"
    return issued.certificate_file


def test_the_daemon_tells_a_revocation_whose_crl_could_not_be_written(
    pki: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not at half the list's life, a fortnight later: at its next look."""
    certificate = half_revoked(pki, monkeypatch)
    assert refresh_crl_if_due(pki, now=NOW)
    assert "certificate revoked" in verify(pki, certificate, "sslclient")
    assert not refresh_crl_if_due(pki, now=NOW)


def test_a_second_try_to_revoke_makes_it_true_that_it_is_revoked(pki: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The person who tries again is told that it is done, so it has to be."""
    certificate = half_revoked(pki, monkeypatch)
    with pytest.raises(PkiError, match="no certificate that is still valid"):
        revoke(pki, "fw-1", now=NOW)
    assert "certificate revoked" in verify(pki, certificate, "sslclient")


def test_a_torn_last_line_of_the_index_is_dropped(pki: Path) -> None:
    """Its command had not reported success."""
    whole = (pki / "index.jsonl").read_bytes()
    (pki / "index.jsonl").write_bytes(whole + b'{"event": "iss')
    assert len(list_certificates(pki)) == 1
    issue(pki, FIREWALL, now=NOW)
    assert [one.name for one in list_certificates(pki)] == ["collector-1", "fw-1"]


@pytest.mark.parametrize("line", [b"junk", b"{}", b"[]", b'{"event": "revoked", "serial": "1", "at": "x"}', b""])
def test_any_other_damage_of_the_index_stops_everything(pki: Path, line: bytes) -> None:
    """Skipping a line could forget a revocation."""
    path = pki / "index.jsonl"
    path.write_bytes(line + b"\n" + path.read_bytes())
    for action in (lambda: list_certificates(pki), lambda: issue(pki, FIREWALL, now=NOW)):
        with pytest.raises(PkiError, match=r"index\.jsonl:1: damaged"):
            action()


def _issue_some(directory: Path, start: int) -> None:
    for number in range(start, start + 5):
        issue(directory, Subject("device", f"d{number}"), now=NOW)
        revoke(directory, f"d{number}", now=NOW)


def test_commands_at_the_same_time_lose_nothing(pki: Path) -> None:
    """Three processes issue and revoke; the index and the CRL have all of it."""
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_issue_some, args=(pki, start)) for start in (0, 100, 200)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    found = {one.name for one in list_certificates(pki) if one.revoked_at is not None}
    assert found == {f"d{start + number}" for start in (0, 100, 200) for number in range(5)}
    assert len(list(crl(pki))) == 15


def test_the_wrong_directory_is_named_with_the_remedy(tmp_path: Path) -> None:
    """Not a traceback."""
    with pytest.raises(PkiError, match="`ndcollector pki init` makes it"):
        issue(tmp_path / "none", FIREWALL, now=NOW)
    (tmp_path / "empty").mkdir()
    with pytest.raises(PkiError, match="makes a CA"):
        issue(tmp_path / "empty", FIREWALL, now=NOW)


def test_a_foreign_key_beside_the_ca_is_refused(pki: Path) -> None:
    """It would sign certificates nobody accepts."""
    key = ec.generate_private_key(ec.SECP256R1())
    (pki / "ca.key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    with pytest.raises(PkiError, match=r"is not the key of ca\.crt"):
        issue(pki, FIREWALL, now=NOW)


# -- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Iterator[object]:
    """Run `ndcollector pki …`: (status, stdout, stderr)."""

    def run_command(*arguments: object) -> tuple[int, str, str]:
        status = main(["pki", *map(str, arguments)])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run_command  # type: ignore[return-value]  # a plain callable


def test_the_command_walks_from_nothing_to_a_revoked_device(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """As the README says it, with the directory beside a configuration that does not exist yet."""
    config = tmp_path / "ndcollector.yaml"
    status, out, _ = run("init", "--name", "collector-1", "--dns", "collector.example.net", "-c", config)
    assert status == 0
    assert str(tmp_path / "pki" / "server.crt") in out
    (tmp_path / "password").write_text("pass\n")
    bundle = tmp_path / "fw.p12"
    words = ("--p12", bundle, "--p12-password-file", tmp_path / "password")
    status, out, _ = run("issue", "--device", "fw-1", *words, "-c", config)
    assert status == 0
    assert "openssl s_client" in out
    key, certificate, others = pkcs12.load_key_and_certificates(bundle.read_bytes(), b"pass")
    assert key is not None
    assert certificate is not None
    assert len(others) == 1
    assert "friendlyName: fw-1" in openssl("pkcs12", "-in", bundle, "-passin", "pass:pass", "-nokeys").stdout
    status, out, _ = run("revoke", "fw-1", "--reason", "keyCompromise", "-c", config)
    assert (status, "Revoked device fw-1" in out) == (0, True)
    status, out, _ = run("list", "--json", "-c", config)
    rows = [json.loads(line) for line in out.splitlines()]
    assert [(row["kind"], row["name"], row["current"]) for row in rows] == [
        ("server", "collector-1", True),
        ("device", "fw-1", False),
    ]
    status, out, _ = run("list", "-c", config)
    assert "revoked" in out
    assert "days left" in out


def test_the_command_answers_mistakes_with_status_1_and_one_line(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """And leaves nothing half done."""
    directory = ("--dir", tmp_path / "pki")
    assert run("init", "--name", "c", *directory)[0] == 0
    assert run("init", "--name", "c", *directory)[0] == 1
    status, _, err = run("issue", "--device", "fw", "--p12", tmp_path / "x.p12", *directory)
    assert (status, "needs a password" in err) == (1, True)
    (tmp_path / "empty").write_text("\n")
    status, _, err = run(
        "issue", "--device", "fw", "--p12", tmp_path / "x", "--p12-password-file", tmp_path / "empty", *directory
    )
    assert (status, "password is empty" in err) == (1, True)
    status, _, err = run("issue", "--device", "fw", "--csr", tmp_path / "none.csr", *directory)
    assert (status, "No such file" in err, err.count("\n")) == (1, True, 1)
    assert [one.name for one in list_certificates(tmp_path / "pki")] == ["c"]
