"""The build itself, inside the clean root: sources in /src, wheels in /wheels, packages to /out.

Promises: one frozen tree per product, packed once per release asked for, and its papers (bill of materials, licences)
beside the packages; every file carries SOURCE_DATE_EPOCH. Fails where the compiled codec is not in. Started by
__main__.py, without a network.
"""

import gzip
import os
import shutil
import subprocess
import sys
from pathlib import Path

_SOURCE, _WHEELS, _OUT = Path("/src"), Path("/wheels"), Path("/out")
_PYTHON = "/build/bin/python"


def main(releases: list[str]) -> None:
    """With the root's own Python: make the environment of the build, and go on in it."""
    if sys.prefix == sys.base_prefix:
        _environment()
        os.execv(_PYTHON, [_PYTHON, "-m", "ndpackages.inside", *releases])
    from ndpackages import deb, freezing, layout, products, rpm

    epoch = int(os.environ["SOURCE_DATE_EPOCH"])
    os.umask(0o022)
    _OUT.mkdir()
    for product in products.PRODUCTS:
        frozen = freezing.freeze(product, _SOURCE, Path("/made"))
        for release in releases:
            tree = layout.lay_out(product, frozen, _SOURCE, release=release, epoch=epoch)
            rpm.pack(tree, _OUT)
            deb.pack(tree, _OUT)
            name = f"{product.name}-{tree.version}-{tree.architecture}"
            _copy_papers(tree.path / "usr/share/doc" / product.name, name)


def _copy_papers(documents: Path, name: str) -> None:
    """What a signed release has beside its packages, so that nobody must unpack one to read it."""
    shutil.copy(documents / "sbom.cdx.json", _OUT / f"{name}.cdx.json")
    (_OUT / f"{name}.licences.txt").write_bytes(gzip.decompress((documents / "third-party-notices.gz").read_bytes()))


def _environment() -> None:
    _run("python3", "-m", "venv", "/build")
    pip = [_PYTHON, "-m", "pip", "install", "--quiet", "--no-index", "--find-links", str(_WHEELS)]
    tools = ("pip", "setuptools", "wheel", "packaging")  # first: what is built from source is built with these
    _run(*pip, "--require-hashes", "--no-deps", "-r", _of_lock(*tools))
    locked = [*pip, "--require-hashes", "--no-deps", "--no-build-isolation"]
    _run(*locked, "-r", str(_SOURCE / "packaging/requirements.lock"))
    _run(*pip, "--no-deps", "--no-build-isolation", str(_SOURCE))
    _run(_PYTHON, "-c", "import ndagent.wire._codec")


def _of_lock(*names: str) -> str:
    lines = (_SOURCE / "packaging/requirements.lock").read_text(encoding="utf-8").splitlines()
    chosen = Path("/tools.lock")
    chosen.write_text("\n".join(line for line in lines if line.partition("==")[0] in names), encoding="utf-8")
    return str(chosen)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, cwd="/")


if __name__ == "__main__":
    main(sys.argv[1:])
