"""Keys: the CA's own pair, new ones, and the one in a certificate request."""

from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes

from ndcollector.pki import store
from ndcollector.pki.store import PkiError

MAX_CSR_BYTES = 64 * 1024


def new_key() -> ec.EllipticCurvePrivateKey:
    """ECDSA P-256: what every TLS stack of the last decade speaks, small and fast."""
    return ec.generate_private_key(ec.SECP256R1())


def load_authority(directory: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """CA certificate and key; raises PkiError where one is missing or they are not a pair."""
    try:
        certificate = x509.load_pem_x509_certificate((directory / store.CA_CERTIFICATE).read_bytes())
        key = serialization.load_pem_private_key((directory / store.CA_KEY).read_bytes(), None)
    except FileNotFoundError as error:
        raise PkiError(f"{error.filename} does not exist; `ndcollector pki init` makes a CA") from None
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise PkiError(f"the CA in {directory} cannot be read: {error}") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise PkiError(f"{directory / store.CA_KEY} is not the key of {store.CA_CERTIFICATE}")
    return certificate, key


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
    except (ValueError, UnsupportedAlgorithm, InvalidSignature) as error:
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
