"""Certificate files are taken whole or not at all, and what is wrong or near its end is said."""

import asyncio
import logging
import ssl
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat
from tls_peers import DAY, SERVER, Authority, Files, self_signed

from ndagent.core import tls
from ndagent.core.metrics import Metrics
from ndagent.core.tls import TlsConfig, TlsContexts, TlsFilesError
from ndagent.core.tls_refusal import REMEDIES, refusal_for_reason, refusal_for_verify_code


@pytest.fixture
def files(tmp_path: Path) -> Files:
    """A CA and a server certificate in a directory."""
    return Files(tmp_path)


def load(files: Files, *, metrics: Metrics | None = None, clock: Callable[[], float] = time.time) -> TlsContexts:
    """Contexts from the directory."""
    directory = files.directory
    config = TlsConfig(
        ca_file=directory / "ca.crt", cert_file=directory / "server.crt", key_file=directory / "server.key"
    )
    return TlsContexts(config, metrics=metrics or Metrics(), clock=clock)


def overwrite(files: Files, name: str, content: bytes) -> None:
    """Replace one file."""
    (files.directory / name).write_bytes(content)


def encrypted(files: Files) -> bytes:
    """The server's key behind a password."""
    return files.server.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))


def _two(files: Files, second: bytes) -> bytes:
    return files.authority.pem() + second


FAULTS: dict[str, tuple[Callable[[Files], None], str]] = {
    "a missing certificate": (lambda files: (files.directory / "server.crt").unlink(), r"server\.crt: No such file"),
    "a missing key": (lambda files: (files.directory / "server.key").unlink(), r"server\.key: No such file"),
    "a CA that is no PEM": (lambda files: overwrite(files, "ca.crt", b"\x30\x82"), r"ca\.crt: .*must be PEM"),
    "an empty certificate": (lambda files: overwrite(files, "server.crt", b""), r"server\.crt: .*must be PEM"),
    "half a certificate": (
        lambda files: overwrite(files, "server.crt", files.server.pem()[:300]),
        r"server\.crt: a PEM block in it has no end",
    ),
    "a second CA that is still being written": (
        lambda files: overwrite(files, "ca.crt", _two(files, Authority("second").pem()[:-20])),
        r"ca\.crt: a PEM block in it has no end",
    ),
    "a second CRL that is still being written": (
        lambda files: overwrite(files, "ca.crl", files.authority.crl() + files.authority.crl()[:100]),
        r"ca\.crl: a PEM block in it has no end",
    ),
    "an intermediate that is still being written": (
        lambda files: overwrite(files, "server.crt", files.server.pem() + files.authority.pem()[:100]),
        r"server\.crt: a PEM block in it has no end",
    ),
    "another certificate's key": (
        lambda files: overwrite(files, "server.key", files.authority.issue("x").key_pem()),
        r"server\.key: .*must be the unencrypted key of .*server\.crt",
    ),
    "an encrypted key": (
        lambda files: overwrite(files, "server.key", encrypted(files)),
        r"server\.key: the key is encrypted",
    ),
    "a CRL that is no PEM": (lambda files: overwrite(files, "ca.crl", b"0\x82"), r"ca\.crl: .*openssl crl -inform DER"),
    "another CA's CRL": (
        lambda files: overwrite(files, "ca.crl", Authority("other").crl()),
        r"ca\.crl: the CRL of CN=other is not signed by a CA",
    ),
    "a CRL that was signed by another key of the same name": (
        lambda files: overwrite(files, "ca.crl", Authority().crl()),
        r"ca\.crl: the CRL of CN=test CA is not signed by a CA",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_start_with_unusable_files_names_the_file_and_the_fault(files: Files, fault: str) -> None:
    """The text is what `check` prints and what an operator acts on."""
    break_it, text = FAULTS[fault]
    break_it(files)
    with pytest.raises(TlsFilesError, match=text):
        load(files)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_reload_with_unusable_files_keeps_the_last_good_ones(
    files: Files, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    """One WARNING for one state of the files, and all is well as soon as they are."""
    contexts = load(files)
    before = contexts.context
    break_it, _ = FAULTS[fault]
    break_it(files)
    assert not contexts.reload()
    assert contexts.context is before
    if "missing" not in fault:
        assert not contexts.reload()
        assert caplog.text.count("not usable yet") == 1
    (files.directory / "ca.crl").unlink(missing_ok=True)
    files.server = files.authority.issue("renewed", usage=[SERVER])
    files.write()
    assert contexts.reload()
    assert contexts.context is not before


def test_a_pair_that_becomes_whole_while_its_half_is_refused_is_taken_up_next(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was refused is the half; taken for it, the whole pair would be passed over until it expires."""
    contexts = load(files)
    renewed = files.authority.issue("renewed", usage=[SERVER])
    overwrite(files, "server.crt", renewed.pem())
    build = tls._build

    def key_comes_meanwhile(*arguments: object) -> object:
        try:
            return build(*arguments)  # type: ignore[arg-type]  # the function that it stands for
        finally:
            overwrite(files, "server.key", renewed.key_pem())

    with monkeypatch.context() as patched:
        patched.setattr(tls, "_build", key_comes_meanwhile)
        assert not contexts.reload()
    assert contexts.reload()


def test_a_reload_of_the_same_files_changes_nothing(files: Files) -> None:
    """A touched file must not make every listener look at all its peers."""
    contexts = load(files)
    told: list[int] = []
    contexts.subscribe(lambda: told.append(1))
    files.write()
    assert not contexts.reload()
    assert told == []


def test_subscribers_are_told_once_per_swap_until_they_leave(files: Files) -> None:
    """A stopped listener must not be kept alive by the contexts."""
    contexts = load(files)
    told: list[int] = []
    leave = contexts.subscribe(lambda: told.append(1))
    files.write_crl()
    assert contexts.reload()
    leave()
    files.authority.revoke(files.authority.issue("x"))
    files.write_crl()
    assert contexts.reload()
    assert told == [1]


def test_a_crl_beside_the_ca_is_used_without_being_named(files: Files) -> None:
    """crl_file defaults to ca.crl beside ca_file if that exists, also when it comes later."""
    contexts = load(files)
    assert not contexts.context.verify_flags & ssl.VERIFY_CRL_CHECK_LEAF
    files.write_crl()
    assert contexts.reload()
    assert contexts.context.verify_flags & ssl.VERIFY_CRL_CHECK_LEAF


def test_no_session_can_be_resumed_or_renegotiated(files: Files) -> None:
    """A resumed session passes a CRL loaded later; unread tickets destroy data in flight."""
    context = load(files).context
    assert context.num_tickets == 0
    assert context.options & ssl.OP_NO_TICKET
    assert context.options & ssl.OP_NO_RENEGOTIATION
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2


@pytest.mark.parametrize(
    ("until", "level", "text"),
    [
        (13.5 * DAY, logging.WARNING, "expires in 13"),
        (2.5 * DAY, logging.ERROR, "expires in 2"),
        (-DAY, logging.ERROR, "expired"),
    ],
)
def test_a_certificate_near_its_end_is_logged_once_a_day(
    files: Files, caplog: pytest.LogCaptureFixture, until: timedelta, level: int, text: str
) -> None:
    """Two weeks are enough to act on a warning, three days are for a person now."""
    files.server = files.authority.issue("collector", usage=[SERVER], since=-30 * DAY, until=until)
    files.write()
    metrics, now = Metrics(), [time.time()]
    contexts = load(files, metrics=metrics, clock=lambda: now[0])
    contexts.check_expiry()
    (record,) = [one for one in caplog.records if "server.crt" in one.getMessage()]
    assert record.levelno == level
    assert text in record.getMessage()
    now[0] += 86_401
    contexts.check_expiry()
    assert len([one for one in caplog.records if "server.crt" in one.getMessage()]) == 2
    expires = metrics.registry.get_sample_value(
        "nd_certificate_expiry_timestamp_seconds", {"file": str(files.directory / "server.crt")}
    )
    assert expires == files.server.certificate.not_valid_after_utc.timestamp()


def test_a_crl_near_its_next_update_is_logged_with_what_it_means(
    files: Files, caplog: pytest.LogCaptureFixture
) -> None:
    """Past nextUpdate it refuses every client."""
    files.write_crl(until=DAY)
    metrics = Metrics()
    load(files, metrics=metrics)
    assert "refuses every client" in caplog.text
    labels = {"file": str(files.directory / "ca.crl")}
    assert metrics.registry.get_sample_value("nd_certificate_expiry_timestamp_seconds", labels)


def test_a_far_expiry_is_only_exported(files: Files, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is logged that nobody must act on."""
    load(files)
    assert "expire" not in caplog.text


def der(certificate: x509.Certificate) -> bytes:
    """As it travels."""
    return certificate.public_bytes(Encoding.DER)


class TestTrust:
    """Which live peers a reload ends."""

    def test_a_good_one_is_kept(self, files: Files) -> None:
        """Nothing changed for it."""
        files.write_crl()
        assert load(files).trust.lost(der(files.authority.issue("fw").certificate), []) is None

    def test_a_revoked_one_is_lost(self, files: Files) -> None:
        """Its serial stands in the CRL."""
        pair = files.authority.issue("fw")
        files.authority.revoke(pair)
        files.write_crl()
        assert load(files).trust.lost(der(pair.certificate), []) == "certificate_revoked"

    @pytest.mark.parametrize("stranger", [Authority("other").issue("fw"), Authority().issue("fw"), self_signed("fw")])
    def test_one_of_another_ca_is_lost(self, files: Files, stranger: Authority) -> None:
        """Also if that CA has the same name, or none stands behind it."""
        assert load(files).trust.lost(der(stranger.certificate), []) == "unknown_ca"

    def test_time_alone_ends_no_connection(self, files: Files) -> None:
        """An expired certificate is refused at its next handshake; the messages under way are not cut for it."""
        files.write_crl()
        expired = files.authority.issue("fw", since=-9 * DAY, until=-DAY)
        assert load(files).trust.lost(der(expired.certificate), []) is None

    def test_the_chain_that_came_along_counts(self, files: Files) -> None:
        """Without its intermediate the same certificate has no way to the CA."""
        pair = Authority("issuing", parent=files.authority).issue("fw")
        trust = load(files).trust
        assert trust.lost(der(pair.certificate), [der(one) for one in pair.chain]) is None
        assert trust.lost(der(pair.certificate), []) == "unknown_ca"

    def test_an_issuing_ca_alone_is_enough(self, files: Files) -> None:
        """What stands in ca_file is whom we trust, whether its own issuer stands there or not."""
        issuing = Authority("issuing", parent=files.authority)
        overwrite(files, "ca.crt", issuing.certificate.public_bytes(Encoding.PEM))
        trust = load(files).trust
        assert trust.lost(der(issuing.issue("fw").certificate), []) is None
        assert trust.lost(der(files.authority.issue("fw").certificate), []) == "unknown_ca"


def test_a_reload_forgets_the_expiry_of_files_that_are_no_longer_used_and_of_no_others(files: Files) -> None:
    """Outputs say there when their client certificates expire, and only when those files change."""
    metrics, name = Metrics(), "nd_certificate_expiry_timestamp_seconds"
    overwrite(files, "ca.crl", files.authority.crl())
    contexts = load(files, metrics=metrics)
    metrics.certificate_expiry.labels("/etc/siem-client.crt").set(1.0)
    other = files.directory / "other.crt"
    other.write_bytes((files.directory / "server.crt").read_bytes())
    contexts.prepare(
        TlsConfig(ca_file=files.directory / "ca.crt", cert_file=other, key_file=files.directory / "server.key")
    )()
    assert metrics.registry.get_sample_value(name, {"file": "/etc/siem-client.crt"}) == 1.0
    assert metrics.registry.get_sample_value(name, {"file": str(other)})
    assert metrics.registry.get_sample_value(name, {"file": str(files.directory / "ca.crl")})
    assert metrics.registry.get_sample_value(name, {"file": str(files.directory / "server.crt")}) is None


async def test_watch_reloads_when_a_file_is_replaced(files: Files) -> None:
    """Renewal tools write a new file and rename it."""
    contexts = load(files)
    changed = asyncio.Event()
    contexts.subscribe(changed.set)
    watching = asyncio.create_task(contexts.watch())
    files.server = files.authority.issue("renewed", usage=[SERVER])
    async with asyncio.timeout(20):
        while not changed.is_set():  # the watcher tells nobody when it is ready
            fresh = files.directory / "fresh"
            for name, content in (("server.key", files.server.key_pem()), ("server.crt", files.server.pem())):
                fresh.write_bytes(content)
                fresh.rename(files.directory / name)
            await asyncio.sleep(0.1)
    watching.cancel()
    await asyncio.wait({watching})


def test_every_refusal_has_a_remedy() -> None:
    """A reason is a metric label: the set is closed, whatever OpenSSL says."""
    for code in range(120):
        assert refusal_for_verify_code(code, "").reason in REMEDIES
    for reason in ("NO_SHARED_CIPHER", "no shared cipher", "TLSV1_ALERT_UNKNOWN_CA", "SOMETHING_NEW", ""):
        assert refusal_for_reason(reason).remedy
