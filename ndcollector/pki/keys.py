"""Keys: the CA's own pair, new ones, and the one in a certificate request."""

from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes

from ndcollector.pki import store
from ndcollector.pki.store import PkiError

MAX_CSR_BYTES = 64 * 1024


def new_key() -> ec.EllipticCurvePrivateKey:
    """ECDSA P-256: what every TLS stack of the last decade speaks, small and fast."""
    return ec.generate_private_key(ec.SECP256R1())


Authority = tuple[x509.Certificate, ec.EllipticCurvePrivateKey]


def load_bundle(directory: Path) -> list[x509.Certificate]:
    """Every CA certificate in ca.crt; raises PkiError where there is none."""
    try:
        return x509.load_pem_x509_certificates((directory / store.CA_CERTIFICATE).read_bytes())
    except FileNotFoundError as error:
        raise PkiError(f"{error.filename} does not exist; `ndcollector pki init` makes a CA") from None
    except ValueError as error:
        raise PkiError(f"the CA in {directory} cannot be read: {error}") from None


def load_authority(directory: Path) -> Authority:
    """The CA that issues: ca.key, and the certificate of it in ca.crt. Raises PkiError where there is no such pair.

    Among several CAs the key says which: replacing that one file is how a rotation changes over (see rotation.py).
    """
    bundle = load_bundle(directory)
    key = load_key(directory / store.CA_KEY)
    certificate = certificate_of(key, bundle)
    if certificate is None:
        raise PkiError(f"{directory / store.CA_KEY} is not the key of {store.CA_CERTIFICATE}")
    return certificate, key


def load_authorities(directory: Path) -> list[Authority]:
    """Every CA of ours that is trusted and whose key is here, the one that issues first; raises PkiError."""
    bundle = load_bundle(directory)
    found = [load_authority(directory)]
    for name in (store.CA_NEXT_KEY, store.CA_OLD_KEY):
        if not (directory / name).exists():
            continue
        key = load_key(directory / name)
        certificate = certificate_of(key, bundle)
        if certificate is not None and certificate not in [one for one, _ in found]:
            found.append((certificate, key))
    return found


def fingerprint(certificate: x509.Certificate) -> str:
    """What names a CA in the index: SHA-256 of its certificate, hex."""
    return certificate.fingerprint(hashes.SHA256()).hex()


def load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """A CA's key; raises PkiError."""
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), None)
    except FileNotFoundError as error:
        raise PkiError(f"{error.filename} does not exist; `ndcollector pki init` makes a CA") from None
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise PkiError(f"the CA's key {path} cannot be read: {error}") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise PkiError(f"{path} is not the key of {store.CA_CERTIFICATE}")
    return key


def certificate_of(key: ec.EllipticCurvePrivateKey, bundle: list[x509.Certificate]) -> x509.Certificate | None:
    """The CA certificate among these that the key belongs to."""
    public = key.public_key()
    return next((one for one in bundle if one.public_key() == public), None)


def load_or_make_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """The CA's key; one without a certificate beside it is what a cut-short init left, and as good as new."""
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), None)
    except FileNotFoundError:
        new = new_key()
        store.create(path, pem(new), store.PRIVATE)
        return new
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise PkiError(f"{path} is in the way and not a key this CA can use: {error}") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise PkiError(f"{path} is in the way; it is not an elliptic-curve key")
    return key


def public_key_of(csr: bytes) -> CertificatePublicKeyTypes:
    """The key a request proves to hold; its subject and extensions are the operator's to set, not the device's."""
    try:
        request = x509.load_pem_x509_csr(csr[:MAX_CSR_BYTES])
        public = request.public_key()
        proven = request.is_signature_valid
    except (ValueError, UnsupportedAlgorithm, InvalidSignature, x509.InvalidVersion) as error:
        raise PkiError(f"not a certificate request in PEM: {error}") from None
    if not proven:
        raise PkiError("the request's signature is wrong: whoever made it does not hold the key")
    strong = (
        isinstance(public, rsa.RSAPublicKey) and 2048 <= public.key_size <= 8192,
        isinstance(public, ec.EllipticCurvePublicKey) and public.curve.name in ("secp256r1", "secp384r1", "secp521r1"),
        isinstance(public, ed25519.Ed25519PublicKey | ed448.Ed448PublicKey),
    )
    if not any(strong):
        raise PkiError("the request's key is too weak or unusual; make RSA of 2048 bits or more, or ECDSA P-256")
    return public


def pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """PKCS #8, unencrypted: the file's mode guards it, as a daemon cannot type a password."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
