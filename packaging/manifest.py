"""Signs a release: SHA256SUMS over everything in a directory, and SHA256SUMS.sig, an Ed25519 signature of it.

    packaging/manifest.py dist --version 0.1.0 --key release.key

Whoever gets the files needs nothing of ours to check them, only the public key, from somewhere else than the files:

    openssl pkeyutl -verify -pubin -inkey release.pub -rawin -in SHA256SUMS -sigfile SHA256SUMS.sig
    sha256sum --check --strict SHA256SUMS

Promises: every file of the directory is in it, in the order of names, packages, bills of materials and licences alike;
the same files and SOURCE_DATE_EPOCH give the same bytes, signature included. Refuses: a key that others than its owner
may read, one that is not Ed25519, an empty directory, names that would break a line.
"""

import argparse
import hashlib
import os
import stat
import sys
from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

SUMS, SIGNATURE = "SHA256SUMS", "SHA256SUMS.sig"


class Refused(Exception):
    """Nothing was signed; the text says why."""


def load_key(path: Path) -> Ed25519PrivateKey:
    """The signing key; raises Refused."""
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        raise Refused(f"{path}: others than its owner may read it; chmod 600 {path}")
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except (ValueError, TypeError) as error:
        raise Refused(f"{path}: no unencrypted private key in PEM ({error})") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise Refused(f"{path}: not an Ed25519 key; openssl genpkey -algorithm ed25519 -out {path}")
    return key


def manifest(directory: Path, *, version: str, made_at: int) -> str:
    """The text; raises Refused."""
    own = {directory / SUMS, directory / SIGNATURE}  # such names further down are files like any other
    files = sorted(path for path in directory.rglob("*") if path.is_file() and path not in own)
    if not files:
        raise Refused(f"{directory}: there is nothing to sign")
    moment = datetime.fromtimestamp(made_at, UTC).isoformat()
    lines = [f"# Neurodefender {version}, {moment}. Check the signature first: {SIGNATURE}"]
    for path in files:
        name = path.relative_to(directory).as_posix()
        if "\n" in name or "\\" in name:
            raise Refused(f"{name!r}: a name with a line feed or a backslash cannot stand in a manifest")
        with path.open("rb") as file:
            lines.append(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {name}")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Write both files."""
    parser = argparse.ArgumentParser(description="Sign a directory of release files.")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--version", required=True)
    parser.add_argument("--key", type=Path, required=True, help="Ed25519 private key (PEM, mode 0600)")
    arguments = parser.parse_args()
    try:
        key = load_key(arguments.key)
        made_at = int(os.environ.get("SOURCE_DATE_EPOCH", "0")) or int(datetime.now(UTC).timestamp())
        text = manifest(arguments.directory, version=arguments.version, made_at=made_at)
    except (Refused, OSError) as error:
        print(f"manifest: {error}", file=sys.stderr)
        return 1
    (arguments.directory / SUMS).write_text(text)
    (arguments.directory / SIGNATURE).write_bytes(key.sign(text.encode()))
    print(f"signed {text.count(chr(10)) - 1} files: {arguments.directory / SUMS}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
