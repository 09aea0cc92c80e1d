"""Rotating the CA: openssl and the listener's own contexts judge each phase, and each step dies at each write."""

import json
import shutil
import ssl
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import NameOID

from ndagent.core.metrics import Metrics
from ndagent.core.tls import TlsConfig, TlsContexts
from ndcollector.pki import PkiError, Subject, init, issue, list_certificates, refresh_crl_if_due, revoke
from ndcollector.pki.authority import sign
from ndcollector.pki.keys import new_key
from ndcollector.pki.rotation import Phase, activate, holders, look, retire, stage

NOW = datetime.now(UTC).replace(microsecond=0)  # openssl judges by the real clock
SERVER = Subject("server", "collector-1", ("localhost",), ("127.0.0.1",))
STEPS = (stage, activate, retire)


@pytest.fixture
def pki(tmp_path: Path) -> Path:
    """A fresh PKI with one device."""
    init(tmp_path / "pki", SERVER, now=NOW)
    issue(tmp_path / "pki", Subject("device", "fw-1"), now=NOW)
    return tmp_path / "pki"


def accepts(pki: Path, certificate: Path) -> bool:
    """Whether OpenSSL, told our ca.crt and ca.crl, takes this client."""
    command = ["openssl", "verify", "-x509_strict", "-crl_check", "-purpose", "sslclient"]
    command += ["-CAfile", str(pki / "ca.crt"), "-CRLfile", str(pki / "ca.crl"), str(certificate)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def trusts_server(anchor: bytes, pki: Path) -> bool:
    """Whether a client that holds only these CAs trusts the collector's certificate."""
    (pki / "anchor.pem").write_bytes(anchor)
    command = ["openssl", "verify", "-x509_strict", "-purpose", "sslserver", "-CAfile", str(pki / "anchor.pem")]
    return subprocess.run([*command, str(pki / "server.crt")], capture_output=True, check=False).returncode == 0


def load_as_the_daemon_does(pki: Path, pair: Path | None = None) -> None:
    """TlsFilesError is what would keep a restart from coming up."""
    pair = pair or pki
    config = TlsConfig(ca_file=pki / "ca.crt", cert_file=pair / "server.crt", key_file=pair / "server.key")
    TlsContexts(config, metrics=Metrics(), clock=NOW.timestamp)


def authorities(pki: Path) -> list[x509.Certificate]:
    return x509.load_pem_x509_certificates((pki / "ca.crt").read_bytes())


def request() -> bytes:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "whatever it wishes")])
    builder = x509.CertificateSigningRequestBuilder().subject_name(name)
    return builder.sign(new_key(), hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def test_everybody_is_let_in_until_the_first_ca_retires(pki: Path) -> None:
    """And whoever holds only the first CA can check the collector until the second is activated."""
    first = (pki / "ca.crt").read_bytes()
    fw_1 = pki / "issued" / "device-fw-1.crt"
    assert look(pki).phase is Phase.STEADY
    stage(pki, now=NOW)
    during_staging = issue(pki, Subject("device", "fw-2"), now=NOW).certificate_file
    assert look(pki).phase is Phase.STAGED
    assert [accepts(pki, one) for one in (fw_1, during_staging)] == [True, True]
    assert trusts_server(first, pki)
    bundle = (pki / "ca.crt").read_bytes()
    activate(pki, now=NOW)
    fw_3 = issue(pki, Subject("device", "fw-3"), now=NOW).certificate_file
    assert look(pki).phase is Phase.ACTIVATED
    assert [accepts(pki, one) for one in (fw_1, fw_3)] == [True, True]
    assert not trusts_server(first, pki)
    assert trusts_server(bundle, pki)
    assert retire(pki, now=NOW) is not None
    assert look(pki).phase is Phase.STEADY
    assert [accepts(pki, one) for one in (fw_1, fw_3)] == [False, True]
    assert len(authorities(pki)) == 1
    assert sorted(path.name for path in pki.glob("ca.*")) == ["ca.crl", "ca.crt", "ca.key"]
    load_as_the_daemon_does(pki)


def test_the_collectors_pair_keeps_its_names(pki: Path) -> None:
    """It is renewed by the change-over, not made by a person."""
    stage(pki, now=NOW)
    issued = activate(pki, now=NOW)
    assert issued is not None
    names = issued.certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost"]
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == ["nd:server:collector-1"]
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(pki / "server.crt", pki / "server.key")


@pytest.mark.parametrize("phase", Phase)
def test_revocation_works_in_every_phase_for_both_cas(pki: Path, phase: Phase) -> None:
    """And is not forgotten by the phases after it."""
    fw_1 = pki / "issued" / "device-fw-1.crt"
    if phase is not Phase.STEADY:
        stage(pki, now=NOW)
    if phase is Phase.ACTIVATED:
        activate(pki, now=NOW)
    fw_2 = issue(pki, Subject("device", "fw-2"), now=NOW).certificate_file
    assert accepts(pki, fw_1)
    assert accepts(pki, fw_2)
    for name in ("fw-1", "fw-2"):
        revoke(pki, name, now=NOW)
    for step in STEPS:
        assert not accepts(pki, fw_1)
        assert not accepts(pki, fw_2)
        load_as_the_daemon_does(pki)
        if step is not stage or look(pki).phase is Phase.STEADY:
            step(pki, now=NOW)


def test_the_daemon_signs_both_crls_anew_when_one_is_due(pki: Path) -> None:
    """Past nextUpdate every client of that CA would be refused."""
    later = NOW + timedelta(days=10)
    stage(pki, now=later)
    assert not refresh_crl_if_due(pki, now=NOW + timedelta(days=20))
    assert refresh_crl_if_due(pki, now=later + timedelta(days=16))
    crls = (pki / "ca.crl").read_bytes()
    assert crls.count(b"BEGIN X509 CRL") == 2


def test_without_the_first_cas_key_its_certificates_cannot_be_revoked_in_silence(pki: Path) -> None:
    """The revocation would be reported and have no effect."""
    stage(pki, now=NOW)
    activate(pki, now=NOW)
    key = (pki / "ca.old.key").rename(pki.parent / "elsewhere.key")
    with pytest.raises(PkiError, match=r"bring it back as ca\.old\.key"):
        revoke(pki, "fw-1", now=NOW)
    assert all(one.revoked_at is None for one in list_certificates(pki))
    assert accepts(pki, pki / "issued" / "device-fw-1.crt")  # the CRL of the first CA is kept as it was
    key.rename(pki / "ca.old.key")
    revoke(pki, "fw-1", now=NOW)
    assert not accepts(pki, pki / "issued" / "device-fw-1.crt")


def test_a_step_out_of_order_says_which_comes_first(pki: Path) -> None:
    """Nothing is skipped by a slip of the hand."""
    with pytest.raises(PkiError, match="--stage"):
        activate(pki, now=NOW)
    assert retire(pki, now=NOW) is None
    stage(pki, now=NOW)
    with pytest.raises(PkiError, match="--activate"):
        retire(pki, now=NOW)
    activate(pki, now=NOW)
    with pytest.raises(PkiError, match="--retire"):
        stage(pki, now=NOW)


def test_each_step_waits_for_whom_it_would_cut_off(pki: Path) -> None:
    """Nothing has changed when it refuses; five names are enough to look at."""
    stage(pki, now=NOW)
    before = {path: path.read_bytes() for path in pki.glob("ca.*")}
    with pytest.raises(PkiError, match=r"a0, a1, a2, a3, a4 and 2 more would no longer trust this collector.*--force"):
        activate(pki, now=NOW, waiting_for=[f"a{number}" for number in range(7)])
    assert {path: path.read_bytes() for path in pki.glob("ca.*")} == before
    activate(pki, now=NOW)
    with pytest.raises(PkiError, match="fw-1 would be refused"):
        retire(pki, now=NOW, waiting_for=["fw-1"])
    assert len(authorities(pki)) == 2


def test_holders_are_those_whose_newest_certificate_is_the_first_cas(pki: Path) -> None:
    """An agent that renewed still has its older certificate, and needs no waiting for."""
    sign(pki, Subject("agent", "a1"), now=NOW, csr=request())
    assert holders(pki, now=NOW) == []
    stage(pki, now=NOW)
    assert [one.name for one in holders(pki, now=NOW)] == ["collector-1", "fw-1", "a1"]
    activate(pki, now=NOW)
    assert [one.name for one in holders(pki, now=NOW)] == ["fw-1", "a1"]
    sign(pki, Subject("agent", "a1"), now=NOW, csr=request())
    assert [one.name for one in holders(pki, now=NOW)] == ["fw-1"]
    issue(pki, Subject("device", "fw-1"), now=NOW, renew=True)
    assert holders(pki, now=NOW) == []


def test_an_index_from_before_knows_who_issued_what(pki: Path) -> None:
    """A second rotation must not take certificates of the first CA for those of the second."""
    entries = [json.loads(line) for line in (pki / "index.jsonl").read_text().splitlines()]
    for entry in entries:
        del entry["issuer"]
    (pki / "index.jsonl").write_text("".join(f"{json.dumps(entry)}\n" for entry in entries))
    assert {one.issuer for one in list_certificates(pki)} == {""}
    for _ in range(2):
        stage(pki, now=NOW)
        activate(pki, now=NOW)
        retire(pki, now=NOW)
    stage(pki, now=NOW)
    assert [one.name for one in holders(pki, now=NOW)] == ["collector-1"]
    assert all(one.issuer for one in list_certificates(pki))


# -- crashes ---------------------------------------------------------------------------------------------------------

DRIVER = """
import os, signal, sys
from datetime import datetime
from pathlib import Path
from ndcollector.pki import rotation, store

left = int(sys.argv[3])

def killing(real):
    def step(*arguments, **named):
        global left
        result = real(*arguments, **named)
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    return step

for name in ("create", "overwrite", "set_aside", "record_issued", "record_authority", "sync"):
    setattr(store, name, killing(getattr(store, name)))
Path.replace = killing(Path.replace)
Path.unlink = killing(Path.unlink)
getattr(rotation, sys.argv[2])(Path(sys.argv[1]), now=datetime.fromisoformat(sys.argv[4]))
"""


def dies(pki: Path, step: str, after: int) -> bool:
    """Run a step in a process of its own that kills itself after so many writes; False if it lived to the end."""
    command = [sys.executable, "-c", DRIVER, str(pki), step, str(after), NOW.isoformat()]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent.parent, check=False)
    assert done.returncode in (0, -9), done.stderr
    return done.returncode == -9


@pytest.mark.parametrize("number", range(3))
def test_a_kill_after_any_write_of_any_step_is_gone_on_from(tmp_path: Path, number: int) -> None:
    """By the same call again; and in between the daemon starts, devices are let in, and one can be revoked."""
    step, after, died = STEPS[number], 1, True
    while died:
        pki = tmp_path / f"pki-{after}"
        init(pki, SERVER, now=NOW)
        issue(pki, Subject("device", "old"), now=NOW)
        for earlier in STEPS[:number]:
            earlier(pki, now=NOW)
        newest = issue(pki, Subject("device", "newest"), now=NOW).certificate_file
        pair = tmp_path / f"pair-{after}"
        shutil.copytree(pki, pair)  # a pair that is being renewed may be half; that is not what is asked here
        died = dies(pki, step.__name__, after)
        load_as_the_daemon_does(pki, pair)
        refresh_crl_if_due(pki, now=NOW)
        assert accepts(pki, newest)
        issue(pki, Subject("device", "between"), now=NOW)
        revoke(pki, "between", now=NOW)
        assert not accepts(pki, pki / "issued" / "device-between.crt")
        step(pki, now=NOW)
        load_as_the_daemon_does(pki)
        for later in STEPS[number + 1 :]:
            later(pki, now=NOW)
        load_as_the_daemon_does(pki)
        assert look(pki).phase is Phase.STEADY
        assert (accepts(pki, newest), accepts(pki, pki / "issued" / "device-old.crt")) == (number == 2, False)
        after += 1
    assert after > 4
