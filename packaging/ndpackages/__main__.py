"""`python -m ndpackages`: builds packages, or the lock that they are built from. The only place that exits.

    build   dist/packages/*.deb and *.rpm, with SHA256SUMS; --twice builds again in a second root and compares
    lock    resolve the Python packages anew into packaging/requirements.lock

Exit statuses: 0 done, 1 not done (stderr says why), 2 wrong usage.
"""

import argparse
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

from ndpackages import lock
from ndpackages.root import BUILD_PACKAGES, Root, RootError, clean_root, remove_tree

SOURCE = Path(__file__).parents[2]
BUILD = SOURCE / "build" / "packages"
CACHE = BUILD / "cache"
OUTPUT = SOURCE / "dist" / "packages"


def main() -> int:
    """Parse, do it, return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m ndpackages", description="Builds the deb and rpm packages.")
    commands = parser.add_subparsers(dest="command", required=True)
    build = commands.add_parser("build", help="build the packages")
    build.add_argument("--output", type=Path, default=OUTPUT, help="directory (default: %(default)s)")
    build.add_argument(
        "--release", action="append", metavar="N", help="package revision (default: 1); repeatable, to test upgrades"
    )
    build.add_argument("--twice", action="store_true", help="build again from nothing and compare byte for byte")
    commands.add_parser("lock", help="resolve Python packages anew")
    arguments = parser.parse_args()
    try:
        return _lock() if arguments.command == "lock" else _build(arguments)
    except (RootError, OSError, subprocess.CalledProcessError) as error:
        print(error, file=sys.stderr)
        return 1


def _lock() -> int:
    root = _root_with_sources("lock")
    lock.write(root, platform.machine())
    remove_tree(root.path)
    return 0


def _build(arguments: argparse.Namespace) -> int:
    releases = arguments.release or ["1"]
    os.environ["SOURCE_DATE_EPOCH"] = str(source_date_epoch())  # the same for both builds
    arguments.output.mkdir(parents=True, exist_ok=True)
    made = build_packages(releases, arguments.output, "first")
    for file in made:
        print(f"{file.stat().st_size / 1e6:6.2f} MB  {_sha256(file)}  {file}")
    sums = "".join(f"{_sha256(file)}  {file.name}\n" for file in made)
    (arguments.output / "SHA256SUMS").write_text(sums, encoding="ascii")
    if not arguments.twice:
        return 0
    again = BUILD / "again"
    shutil.rmtree(again, ignore_errors=True)
    again.mkdir()
    twins = {file.name: _sha256(file) for file in build_packages(releases, again, "second")}
    different = [file.name for file in made if twins.get(file.name) != _sha256(file)]
    print(f"built twice: {', '.join(different)} differ" if different else "built twice: every byte the same")
    return 1 if different else 0


def build_packages(releases: list[str], output: Path, name: str) -> list[Path]:
    """Build in a fresh root of this name; the files made, in `output`. Raises RootError."""
    started = time.monotonic()
    root = _root_with_sources(name)
    lock.fetch(root, CACHE / "wheels")
    said = root.run("python3", "-m", "ndpackages.inside", *releases, environ=inside_environ(), quiet=False)
    print(said, end="")
    made = [Path(shutil.copy(file, output)) for file in sorted((root.path / "out").iterdir())]
    remove_tree(root.path)
    print(f"built in {time.monotonic() - started:.0f} s")
    return made


def inside_environ() -> dict[str, str]:
    """What the build in the root may know of this process's environment: no more than this."""
    fixed = {"SOURCE_DATE_EPOCH": str(source_date_epoch()), "PYTHONHASHSEED": "1", "PYTHONPATH": "/src/packaging"}
    return fixed | {name: os.environ[name] for name in ("ND_MAINTAINER",) if name in os.environ}


def source_date_epoch() -> int:
    """The date of all that is made: SOURCE_DATE_EPOCH, or that of the last commit."""
    given = os.environ.get("SOURCE_DATE_EPOCH")
    if given:
        return int(given)
    return int(_git("log", "-1", "--format=%ct"))


def _root_with_sources(name: str) -> Root:
    """A fresh build root with what git knows of this tree, as it is on disk, in /src."""
    root = clean_root("bookworm", packages=BUILD_PACKAGES, cache=CACHE, target=BUILD / f"root-{name}")
    for listed in _git("ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0"):
        source, target = SOURCE / listed, root.path / "src" / listed
        if listed and source.is_file() and not listed.startswith(("tests/", "bench/")):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
    return root


def _git(*arguments: str) -> str:
    command = ["git", "-c", f"safe.directory={SOURCE}", *arguments]
    return subprocess.run(command, cwd=SOURCE, check=True, capture_output=True, text=True).stdout


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


if __name__ == "__main__":
    sys.exit(main())
