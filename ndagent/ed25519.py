"""Ed25519 signatures (RFC 8032) checked by the OpenSSL that Python's ssl module has loaded already.

The `cryptography` package does the same by an OpenSSL of its own: 7.5 MB that an agent would keep for one check of a
policy. Where this one's functions are not to be had (a Python with OpenSSL built in and hidden), it is used
all the same.

Promises: True only for a signature that is right. Refuses: making signatures and keys.
"""

import _ssl
import ctypes
from functools import cache
from typing import Any

KEY_BYTES, SIGNATURE_BYTES = 32, 64
_EVP_PKEY_ED25519 = 1087
"""NID_ED25519 in OpenSSL's obj_mac.h."""


def is_signed(key: bytes, signature: bytes, message: bytes) -> bool:
    """Whether the holder of this public key signed the message; False also for what is no key or no signature."""
    if len(key) != KEY_BYTES or len(signature) != SIGNATURE_BYTES:
        return False
    crypto = _openssl()
    return _by_package(key, signature, message) if crypto is None else _by_openssl(crypto, key, signature, message)


@cache
def _openssl() -> Any:
    """The functions of libcrypto, None where they cannot be reached. Needs OpenSSL 1.1.1, as Python 3.11 does."""
    pointer, text, size = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t
    signatures = {
        "EVP_PKEY_new_raw_public_key": (pointer, [ctypes.c_int, pointer, text, size]),
        "EVP_MD_CTX_new": (pointer, []),
        "EVP_DigestVerifyInit": (ctypes.c_int, [pointer, pointer, pointer, pointer, pointer]),
        "EVP_DigestVerify": (ctypes.c_int, [pointer, text, size, text, size]),
        "EVP_MD_CTX_free": (None, [pointer]),
        "EVP_PKEY_free": (None, [pointer]),
        "ERR_clear_error": (None, []),
    }
    try:
        library = ctypes.CDLL(_ssl.__file__)  # it is linked with libcrypto
        for name, (result, arguments) in signatures.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError):
        return None
    return library


def _by_openssl(crypto: Any, key: bytes, signature: bytes, message: bytes) -> bool:
    public = crypto.EVP_PKEY_new_raw_public_key(_EVP_PKEY_ED25519, None, key, len(key))
    context = crypto.EVP_MD_CTX_new()
    try:
        if not public or not context or crypto.EVP_DigestVerifyInit(context, None, None, None, public) != 1:
            return False
        # 1: right; 0: wrong; below: it could not be checked. EVP_DigestVerify(3)
        return bool(crypto.EVP_DigestVerify(context, signature, len(signature), message, len(message)) == 1)
    finally:
        crypto.EVP_MD_CTX_free(context)
        crypto.EVP_PKEY_free(public)
        crypto.ERR_clear_error()  # what failed here must not be told of the next TLS connection of this thread


def _by_package(key: bytes, signature: bytes, message: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True
