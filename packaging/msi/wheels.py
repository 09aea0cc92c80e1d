"""The wheels inside the msi: locked by hash, fetched for Windows, unpacked without what an agent never imports.

    python packaging/msi/wheels.py lock     write requirements.lock anew from requirements.in

The lock names files' hashes and no index: any mirror will do.
"""

import hashlib
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
LOCK = HERE / "requirements.lock"
PLATFORM = ("--platform", "win_amd64", "--python-version", "3.11", "--implementation", "cp", "--abi", "cp311")
_UNWANTED = (
    "PyWin32.chm", "adodbapi", "isapi", "pythonwin", "win32com", "win32comext", "win32/Demos", "win32/test",
    "win32/include", "win32/libs", "win32/scripts", "win32/pythonservice.exe", "pythoncom.py", "pywin32.pth",
    "pywin32.version.txt", "psutil/tests",
)  # fmt: skip
"""Of pywin32 the agent needs services, security and the event log; debuggers and COM stay out."""
_DATA = re.compile(r"^[^/]+\.data/(?:purelib|platlib)/")


def fetch(target: Path) -> None:
    """Unpack all wheels of the lock into a directory."""
    with tempfile.TemporaryDirectory() as downloads:
        _pip("download", "--only-binary=:all:", *PLATFORM, "--require-hashes", "-r", str(LOCK), "--dest", downloads)
        for wheel in sorted(Path(downloads).glob("*.whl")):
            _unpack(wheel, target)
    for name in _UNWANTED:
        path = target / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _unpack(wheel: Path, target: Path) -> None:
    with zipfile.ZipFile(wheel) as files:
        for name in files.namelist():
            inside = _DATA.sub("", name)
            if name.endswith("/") or ".data/" in inside:
                continue  # scripts and headers
            path = target / inside
            if not path.resolve().is_relative_to(target.resolve()):
                raise SystemExit(f"{wheel.name}: {name} leads out of its directory")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(files.read(name))


def lock() -> None:
    """Resolve requirements.in for Windows and write down what came."""
    with tempfile.TemporaryDirectory() as downloads:
        source = str(HERE / "requirements.in")
        _pip("download", "--only-binary=:all:", *PLATFORM, "-r", source, "--dest", downloads)
        lines = ["# Made by wheels.py from requirements.in, for CPython 3.11 on win_amd64; never edit it by hand."]
        for wheel in sorted(Path(downloads).glob("*.whl"), key=lambda path: path.name.lower()):
            name, version = wheel.name.split("-")[:2]
            digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
            lines.append(f"{name.replace('_', '-').lower()}=={version} --hash=sha256:{digest}")
    LOCK.write_text("\n".join(lines) + "\n")


def _pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    subprocess.run(command, check=True, timeout=900)


if __name__ == "__main__":
    if sys.argv[1:] != ["lock"]:
        sys.exit(__doc__)
    lock()
