"""Builds the agent's msi: `make msi`, or this with options. It runs on Debian 12 and installs on 64-bit Windows.

Promises: all that goes in is pinned by hash (packaging/msi/requirements.lock, runtime.py) or is this tree's; the same
tree at the same SOURCE_DATE_EPOCH, with the same tools, gives the same msi, byte for byte (a signature aside).
Refuses: signing by itself: `--sign-cert` and `--sign-key` are a code-signing certificate of yours (PEM).

Needs: wixl msitools osslsigncode gcc-mingw-w64-x86-64, and CPython 3.11 to compile for CPython 3.11.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "packaging" / "msi"))
sys.path.insert(0, str(ROOT))

import icon  # noqa: E402 - beside this file
import papers  # noqa: E402 - as above
import runtime  # noqa: E402 - as above
import tree  # noqa: E402 - as above
import wheels  # noqa: E402 - as above

from ndagent import __version__  # noqa: E402 - the tree that is packed

SOURCE = ROOT / "packaging" / "msi"
_NAMESPACE = uuid.UUID("0d6bb6a6-6a1c-4d21-9a3c-1c9a1f9be8a4")
_EPOCH = int(os.environ.get("SOURCE_DATE_EPOCH", "1767225600"))
_PATHS = "python311.zip\n.\n..\\lib\n..\\lib\\win32\n..\\lib\\win32\\lib\n"
_COMMAND = '@"%~dp0python\\python.exe" -B -m ndagent %*\n'
_SUMMARY_TIMES = re.compile(r"^(12|13)\t[^\r\n]*", re.MULTILINE)
"""When the msi was made and last saved: the only times that wixl stamps."""
_TABLES = (
    "UPDATE `Component` SET `Condition`='COLLECTOR_URL' WHERE `Component`='SetupUrl'",
    "UPDATE `Component` SET `Condition`='ENROLL_TOKEN' WHERE `Component`='SetupToken'",
    # permanent (16), never overwritten (128), 64-bit (256): what an administrator wrote outlives us
    "UPDATE `Component` SET `Attributes`=400 WHERE `Component`='Configuration'",
    # inside the transaction: where the new version does not come to run, the rollback brings the old one back
    "UPDATE `InstallExecuteSequence` SET `Sequence`=1501 WHERE `Action`='RemoveExistingProducts'",
)


def main() -> None:
    """Build; the path of the msi is the last line of the output."""
    parser = argparse.ArgumentParser(description="Build the Windows agent's msi.")
    parser.add_argument("--python-runtime", type=Path, help="embeddable CPython 3.11 zip, instead of the pinned one")
    parser.add_argument("--sha256", help="the hash of --python-runtime, from where you trust it")
    parser.add_argument("--version", default=__version__, help="product version (default: the tree's)")
    parser.add_argument("--sign-cert", type=Path, help="code-signing certificate and chain (PEM)")
    parser.add_argument("--sign-key", type=Path, help="its key (PEM)")
    parser.add_argument("--timestamp-url", help="RFC 3161 service that dates the signature")
    parser.add_argument("--output", type=Path, default=ROOT / "dist", help="directory of the msi (default: dist)")
    arguments = parser.parse_args()
    if sys.version_info[:2] != (3, 11):
        raise SystemExit("run it with CPython 3.11: what it compiles is for the 3.11 inside the msi")
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        print(stage(work, archive=arguments.python_runtime, sha256=arguments.sha256))
        target = pack(work, arguments.output, version=arguments.version)
    if arguments.sign_cert:
        sign(target, arguments.sign_cert, key=arguments.sign_key, timestamp_url=arguments.timestamp_url)
    print(f"{target.stat().st_size / 1e6:.1f} MB")
    print(target)


def stage(work: Path, *, archive: Path | None, sha256: str | None) -> str:
    """Everything that will stand below Program Files, in work/stage; what the runtime is."""
    target = work / "stage"
    (target / "python").mkdir(parents=True)
    said = runtime.put(target / "python", archive=archive, sha256=sha256)
    (target / "lib").mkdir()
    wheels.fetch(target / "lib")
    for name in ("pywintypes311.dll", "pythoncom311.dll"):  # Windows looks beside python.exe
        shutil.move(target / "lib" / "pywin32_system32" / name, target / "python" / name)
    (target / "lib" / "pywin32_system32").rmdir()
    ignore = shutil.ignore_patterns("__pycache__", "*.pyx", "*.pxi", "*.so", "*.c")
    shutil.copytree(ROOT / "ndagent", target / "lib" / "ndagent", ignore=ignore)
    _compile(target / "lib")
    (target / "python" / "python311._pth").write_text(_PATHS, newline="\r\n")
    (target / "ndagent.cmd").write_text(_COMMAND, newline="\r\n")
    shutil.copy(ROOT / "LICENSE", target / "LICENSE.txt")
    _messages(work, target / "python" / "ndagent_messages.dll")
    (work / "ndagent.ico").write_bytes(icon.icon())
    text = (SOURCE / "ndagent.yaml").read_text()
    (work / "ndagent.yaml").write_text(text, newline="\r\n")
    for path in sorted([work, *work.rglob("*")], reverse=True):
        os.utime(path, (_EPOCH, _EPOCH))
    return said


def pack(work: Path, output: Path, *, version: str) -> Path:
    """The msi of what is staged."""
    own = frozenset({"python/python.exe", "python/ndagent_messages.dll"})
    (work / "files.wxs").write_text(tree.fragment(work / "stage", leave_out=own))
    output.mkdir(parents=True, exist_ok=True)
    target = output.resolve() / f"ndagent-{version}-x64.msi"
    target.unlink(missing_ok=True)
    codes = {"ProductCode": _code("product", version), "Version": version, "Stage": "stage"}
    defines = [part for name, value in codes.items() for part in ("-D", f"{name}={value}")]
    shutil.copy(SOURCE / "main.wxs", work)  # wixl takes paths from where it stands only
    _run(["wixl", "-a", "x64", "-D", "Win64=yes", *defines, "-o", str(target), "main.wxs", "files.wxs"], work=work)
    _finish(target, version)
    papers.write(work / "stage", target, version=version, lock=wheels.LOCK, epoch=_EPOCH)
    return target


def _finish(target: Path, version: str) -> None:
    for query in _TABLES:
        _run(["msibuild", str(target), "-q", query], work=target.parent)
    properties = _run(["msiinfo", "export", str(target), "Property"], work=target.parent)
    secure = re.search(r"^SecureCustomProperties\t(.*?)\r?$", properties, re.MULTILINE)
    names = ";".join([*([secure[1]] if secure else []), "COLLECTOR_URL", "ENROLL_TOKEN"])
    where = " WHERE `Property`='SecureCustomProperties'"
    change = f"UPDATE `Property` SET `Value`='{names}'{where}" if secure else (
        f"INSERT INTO `Property` (`Property`,`Value`) VALUES ('SecureCustomProperties','{names}')"
    )  # fmt: skip
    _run(["msibuild", str(target), "-q", change], work=target.parent)
    title = f"Neurodefender agent {version}"
    _run(["msibuild", str(target), "-s", title, "Neurodefender", "x64;1033", _code("package", version)],
         work=target.parent)  # fmt: skip
    with tempfile.TemporaryDirectory() as directory:
        summary = Path(directory) / "_SummaryInformation.idt"
        said = _run(["msiinfo", "export", str(target), summary.stem], work=target.parent)
        summary.write_text(_SUMMARY_TIMES.sub(rf"\1\t{time.strftime('%Y/%m/%d %H:%M:%S', time.gmtime(_EPOCH))}", said))
        _run(["msibuild", str(target), "-i", str(summary)], work=target.parent)


def sign(target: Path, certificate: Path, *, key: Path | None, timestamp_url: str | None) -> None:
    """Sign the msi in place, and check that the signature fits."""
    if key is None:
        raise SystemExit("--sign-cert needs --sign-key")
    signed = target.with_suffix(".signed")
    signed.unlink(missing_ok=True)
    dated = ["-ts", timestamp_url] if timestamp_url else []
    words = ["-h", "sha256", "-n", "Neurodefender agent", *dated, "-in", str(target), "-out", str(signed)]
    _run(["osslsigncode", "sign", "-certs", str(certificate), "-key", str(key), *words], work=target.parent)
    signed.replace(target)


def _compile(target: Path) -> None:
    """Next to each source what it compiles to: the service writes no .pyc, and would compile at every start."""
    command = [sys.executable, "-m", "compileall", "-q", "-f", "--invalidation-mode", "unchecked-hash"]
    _run([*command, "-s", str(target), "-p", "lib", str(target)], work=target)


def _messages(work: Path, target: Path) -> None:
    """A library that holds nothing but the event log's texts."""
    prefix = "x86_64-w64-mingw32-"
    _run([f"{prefix}windmc", "-h", ".", "-r", ".", str(SOURCE / "messages.mc")], work=work)
    _run([f"{prefix}windres", "messages.rc", "messages.o"], work=work)
    fixed = ["-Wl,--no-insert-timestamp", "-Wl,--disable-auto-image-base", "-Wl,--image-base,0x180000000"]
    link = ["-shared", "-nostdlib", "-s", "-Wl,--entry=0", *fixed]  # mingw would make the base of the file's path
    _run([f"{prefix}gcc", *link, "-o", str(target), "messages.o"], work=work)


def _code(kind: str, version: str) -> str:
    """A GUID that another version never has, and the same version always: {…} as msi wants it."""
    return "{" + str(uuid.uuid5(_NAMESPACE, f"{kind} {version}")).upper() + "}"


def _run(command: list[str], *, work: Path, text: str | None = None) -> str:
    fixed = {"PYTHONHASHSEED": "0", "SOURCE_DATE_EPOCH": str(_EPOCH), "TZ": "UTC", "LC_ALL": "C.UTF-8"}
    environment = {**os.environ, **fixed}
    done = subprocess.run(
        command, cwd=work, env=environment, input=text, capture_output=True, text=True, timeout=600, check=False
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command[:3])} … failed:\n{(done.stderr or done.stdout)[-3000:]}")
    return done.stdout


if __name__ == "__main__":
    main()
